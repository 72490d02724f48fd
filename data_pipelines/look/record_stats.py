"""What a source's records hold, before any kind or tokenizer: figures (`record_stats`) and a page (`records_page`)."""

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from data_pipelines.examples import Image
from data_pipelines.image_files import size_in_header
from data_pipelines.images import BadImage, file_bytes
from data_pipelines.look.pages import page_template
from data_pipelines.look.plots import plot_bars, plot_histogram, plot_sizes, plot_spreads
from data_pipelines.look.record_parts import Part, Unreadable, kinds_of, parts_of
from data_pipelines.tokenizers import Tokenizer
from data_pipelines.tokenizers.fertility import Fertility, fertility
from data_pipelines.words import SCRIPTS, script_of, words_of

_KEPT = 30
_KEPT_SIZES = 4000
_MOST_TEXTS = 200_000
_FORMATS = {b"\x89PNG": "PNG", b"\xff\xd8": "JPEG", b"GIF8": "GIF", b"RIFF": "WebP", b"BM": "BMP"}
_SHORT_WORD = 3


@dataclasses.dataclass
class _Counts:
    """What is counted while the records go by."""

    records: int = 0
    bad: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    kinds: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    roles: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    languages: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    scripts: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    lengths: dict[str, collections.Counter[int]] = dataclasses.field(default_factory=dict)
    words: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    texts: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    distinct: set[bytes] = dataclasses.field(default_factory=set)
    pictures: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    distinct_pictures: set[bytes] = dataclasses.field(default_factory=set)
    per_record: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    pairs: set[bytes] = dataclasses.field(default_factory=set)
    fertility: dict[str, Fertility] = dataclasses.field(default_factory=dict)


