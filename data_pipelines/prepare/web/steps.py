"""What the pipeline does to one element, or to what stands under one key. See `pipeline` for the order."""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
from etils import epath

from data_pipelines.prepare.web import duplicates, pictures, quality
from data_pipelines.prepare.web.config import DuplicateRules, PictureRules, WebConfig
from data_pipelines.prepare.web.contamination import EvaluationIndex
from data_pipelines.prepare.web.documents import (
    Document,
    block_text,
    blocks_of,
    picture_count,
    without_blocks,
    word_count,
)
from data_pipelines.prepare.web.funnel import WRITTEN, page_event, passage_event, picture_event
from data_pipelines.prepare.web.inputs import picture_location
from data_pipelines.prepare.web.reading import Item, read_task

Grouped = Mapping[str, Iterable[Any]]


class Read(beam.DoFn):
    """`reading.read_task`."""

    def __init__(self, config: WebConfig, kept: str) -> None:
        self._config = config
        self._kept = kept

    def process(self, task: dict[str, Any]) -> Iterator[Item]:
        yield from read_task(task, self._config, self._kept)


def passage_keys(document: Document, least_words: int) -> Iterator[tuple[str, str]]:
    """(site and text, page) of every passage that is no heading and has words enough."""
    for key in sorted(set(_keys_by_block(document, least_words).values())):
        yield key, document["id"]


def on_many_pages(item: tuple[str, Iterable[str]], most: int) -> Iterator[tuple[str, str]]:
    """(page, passage key) of a passage that stands on more than so many pages."""
    key, names = item
    if _more_than(names, most):
        for name in names:
            yield name, key


class Judge(beam.DoFn):
    """One page with the keys of its boilerplate: takes that away, finds the language, applies the rules of pages."""

    def __init__(self, config: WebConfig) -> None:
        self._config = config

    def process(self, item: tuple[str, Grouped]) -> Iterator[Item]:
        _, grouped = item
        captures = sorted(grouped["pages"], key=lambda document: document["origin"])
        for document in captures[1:]:
            yield "event", page_event("same_address", document)
        document = captures[0]
        boilerplate = set(grouped["passages"])
        blocks = blocks_of(document)
        keys = _keys_by_block(document, self._config.passages.least_boilerplate_words)
        bad = {number for number, key in keys.items() if key in boilerplate}
        for number in sorted(bad):
            yield "event", passage_event("site_boilerplate", document, blocks[number])
        document = without_blocks(document, bad)
        if word_count(document["segments"]) < self._config.pages.least_words:
            yield "event", page_event("too_short", document)
            return
        document["language"] = language = quality.language_of(document, self._config)
        if language not in self._config.languages:
            yield "event", page_event("language", document, detail=language)
            return
        foreign = set(quality.foreign_passages(document, self._config.passages))
        for number in sorted(foreign):
            yield "event", passage_event("untranslated", document, blocks[number])
        document = without_blocks(document, foreign)
        if rule := quality.bad_page(document, self._config):
            yield "event", page_event(rule, document)
        else:
            yield "page", document


def best_of_same(item: tuple[str, Iterable[Document]]) -> Iterator[Item]:
    """Of pages with the same words, the best stays."""
    _, documents = item
    best = min(documents, key=duplicates.rank_of)
    yield "page", best
    for document in documents:
        if document["id"] != best["id"]:
            yield "event", page_event("exact_duplicate", document, detail=best["id"])


def text_bands(document: Document, rules: DuplicateRules) -> Iterator[tuple[str, list[Any]]]:
    """(band key, [rank, id, signature]) of a page."""
    text = "\n".join(block_text(segments) for segments in blocks_of(document).values())
    sketch = duplicates.signature(text, rules)
    entry = [duplicates.rank_of(document), document["id"], sketch.tobytes()]
    for key in duplicates.band_keys(sketch, rules):
        yield key, entry


def beaten_texts(item: tuple[str, Iterable[list[Any]]], threshold: float) -> Iterator[tuple[str, str]]:
    """(page, better page) for those of a band that have a better one near them."""
    _, bucket = item
    yield from duplicates.beaten_in(bucket, lambda a, b: duplicates.similarity(a, b) >= threshold)


def drop_near(item: tuple[str, Grouped]) -> Iterator[Item]:
    """A page goes on unless there is a better one near it."""
    _, grouped = item
    better = min(grouped["better"], default="")
    for document in grouped["pages"]:
        if better:
            yield "event", page_event("near_duplicate", document, detail=better)
        else:
            yield "page", document


class EvaluationTexts(beam.DoFn):
    """Drops pages that share a sequence of words with an evaluation set."""

    def __init__(self, config: WebConfig, path: str) -> None:
        self._rules = config.contamination
        self._path = path

    def setup(self) -> None:
        self._index = EvaluationIndex.load(epath.Path(self._path))

    def process(self, document: Document) -> Iterator[Item]:
        if passage := self._index.touches_text(document, self._rules):
            yield "event", page_event("contaminated_text", document, detail=passage[:400])
        else:
            yield "page", document


