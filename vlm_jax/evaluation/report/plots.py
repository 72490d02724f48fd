"""Curves of a run as SVG that stands within the page, so that it takes the page's colours, light or dark."""

import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from vlm_jax.evaluation.report.contents import Line
from vlm_jax.evaluation.report.figures import number

_POINTS = 400
"""A longer curve is drawn by means over neighbouring points."""
_LOG_RATIO = 12
"""From this ratio of largest to smallest value the axis is logarithmic."""

_ROUND = (1, 2, 2.5, 5, 10)
"""Ticks stand at multiples of these."""

# Colours that cannot occur otherwise; the page's style sheet says what they are.
INK, SOFT, LINE, PAPER = "#010203", "#010204", "#010205", "#010206"
SERIES = tuple(f"#0102{16 + i:02x}" for i in range(6))
_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", PAPER: "--card"} | {
    colour: f"--series-{i}" for i, colour in enumerate(SERIES)
}
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "font.size": 9.0, "axes.edgecolor": LINE, "text.color": SOFT}
STYLE |= {"axes.labelcolor": SOFT, "xtick.color": SOFT, "ytick.color": SOFT, "grid.color": LINE}


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line of a plot; a curve is broken between stages."""

    name: str
    values: Callable[[Line], float | None]
    colour: int = 0
    """Number of the page's series colour."""
    sparse: bool = False
    """Measured now and then: points are marked."""
    thin: bool = False


@dataclasses.dataclass(frozen=True)
class Plot:
    """A drawn plot with what the page writes around it."""

    title: str
    svg: str
    legend: tuple[tuple[str, str], ...]
    """(name, CSS variable of its colour); empty where there is one curve."""
    note: str = ""


def plots(lines: Sequence[Line]) -> list[Plot]:
    """Loss, accuracy, learning rate and gradient norm over the steps of all stages; those that there is data for."""
    sources = list(dict.fromkeys(name for line in lines for name in line.get("sources", {})))
    several = any(len(line.get("sources", {})) > 1 for line in lines)

    def measured(key: str) -> list[Curve]:
        curves = [Curve("training", lambda line: number(line, key))]
        if several:
            curves += [_of_source(name, key, 2 + i % 4) for i, name in enumerate(sources)]
        return [*curves, Curve("validation", lambda line: number(line.get("validation", {}), key), 1, sparse=True)]

    between = "Stages learn different texts, so their losses are not on one scale."
    return _drawn(
        lines,
        [
            ("Loss", measured("loss"), "log", between if len(_spans(lines)) > 1 else ""),
            ("Accuracy of answer tokens", measured("accuracy"), "share", "Share of learned tokens guessed rightly."),
            ("Learning rate", [_of_line("learning_rate")], "plain", ""),
            ("Gradient norm", [_of_line("gradient_norm")], "log", "Before clipping, mean over the steps of a point."),
        ],
    )


def throughput_plots(lines: Sequence[Line]) -> list[Plot]:
    """Tokens and pictures a second, padding, and how well devices and time are used, over the steps of all stages."""
    included = "The first point of a stage includes compilation."
    return _drawn(
        lines,
        [
            ("Tokens a second", [_of_line("tokens_per_second")], "count", included),
            ("Pictures a second", [_of_line("images_per_second")], "count", included),
            ("Padding", [_of_line("padding_share")], "from_0", "Share of positions that hold no token."),
            ("MFU", [_of_line("mfu")], "share", "The model's FLOPs, of what the devices can do in that time."),
            ("Goodput", [_of_line("goodput")], "share", "Share of all time so far that went to steps which counted."),
        ],
    )


def _of_line(key: str) -> Curve:
    return Curve(key, lambda line: number(line, key))


def _of_source(name: str, key: str, colour: int) -> Curve:
    return Curve(name, lambda line: number(line.get("sources", {}).get(name, {}), key), colour, thin=True)


