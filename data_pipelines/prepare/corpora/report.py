"""What the prepared sets hold: figures, a table for the terminal, and one page with samples."""

import base64
import collections
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.table import Table

from data_pipelines.examples import Image
from data_pipelines.images import BadImage, decode
from data_pipelines.look.pages import page_template
from data_pipelines.look.record_parts import Part, parts_of
from data_pipelines.prepare.corpora.build import Built
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources.array_records import ArrayRecords, ArrayRecordsSource
from data_pipelines.words import words_of

SAMPLES = 6
"""Records of each set that the page shows."""

_PARTS, _CHARACTERS, _SIDE = 6, 300, 220

Figures = Mapping[str, Any]


def figures_of(built: Built, directory: Path) -> Figures:
    """Counts a set and takes samples, from what was written.

    Args:
        built: the set.
        directory: where it lies.

    Returns:
        name, kind, licence, about; splits {split: {'records', 'pairs', 'bytes'}}; texts, pictures, words {language: n},
        pairs (a set of keys of distinct real pairs), bad (records set aside), samples (from the validation split, or
        train where that is empty).
    """
    words: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    splits: dict[str, Any] = {}
    pairs: set[str] = set()
    samples: list[Any] = []
    for split, manifest in built.manifests.items():
        splits[split] = {
            "records": manifest.records,
            "pairs": manifest.counts.get("distinct_real_pairs", 0),
            "bytes": manifest.bytes,
        }
        counts["bad"] += manifest.counts.get("bad_records", 0)
        if not manifest.records:
            continue
        source = ArrayRecordsSource(ArrayRecords(str(directory / split)))
        taken = set(range(0, len(source), max(1, len(source) // SAMPLES))) if split == "train" else ()
        for index in range(len(source)):
            try:
                record = source[index]
            except BadRecord:
                counts["bad"] += 1
                continue
            pairs.update(record.get("real", ()))
            parts = parts_of(record)
            for part in parts:
                counts["pictures" if part.image else "texts"] += 1
                if part.image is None:
                    words[part.language_or_script] += len(words_of(part.text))
            if index in taken and len(samples) < SAMPLES:
                samples.append((record["id"], _sample(parts)))
    corpus = built.corpus
    return {
        "name": corpus.name,
        "kind": corpus.kind,
        "licence": corpus.licence,
        "about": corpus.about,
        "splits": splits,
        "words": dict(words.most_common()),
        "pairs": pairs,
        "texts": counts["texts"],
        "pictures": counts["pictures"],
        "bad": counts["bad"],
        "samples": samples,
    }


def report_table(figures: Sequence[Figures]) -> Table:
    """The figures for the terminal, a row a set."""
    table = Table(box=None, pad_edge=False)
    table.add_column("set", no_wrap=True)
    for name in ("train", "validation", "test", "real pairs", "pictures", "texts", "words en", "words ru", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in figures:
        table.add_row(each["name"], *_cells(each))
    table.add_row("all", *_cells(total(figures)), style="bold")
    return table


def total(figures: Iterable[Figures]) -> Figures:
    """All sets together; a real pair that several sets are made from counts once."""
    words: collections.Counter[str] = collections.Counter()
    splits: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    pairs: set[str] = set()
    counts: collections.Counter[str] = collections.Counter()
    for each in figures:
        words.update(each["words"])
        pairs |= each["pairs"]
        counts.update({key: each[key] for key in ("texts", "pictures", "bad")})
        for split, numbers in each["splits"].items():
            splits[split].update(numbers)
    return {"splits": dict(splits), "words": dict(words), "pairs": pairs, **counts}


def _cells(each: Figures) -> list[str]:
    def of(split: str) -> int:
        return each["splits"].get(split, {}).get("records", 0)

    megabytes = sum(numbers["bytes"] for numbers in each["splits"].values()) / 1e6
    cells = [of("train"), of("validation"), of("test"), len(each["pairs"]), each["pictures"], each["texts"]]
    cells += [each["words"].get("en", 0), each["words"].get("ru", 0)]
    return [f"{cell:,}" if cell else "" for cell in cells] + [f"{megabytes:.1f}"]


def report_page(figures: Sequence[Figures]) -> str:
    """One self-contained HTML page: the table, and samples of every set with their pictures."""
    columns = (
        "train",
        "validation",
        "test",
        "real pairs",
        "pictures",
        "texts",
        "words, English",
        "words, Russian",
        "MB",
    )
    rows = [(each["name"], _cells(each)) for each in figures]
    return page_template("prepare/corpora/corpora_page.html.j2").render(
        columns=columns, rows=rows, total=_cells(total(figures)), sets=figures
    )


def _sample(parts: Sequence[Part]) -> list[dict[str, str]]:
    """The first parts of a record as the page shows them."""
    shown = []
    for part in parts[:_PARTS]:
        if part.image is not None:
            shown.append({"picture": _thumbnail(part.image)})
        else:
            text = part.text if len(part.text) <= _CHARACTERS else part.text[:_CHARACTERS] + "…"
            shown.append({"role": part.role, "language": part.language_or_script, "text": text})
    if len(parts) > _PARTS:
        shown.append({"more": f"and {len(parts) - _PARTS} more"})
    return shown


def _thumbnail(image: Image) -> str:
    """A small JPEG as a data URI; '' if the picture cannot be read."""
    try:
        pixels = np.asarray(decode(image))
    except BadImage:
        return ""
    height, width = pixels.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
