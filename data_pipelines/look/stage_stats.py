"""What a stage's batches hold: figures for a program (`stats`) and a page with plots for a person (`stats_page`)."""

import collections
from collections.abc import Iterable, Iterator
from typing import Any

import matplotlib
import numpy as np

from data_pipelines.loader import StageData
from data_pipelines.look.pages import page_template
from data_pipelines.look.plots import COLOURS, new_axes, plot_bars, plot_histogram, svg
from data_pipelines.template import Processor
from data_pipelines.tokenizers.fertility import Fertility, spelled
from data_pipelines.words import SCRIPTS, script_of, words_of
from vlm_jax.batch import Batch, BatchInfo

_KEPT_WORDS = 40
_LONGEST_ANSWER = 80


def stats(stage: StageData, processor: Processor, batches: Iterable[tuple[Batch, BatchInfo]]) -> dict[str, Any]:
    """Counts what the batches hold.

    Args:
        stage: The stage that they are from.
        processor: The one that made them.
        batches: Some of the loader's batches.

    Returns:
        JSON-able figures. Shares are of all positions, but `learned_share`, which is of the real tokens. Answers are
        the short stretches of learned tokens. Answers, words and fertility are told apart by script ('latin',
        'cyrillic', 'other'); 'cut' is how many positions were cut off examples too long for a row, by source.
    """
    count: collections.Counter[str] = collections.Counter()
    lengths, pictures, examples = [], [], []
    sources: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    answers: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    words: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    names: set[tuple[str, str]] = set()
    fertile: dict[str, Fertility] = collections.defaultdict(Fertility)
    quarantined: dict[str, int] = {}
    cut: dict[str, int] = {}
    for batch, info in batches:
        quarantined, cut = dict(info.quarantined), dict(info.cut)
        segment, learned = np.asarray(batch.segment_ids), np.asarray(batch.loss_weights) > 0
        visual = np.zeros_like(learned) if batch.visual_index is None else np.asarray(batch.visual_index) >= 0
        count.update(batches=1, rows=len(segment), positions=segment.size, real=int((segment > 0).sum()))
        count.update(visual=int(visual.sum()), learned=int(learned.sum()))
        for row, (source, name, at) in _examples(batch, info):
            lengths.append(len(at))
            names.add((source, name))
            sources[source].update(examples=1, tokens=len(at), learned=int(learned[row, at].sum()))
            for text, ids, is_answer in _texts(batch, row, at, processor):
                script = script_of(text)
                words[script].update(word.lower() for word in words_of(text) if not word.isdigit())
                fertile[script] += spelled(processor.tokenizer, text, ids)
                if is_answer and len(text) <= _LONGEST_ANSWER:
                    answers[script][text] += 1
        examples += [len(np.unique(row[row > 0])) for row in segment]
        if batch.image_ids is not None:
            pictures += [int((row > 0).sum()) for row in np.asarray(batch.image_ids)]
    positions, real = max(1, count["positions"]), max(1, count["real"])
    return {
        "stage": stage.name,
        "batches": count["batches"],
        "rows": count["rows"],
        "length": stage.data.length,
        "image_slots": stage.data.images,
        "examples": len(lengths),
        "distinct_examples": len(names),
        "tokens": count["real"],
        "padding_share": 1 - count["real"] / positions,
        "visual_share": count["visual"] / positions,
        "learned_share": count["learned"] / real,
        "prompt_share": (count["real"] - count["visual"] - count["learned"]) / positions,
        "examples_per_row": _mean(examples),
        "images_per_row": _mean(pictures),
        "rows_with_all_slots_used": _mean([n == stage.data.images for n in pictures]),
        "tokens_per_example": _spread(lengths),
        "token_counts": _histogram(lengths),
        "image_counts": _histogram(pictures),
        "sources": {name: dict(values) for name, values in sorted(sources.items())},
        "answers": {script: dict(c.most_common(_KEPT_WORDS)) for script, c in sorted(answers.items())},
        "words": {script: dict(c.most_common(_KEPT_WORDS)) for script, c in sorted(words.items())},
        "fertility": {script: each.plain() for script, each in sorted(fertile.items()) if script != "other"},
        "quarantined": quarantined,
        "cut": cut,
    }


def stats_page(figures: dict[str, Any]) -> str:
    """The figures of `stats` as one HTML page with plots, without outside requests."""
    plots = [
        ("Where the positions go", _plot_positions(figures)),
        ("Tokens an example", plot_histogram(figures["token_counts"], "tokens", "examples", bins=40)),
    ]
    if figures["image_counts"]:
        plots.append(("Pictures a row", plot_histogram(figures["image_counts"], "pictures", "rows", bins=0)))
    by_source = {name: values["examples"] for name, values in figures["sources"].items()}
    plots.append(("Examples by source", plot_bars(by_source)))
    plots += [(f"Answers, {SCRIPTS[script]}", plot_bars(counts)) for script, counts in figures["answers"].items()]
    plots += [(f"Words, {SCRIPTS[script]}", plot_bars(counts)) for script, counts in figures["words"].items()]
    return page_template("stats_page.html.j2").render(figures=figures, plots=plots, scripts=SCRIPTS)


def _examples(batch: Batch, info: BatchInfo) -> Iterator[tuple[int, tuple[str, str, np.ndarray]]]:
    """(row, (source, id, positions in the row)) of every example that is there."""
    for row, ids in enumerate(info.example_ids):
        segment = np.asarray(batch.segment_ids[row])
        for number, name in enumerate(ids):
            at = np.flatnonzero(segment == number + 1)
            if len(at):
                entry = int(batch.example_index[row, at[0]])
                yield row, (info.sources[int(batch.source_ids[row, entry])], name, at)


def _texts(batch: Batch, row: int, at: np.ndarray, processor: Processor) -> Iterator[tuple[str, list[int], bool]]:
    """The example's stretches of text, their ids, and whether each is learned. A control token ends a stretch."""
    tokenizer = processor.tokenizer
    controls = tokenizer.control_ids
    weights = np.asarray(batch.loss_weights[row])
    stretch: list[int] = []
    learned = False
    for i in at:
        token = int(batch.tokens[row, i])
        if token not in controls:
            learned = bool(i and weights[i - 1] > 0)
            stretch.append(token)
            continue
        if stretch:
            yield tokenizer.decode(stretch), stretch, learned
        stretch = []
    if stretch:
        yield tokenizer.decode(stretch), stretch, learned


def _mean(values: list) -> float:
    return float(np.mean(values)) if values else 0.0


def _spread(values: list[int]) -> dict[str, float]:
    if not values:
        return {}
    least, median, most = np.percentile(values, [0, 50, 100])
    return {"least": float(least), "median": float(median), "mean": _mean(values), "most": float(most)}


def _histogram(values: list[int]) -> dict[str, int]:
    """How often each value stands there. Keys are strings, as JSON has them."""
    return {str(value): n for value, n in sorted(collections.Counter(values).items())}


def _plot_positions(figures: dict[str, Any]) -> str:
    learned = 1 - figures["padding_share"] - figures["visual_share"] - figures["prompt_share"]
    shares = {
        "visual": figures["visual_share"],
        "prompt": figures["prompt_share"],
        "learned": learned,
        "padding": figures["padding_share"],
    }
    figure, axes = new_axes(height=1.5)
    left = 0.0
    for name, share in shares.items():
        axes.barh([0], [share], left=left, color=COLOURS[name], label=f"{name} {share:.1%}")
        left += share
    axes.set_xlim(0, 1)
    axes.set_yticks([])
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return svg(figure)