def _drawn(lines: Sequence[Line], wanted: Sequence[tuple[str, list[Curve], str, str]]) -> list[Plot]:
    found = []
    for title, curves, scale, note in wanted:
        curves = [curve for curve in curves if any(curve.values(line) is not None for line in lines)]
        if not curves:
            continue
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
            svg = svg_of(draw(lines, curves, scale), title)
        legend = tuple((curve.name, f"--series-{curve.colour}") for curve in curves) if len(curves) > 1 else ()
        found.append(Plot(title, svg, legend, note))
    return found


def draw(lines: Sequence[Line], curves: Sequence[Curve], scale: str) -> Figure:
    """One plot over the steps of the whole run, with the stages' names above and borders between them."""
    figure = Figure(figsize=(5.2, 2.45))
    figure.patch.set_alpha(0)
    # Fixed margins, so that the axes of neighbouring plots stand in line.
    axes = figure.add_axes((0.12, 0.19, 0.87, 0.69))
    draw_curves(axes, lines, curves, SERIES)
    _set_scale(axes, scale)
    draw_stages(axes, lines, SOFT, LINE)
    return figure


def draw_curves(axes: Axes, lines: Sequence[Line], curves: Sequence[Curve], colours: Sequence[str]) -> None:
    """Draws the curves into axes, each broken between stages."""
    for curve in curves:
        for stage, (start, _) in _spans(lines).items():
            points = [(start + line["step"], curve.values(line)) for line in lines if line["stage"] == stage]
            x, y = _thinned([(step, value) for step, value in points if value is not None])
            marker = "o" if curve.sparse or len(x) == 1 else None
            width = 0.9 if curve.thin else 1.6
            axes.plot(x, y, color=colours[curve.colour], linewidth=width, marker=marker, markersize=3)


def draw_stages(axes: Axes, lines: Sequence[Line], ink: str, border: str) -> None:
    """Names the stages above the axes and draws the borders between them."""
    axes.patch.set_alpha(0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0)
    axes.set_xlim(0, max(end for _, end in _spans(lines).values()) * 1.01)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=_ROUND))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("step")
    spans = _spans(lines)
    if len(spans) < 2:
        return
    for number_, (name, (start, end)) in enumerate(spans.items()):
        if number_:
            axes.axvline(start, color=ink, linewidth=0.8, linestyle=(0, (3, 3)))
        # A dollar sign would start a formula.
        label = name.replace("$", r"\$")
        axes.text(
            (start + end) / 2, 1.02, label, transform=axes.get_xaxis_transform(), ha="center", va="bottom", color=ink
        )


def _set_scale(axes: Axes, scale: str) -> None:
    values = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in axes.lines])
    if scale == "log" and values.min() > 0 and values.max() > _LOG_RATIO * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_ROUND))
    if scale in ("count", "from_0", "plain", "log"):
        axes.set_ylim(bottom=0)
    if scale == "share":
        axes.set_ylim(0, 1.02)
    if scale in ("share", "from_0"):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    elif scale == "count":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _spans(lines: Sequence[Line]) -> dict[str, tuple[int, int]]:
    """Stage -> steps of the run before it and after it."""
    spans: dict[str, tuple[int, int]] = {}
    end = 0
    for stage in dict.fromkeys(line["stage"] for line in lines):
        start = end
        end += max(line["step"] for line in lines if line["stage"] == stage)
        spans[stage] = (start, end)
    return spans


def _thinned(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    if len(points) <= _POINTS:
        return [x for x, _ in points], [y for _, y in points]
    parts = np.array_split(np.asarray(points, np.float64), _POINTS)
    means = [part.mean(0) for part in parts]
    return [float(x) for x, _ in means], [float(y) for _, y in means]


def svg_of(figure: Figure, title: str) -> str:
    """The figure as an <svg> element that may stand in HTML: the page's font, and its colours by CSS variables."""
    out = io.StringIO()
    nothing: Any = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(out, format="svg", metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (xmlns(:\w+)?|version)="[^"]*"', "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("xlink:href=", "href=")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r'<svg width="[^"]*" height="[^"]*"', f'<svg role="img" aria-label="{title}"', text, count=1)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text
