"""Plots of a study, as SVG that takes the page's colours: each arm's quality with its control, and what it costs."""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vlm_jax.ablation.summary import ArmFigures, Summary
from vlm_jax.evaluation.report.plots import INK, LINE, PAPER, SERIES, SOFT, STYLE, Plot, svg_of


def plots(summary: Summary) -> list[Plot]:
    """Quality by arm, and quality against compute, step time and context; those that there are figures for."""
    arms = [arm for arm in summary.arms if arm.score is not None]
    if not arms:
        return []
    interval = "Bar: 95% interval over seeds; small dots: seeds."
    found = [
        _plot(
            "Quality",
            lambda: _quality(arms),
            f"{interval} Dotted: the same models shown wrong pictures.",
        )
    ]
    wanted: list[tuple[str, str, Callable[[ArmFigures], float | None]]] = [
        ("Quality and compute", "MFLOP an example, forward, behind the encoder", lambda arm: _mega(arm)),
        (
            "Quality and time",
            "milliseconds a step",
            lambda arm: None if arm.costs.step_seconds is None else 1000 * arm.costs.step_seconds,
        ),
    ]
    for title, label, value in wanted:
        points = [(arm, found_value) for arm in arms if (found_value := value(arm)) is not None]
        if points:
            note = f"{interval} In brackets: context tokens a picture."
            found.append(_plot(title, lambda points=points, label=label: _against(points, label), note))
    return found


def _mega(arm: ArmFigures) -> float | None:
    flops = arm.costs.flops_per_example
    return None if flops is None else flops / 1e6


def _plot(title: str, draw: Callable[[], Figure], note: str) -> Plot:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        return Plot(title, svg_of(draw(), title), (), note)


def _quality(arms: Sequence[ArmFigures]) -> Figure:
    figure = _figure(0.55 + 0.36 * len(arms))
    height = figure.get_figheight()
    axes = figure.add_axes((0.24, 0.42 / height, 0.72, (height - 0.5) / height))
    for place, arm in enumerate(arms):
        score = arm.score
        assert score is not None
        colour = SERIES[place % len(SERIES)]
        if score.over_seeds is not None:
            axes.plot([score.over_seeds.low, score.over_seeds.high], [place, place], color=colour, linewidth=2.2)
        axes.plot(list(score.by_seed.values()), [place] * len(score.by_seed), "o", color=colour, markersize=2.5)
        axes.plot([score.mean], [place], "o", color=colour, markersize=6, markeredgecolor=PAPER)
        if score.shuffled == score.shuffled:
            span = [place - 0.3, place + 0.3]
            axes.plot([score.shuffled] * 2, span, color=SOFT, linewidth=1.4, linestyle=(0, (1, 1.5)))
    axes.set_yticks(range(len(arms)), [_plain(arm.name) for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.tick_params(axis="y", labelcolor=INK)
    _frame(axes, "x")
    axes.set_xlim(0, 1.01)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    return figure


def _against(points: Sequence[tuple[ArmFigures, float]], label: str) -> Figure:
    figure = _figure(2.9)
    axes = figure.add_axes((0.11, 0.16, 0.86, 0.8))
    for place, (arm, x) in enumerate(points):
        score = arm.score
        assert score is not None
        colour = SERIES[place % len(SERIES)]
        if score.over_seeds is not None:
            axes.plot([x, x], [score.over_seeds.low, score.over_seeds.high], color=colour, linewidth=1.6)
        axes.plot([x] * len(score.by_seed), list(score.by_seed.values()), "o", color=colour, markersize=2.5)
        axes.plot([x], [score.mean], "o", color=colour, markersize=6, markeredgecolor=PAPER)
        axes.annotate(
            f"{_plain(arm.name)} ({arm.context_tokens})",
            (x, score.mean),
            xytext=(6, 5 if place % 2 else -11),
            textcoords="offset points",
            color=INK,
        )
    _frame(axes, "y")
    axes.set_xlim(0, 1.25 * max(x for _, x in points))
    axes.margins(y=0.15)
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
    return figure


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(5.2, height))
    figure.patch.set_alpha(0)
    return figure


def _frame(axes: Axes, grid: Any) -> None:
    axes.patch.set_alpha(0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis=grid, linewidth=0.6, color=LINE)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0)


def _plain(name: str) -> str:
    # A dollar sign would start a formula.
    return name.replace("$", r"\$")