def record_stats(
    name: str,
    size: int,
    records: Iterable[tuple[int, Mapping[str, Any] | Unreadable]],
    tokenizer: Tokenizer | None = None,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Counts what records hold.

    Args:
        name: the source's.
        size: how many records it has in all.
        records: (index, record) of those to count.
        tokenizer: to measure fertility with, if any.
        progress: called after every record.

    Returns:
        JSON-able figures. Languages are those that the records name, and scripts where they name none. 'pairs' are the
        distinct (picture, text) pairs that the records say they come from or, where they say nothing, distinct
        pictures with a caption, question or answer of their record.
    """
    counts = _Counts()
    for _, record in records:
        counts.records += 1
        if isinstance(record, Unreadable):
            counts.bad[" ".join(record.reason.split())[:160]] += 1
        else:
            _count_record(counts, record, tokenizer)
        progress()
    return _figures(counts, name, size)


def _count_record(counts: _Counts, record: Mapping[str, Any], tokenizer: Tokenizer | None) -> None:
    counts.kinds.update(kinds_of(record) or ["other"])
    pictures, texts = [], []
    for part in parts_of(record):
        if part.image is not None:
            pictures.append(_count_picture(counts, part.image))
        else:
            texts.append(_count_text(counts, part, tokenizer))
    counts.per_record[len(pictures)] += 1
    if isinstance(record.get("real"), (list, tuple)) and record["real"]:
        counts.pairs.update(_digest(str(key)) for key in record["real"])
    elif kinds_of(record) != ["interleaved"]:
        counts.pairs.update(_digest(picture + text) for picture in pictures for text in texts if picture and text)


def _count_text(counts: _Counts, part: Part, tokenizer: Tokenizer | None) -> bytes:
    text, language = part.text, part.language_or_script
    words = words_of(text)
    for table, key in ((counts.roles, part.role), (counts.languages, language)):
        table.setdefault(key, collections.Counter()).update(texts=1, words=len(words), characters=len(text))
    counts.scripts.setdefault(language, collections.Counter())[script_of(text)] += 1
    counts.lengths.setdefault(language, collections.Counter())[len(words)] += 1
    longer = (word.lower() for word in words if len(word) > _SHORT_WORD and not word.isdigit())
    counts.words.setdefault(language, collections.Counter()).update(longer)
    _count_repeated(counts.texts.setdefault(part.role, collections.Counter()), text[:200])
    digest = _digest(text)
    counts.distinct.add(digest)
    if tokenizer is not None:
        measured = fertility(tokenizer, [text])
        counts.fertility[language] = counts.fertility.get(language, Fertility()) + measured
    return b"" if part.role in ("text", "system") else digest


def _count_repeated(seen: collections.Counter[str], text: str) -> None:
    """Counts a text; of very many, those that came once are forgotten, so that memory stays bounded."""
    seen[text] += 1
    if len(seen) > _MOST_TEXTS:
        repeated = {text: n for text, n in seen.items() if n > 1}
        seen.clear()
        seen.update(dict(collections.Counter(repeated).most_common(_MOST_TEXTS // 2)))


def _count_picture(counts: _Counts, image: Image) -> bytes:
    counts.pictures["pictures"] += 1
    try:
        data = file_bytes(image)
    except BadImage:
        counts.pictures["unreadable"] += 1
        return b""
    counts.pictures["bytes"] += len(data)
    counts.pictures[next((kind for start, kind in _FORMATS.items() if data.startswith(start)), "other")] += 1
    size = size_in_header(data)
    if size is None:
        counts.pictures["unreadable"] += 1
    else:
        counts.sizes.append(size)
    digest = _digest(data)
    counts.distinct_pictures.add(digest)
    return digest


def _figures(counts: _Counts, name: str, size: int) -> dict[str, Any]:
    formats = {kind: counts.pictures[kind] for kind in (*_FORMATS.values(), "other") if counts.pictures[kind]}
    sizes = counts.sizes[:: max(1, -(-len(counts.sizes) // _KEPT_SIZES))]
    return {
        "name": name,
        "records": size,
        "counted": counts.records,
        "bad_records": counts.bad.total(),
        "bad": dict(counts.bad.most_common(_KEPT)),
        "kinds": dict(counts.kinds.most_common()),
        "texts": sum(each["texts"] for each in counts.roles.values()),
        "distinct_texts": len(counts.distinct),
        "words": sum(each["words"] for each in counts.roles.values()),
        "pairs": len(counts.pairs),
        "roles": {role: dict(each) for role, each in counts.roles.items()},
        "languages": {language: dict(each) for language, each in sorted(counts.languages.items())},
        "scripts": {language: dict(each.most_common()) for language, each in sorted(counts.scripts.items())},
        "words_per_text": {
            language: {str(n): times for n, times in sorted(each.items())}
            for language, each in sorted(counts.lengths.items())
        },
        "frequent_words": {language: dict(each.most_common(_KEPT)) for language, each in sorted(counts.words.items())},
        "repeated_texts": {
            role: {text: n for text, n in each.most_common(_KEPT) if n > 1} for role, each in counts.texts.items()
        },
        "pictures": {
            "pictures": counts.pictures["pictures"],
            "distinct": len(counts.distinct_pictures),
            "bytes": counts.pictures["bytes"],
            "unreadable": counts.pictures["unreadable"],
            "formats": formats,
            "per_record": {str(n): times for n, times in sorted(counts.per_record.items())},
            "megapixels": _percentiles([w * h / 1e6 for w, h in counts.sizes]),
            "aspect": _percentiles([w / h for w, h in counts.sizes if h]),
            "sizes": [list(each) for each in sizes],
        },
        "fertility": {language: each.plain() for language, each in sorted(counts.fertility.items())},
    }


def records_page(figures: Mapping[str, Any]) -> str:
    """The figures of `record_stats` as one HTML page with plots, without outside requests."""
    plots = []
    lengths = {SCRIPTS.get(name, name): spread for name, spread in figures["words_per_text"].items()}
    if lengths:
        plots.append(("Words a text", plot_spreads(lengths, "words", "texts")))
    pictures = figures["pictures"]
    sizes = [size for size in pictures["sizes"] if min(size) > 0]
    if sizes:
        plots.append(("Sizes of the pictures", plot_sizes(sizes)))
    if len(pictures["per_record"]) > 1:
        plots.append(("Pictures a record", plot_histogram(pictures["per_record"], "pictures", "records", bins=20)))
    for language, words in figures["frequent_words"].items():
        if words:
            plots.append(
                (f"Frequent words of more than 3 letters: {SCRIPTS.get(language, language)}", plot_bars(words))
            )
    return page_template("records_page.html.j2").render(figures=figures, plots=plots, scripts=SCRIPTS)


def _percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    points = np.percentile(values, [0, 10, 50, 90, 100])
    return dict(zip(("least", "p10", "median", "p90", "most"), map(float, points), strict=True))


def _digest(data: str | bytes) -> bytes:
    plain = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return hashlib.blake2b(plain, digest_size=10).digest()
