"""A picture of a run for a README: curves, and a strip of pictures with questions and generated answers."""

import base64
import textwrap
from collections.abc import Sequence
from typing import Any

import cv2
import matplotlib
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vlm_jax.errors import UserError
from vlm_jax.evaluation.report.cards import Card, choose, with_pictures
from vlm_jax.evaluation.report.contents import Contents, read_contents
from vlm_jax.evaluation.report.figures import number
from vlm_jax.evaluation.report.plots import Curve, draw_curves, draw_stages

_INK, _SOFT, _LINE, _RIGHT, _WRONG = "#1d2430", "#667085", "#e3e6eb", "#1a7f4b", "#c2402f"
_COLOURS = ("#3b6fb6", "#d5672a")
_PICTURES = 6
_DOTS_PER_INCH = 110
_WIDTH = 9.6
"""Inches."""


def figure_for_readme(workdir: epath.PathLike, path: epath.PathLike) -> epath.Path:
    """Draws loss and accuracy over the steps, the scores, and six pictures with questions and answers, as a PNG.

    Args:
        workdir: of a run; what it lacks is left out of the picture.
        path: where the PNG goes; a little over 1000 pixels wide.

    Returns:
        `path`.

    Raises:
        UserError: if the workdir holds neither curves nor answers, or the file cannot be written.
    """
    contents = read_contents(workdir)
    cards = with_pictures(_six(contents), contents)
    if not contents.lines and not cards:
        raise UserError(
            f"--workdir {workdir}: neither metrics.jsonl nor predictions are there; train or evaluate first"
        )
    pixels = _draw(contents, cards)
    encoded = cv2.imencode(".png", pixels[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()
    target = epath.Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoded)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); choose another file") from None
    return target


def _six(contents: Contents) -> list[Card]:
    """Five right answers and a wrong one, if there are such, of all tasks in turn."""
    cards = sorted(choose(contents.tasks), key=lambda card: card.verdict != "right")
    right = [card for card in cards if card.verdict == "right"]
    wrong = [card for card in cards if card.verdict != "right"]
    mixed: list[Card] = []
    names = [task.name for task in contents.tasks]
    queues = [[card for card in right if card.task == name] for name in names]
    while any(queues) and len(mixed) < _PICTURES:
        mixed += [queue.pop(0) for queue in queues if queue]
    kept = _PICTURES - 1 if wrong else _PICTURES
    return (mixed[:kept] + wrong)[:_PICTURES]


def _draw(contents: Contents, cards: Sequence[Card]) -> np.ndarray:
    with matplotlib.rc_context({"font.size": 9.0, "axes.edgecolor": _LINE, "text.color": _INK}):
        upper, lower = 2.7 * bool(contents.lines), 2.35 * bool(cards)
        height = upper + lower
        figure = Figure(figsize=(_WIDTH, height), dpi=_DOTS_PER_INCH)
        if upper:
            bottom, top = (lower + 0.5) / height, (height - 0.3) / height
            grid = figure.add_gridspec(1, 2, left=0.06, right=0.985, bottom=bottom, top=top, wspace=0.17)
            _curves([figure.add_subplot(grid[0, i]) for i in range(2)], contents)
        if lower:
            # Squares, with room for text below.
            grid = figure.add_gridspec(1, _PICTURES, left=0.02, right=0.98, bottom=0.8 / height, top=lower / height)
            _strip([figure.add_subplot(grid[0, i]) for i in range(_PICTURES)], cards)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[:, :, :3]


def _curves(axes: Sequence[Axes], contents: Contents) -> None:
    for place, key, title in zip(axes, ("loss", "accuracy"), ("loss", "accuracy of answer tokens"), strict=True):
        curves = [
            Curve("training", lambda line, key=key: number(line, key)),
            Curve("validation", lambda line, key=key: number(line.get("validation", {}), key), 1, sparse=True),
        ]
        draw_curves(place, contents.lines, curves, _COLOURS)
        draw_stages(place, contents.lines, _SOFT, _LINE)
        place.set_ylim(bottom=0, top=1.02 if key == "accuracy" else None)
        place.set_ylabel(title, color=_SOFT)
        place.xaxis.label.set_color(_SOFT)
        place.tick_params(colors=_SOFT)
        place.grid(axis="y", color=_LINE)
    for curve, colour in zip(("training", "validation"), _COLOURS, strict=True):
        axes[0].plot([], [], color=colour, label=curve)
    axes[0].legend(frameon=False, loc="upper right")


def _strip(axes: Sequence[Axes], cards: Sequence[Card]) -> None:
    for place in axes:
        place.set_axis_off()
    for place, card in zip(axes, cards, strict=False):
        if card.picture:
            place.imshow(_pixels(card.picture), interpolation="nearest")
        right = card.verdict == "right"
        question = "\n".join(textwrap.wrap(card.answer.question, 25, max_lines=3, placeholder=" …"))
        answer = f"{'✓' if right else '✗'} {textwrap.shorten(card.answer.prediction, 22, placeholder=' …')}"
        colour = _RIGHT if right else _WRONG
        _below(place, -0.05, question, fontsize=7.5)
        _below(place, -0.38, answer, fontsize=10, fontweight="bold", color=colour)


def _below(place: Axes, y: float, text: str, **style: Any) -> None:
    # A dollar sign would start a formula.
    place.text(0.5, y, text.replace("$", r"\$"), transform=place.transAxes, ha="center", va="top", **style)


def _pixels(uri: str) -> np.ndarray:
    data = np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))