def drop_references(document: Document, rules: PictureRules) -> Iterator[Item]:
    """Drops the pictures that need no look at their files."""
    kept = []
    for segment in document["segments"]:
        rule = pictures.bad_reference(segment, rules) if "image" in segment else ""
        if rule:
            yield "event", picture_event(rule, document, segment, None)
        else:
            kept.append(segment)
    yield "page", {**document, "segments": kept}


def picture_uses(document: Document) -> Iterator[tuple[str, str]]:
    """(address, page) of every picture of a page, once."""
    for url in sorted({segment["image"] for segment in document["segments"] if "image" in segment}):
        yield url, document["id"]


class Measure(beam.DoFn):
    """Reads a picture that some page shows: gives its facts, and (address, page) of every page."""

    def __init__(self, config: WebConfig, folders: Mapping[str, str], evaluation: str) -> None:
        self._config = config
        self._folders = dict(folders)
        self._path = evaluation

    def setup(self) -> None:
        self._index = EvaluationIndex.load(epath.Path(self._path))

    def process(self, item: tuple[str, Grouped]) -> Iterator[Item]:
        url, grouped = item
        uses = 0
        for name in grouped["pages"]:
            uses += 1
            yield "use", [url, name]
        if not uses:
            return
        location = min(grouped["locations"], default=None) or picture_location(url, self._folders)
        facts = pictures.measure(url, location, self._config.pictures)
        if not facts["drop"] and self._index.touches_picture(facts["hash"], self._config.contamination):
            facts["drop"] = "contaminated_picture"
        yield "facts", {**facts, "pages": uses}


def picture_bands(facts: pictures.Facts) -> Iterator[tuple[str, list[Any]]]:
    """(band key, [address, hash, colours, pages]) of a picture that can be shown."""
    if not facts["drop"]:
        for key in duplicates.picture_keys(facts["hash"]):
            yield key, [facts["url"], facts["hash"], facts["colours"], facts["pages"]]


def alike(item: tuple[str, Iterable[list[Any]]], rules: PictureRules) -> Iterator[tuple[str, tuple[str, int]]]:
    """(address, (address of another picture that is nearly the same, its pages))."""
    _, bucket = item
    some = heapq.nsmallest(_COMPARED, bucket)
    hashes = np.array([value for _, value, _, _ in some], np.uint64)
    for url, value, colours, _ in bucket:
        for index in np.flatnonzero(np.bitwise_count(hashes ^ np.uint64(value)) <= rules.same_distance):
            other, _, their_colours, pages = some[index]
            if other != url and duplicates.colour_difference(colours, their_colours) <= rules.same_colours:
                yield url, (other, pages)


def judge_picture(item: tuple[str, Grouped], rules: PictureRules) -> Iterator[tuple[str, pictures.Facts]]:
    """(page, facts) for every page that shows the picture; decoration that stands on many pages is dropped."""
    _, grouped = item
    facts = next(iter(grouped["facts"]))
    others = dict(grouped["alike"])
    if not facts["drop"] and facts["pages"] + sum(others.values()) > rules.most_pages:
        facts = {**facts, "drop": "on_many_pages"}
    for name in grouped["pages"]:
        yield name, facts


def choose_pictures(item: tuple[str, Grouped], rules: PictureRules) -> Iterator[Item]:
    """A page with the facts of all its pictures: which of them stay, and whether it does."""
    _, grouped = item
    facts = {entry["url"]: entry for entry in grouped["facts"]}
    for document in grouped["pages"]:
        segments = document["segments"]
        dropped = dict(pictures.choose(segments, facts, rules))
        for index, rule in dropped.items():
            location = None if rule in ("missing", "unreadable") else facts[segments[index]["image"]]["location"]
            yield "event", picture_event(rule, document, segments[index], location)
        kept = [segment for index, segment in enumerate(segments) if index not in dropped]
        document = {**document, "segments": kept}
        if rule := _page_rule(kept, rules):
            yield "event", page_event(rule, document)
            continue
        used = {segment["image"] for segment in kept if "image" in segment}
        document["pictures"] = {url: [facts[url]["location"], facts[url]["bytes"]] for url in sorted(used)}
        shown = [facts[url]["location"] for url in sorted(used)[:4]]
        yield "event", page_event(WRITTEN, document)
        yield "event", page_event(f"{WRITTEN}:{document['language']}", document, pictures=shown)
        yield "page", document


_COMPARED = 1000
"""So many pictures of a band are compared with all of it: more than any sensible limit on the pages of a picture."""


def _page_rule(segments: list[dict[str, Any]], rules: PictureRules) -> str:
    count = picture_count(segments)
    if count < rules.least_pictures:
        return "few_pictures"
    if count > rules.most_pictures:
        return "many_pictures"
    return "few_words_a_picture" if word_count(segments) < rules.least_words_a_picture * count else ""


def _keys_by_block(document: Document, least_words: int) -> dict[int, str]:
    keys = {}
    for number, segments in blocks_of(document).items():
        if not segments[0]["heading"] and word_count(segments) >= least_words:
            keys[number] = duplicates.digest(f"{document['site']}\0{block_text(segments)}")
    return keys


def _more_than(names: Iterable[str], most: int) -> bool:
    distinct: set[str] = set()
    for name in names:
        distinct.add(name)
        if len(distinct) > most:
            return True
    return False
