"""Plots of the pages about data, as SVG in a data URI."""

import base64
import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {"visual": "#f2b134", "prompt": "#8fb8de", "learned": "#2e9e5b", "padding": "#d0d5dd", "bars": "#4a7fb5"}
LANGUAGE_COLOURS = ("#3b6fb6", "#d5672a", "#2e9e6b", "#b5579b", "#a88a1c", "#4aa3b8")
"""In the order of the languages' names."""


def new_axes(height: float) -> tuple[Figure, Axes]:
    """A figure of the pages' width and this height in inches, and its axes."""
    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure, axes


def svg(figure: Figure) -> str:
    """The figure as a data URI; the same figure gives the same text."""
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "vlm-jax"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


def plot_histogram(counts: Mapping[str, int], x: str, y: str, bins: int) -> str:
    """A histogram of counted whole numbers; bins 0 = one bar a value."""
    figure, axes = new_axes(height=2.8)
    values = [int(value) for value in counts]
    least, most = min(values) - 0.5, max(values) + 0.5
    edges = np.linspace(least, most, 1 + (bins or int(most - least)))
    axes.hist(values, bins=edges.tolist(), weights=list(counts.values()), color=COLOURS["bars"], rwidth=0.92)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return svg(figure)


def plot_bars(counts: Mapping[str, float], most: int = 20, form: str = "{:,.0f}") -> str:
    """Named values, a bar each."""
    shown = list(counts.items())[:most]
    figure, axes = new_axes(height=0.7 + 0.24 * len(shown))
    bars = axes.barh(range(len(shown)), [n for _, n in shown], color=COLOURS["bars"])
    axes.set_yticks(range(len(shown)), [shortened(name) for name, _ in shown])
    axes.bar_label(bars, labels=[form.format(n) for _, n in shown], padding=3, fontsize=8, color="#667085")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(left=False)
    return svg(figure)


def plot_spreads(counts: Mapping[str, Mapping[str, int]], x: str, y: str) -> str:
    """Several counted spreads of whole numbers above each other's axis, on a logarithmic scale; a line a name."""
    figure, axes = new_axes(height=2.8)
    most = max(int(value) for spread in counts.values() for value in spread)
    edges = np.unique(np.round(np.geomspace(1, max(2, most + 1), 28)))
    for number, (name, spread) in enumerate(counts.items()):
        values = np.clip([int(value) for value in spread], 1, None)
        colour = LANGUAGE_COLOURS[number % len(LANGUAGE_COLOURS)]
        heights, _ = np.histogram(values, bins=edges, weights=list(spread.values()))
        axes.stairs(heights, edges, color=colour, label=shortened(name), linewidth=1.6)
        axes.stairs(heights, edges, color=colour, alpha=0.12, fill=True)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.legend(frameon=False)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return svg(figure)


def plot_sizes(sizes: Sequence[Sequence[int]]) -> str:
    """Widths and heights of pictures in pixels, a dot a picture, with lines of equal shape."""
    figure, axes = new_axes(height=4.2)
    width, height = np.array(sizes, float).T
    axes.scatter(width, height, s=9, alpha=0.35, color=COLOURS["bars"], linewidths=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    least, most = min(width.min(), height.min()) / 1.3, max(width.max(), height.max()) * 1.3
    for shape, name in ((1.0, "1 : 1"), (16 / 9, "16 : 9"), (4.0, "4 : 1"), (0.25, "1 : 4")):
        line = np.array([least, most])
        axes.plot(line, line / shape, color="#98a2b3", linewidth=0.8, linestyle=":", zorder=0)
        at = min(most, most * shape) / 1.06
        axes.annotate(name, (at, at / shape), fontsize=8, color="#667085", ha="right", va="top")
    axes.set_xlim(least, most)
    axes.set_ylim(least, most)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.set_xlabel("width, pixels")
    axes.set_ylabel("height, pixels")
    return svg(figure)


def shortened(text: str, most: int = 44) -> str:
    """For a label."""
    # A dollar sign would start a formula.
    return (text if len(text) <= most else text[: most - 1] + "…").replace("$", r"\$")
