"""The Beam pipeline: which step sees what, and what is brought together by which key.

    tasks -> read -> by address -> passages and pages judged -> same text -> near text -> evaluation texts -> pictures
                                                                                                                 |
    result.json <- manifest entries, totals <- shards <- documents chosen <- pictures judged, back to their pages <-

Between steps go plain dictionaries, lists and strings; pictures as addresses. Nothing is gathered in one place but
counts, samples and the shards' entries, so memory stays bounded by a page, a key's few best, or a shard's texts.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
from etils import epath

from data_pipelines.prepare.web import duplicates, steps
from data_pipelines.prepare.web.config import WebConfig
from data_pipelines.prepare.web.funnel import Event, Tally
from data_pipelines.prepare.web.inputs import Task
from data_pipelines.prepare.web.output import document_bytes, place_of, shard_count, write_documents

Parts = tuple[Any, Any]


class Places:
    """Directories and files of one run, as strings, which every worker gets."""

    def __init__(self, work: epath.Path, folders: Mapping[str, str]) -> None:
        self.pages = str(work / "pages")
        self.shards = str(work / "shards")
        self.evaluation = str(work / "evaluation.npz")
        self.result = str(work / "result.json")
        self.folders = dict(folders)


def build(pipeline: beam.Pipeline, tasks: list[Task], config: WebConfig, places: Places) -> None:
    """Adds all steps; the run's outcome is in `places.result` when it is done, and nowhere before."""
    events: list[Any] = []
    pages, locations = _read(pipeline, tasks, config, places, events)
    pages = _judge(pages, config, events)
    pages = _deduplicate(pages, config, events)
    pages = _decontaminate(pages, config, places, events)
    pages = _with_pictures(pages, locations, config, places, events)
    entries = _write(pages, config, places)
    totals = (
        events
        | "all events" >> beam.Flatten()
        | "by rule" >> beam.Map(_keyed_event)
        | "tally" >> beam.CombinePerKey(_TallyFn())
    )
    _ = (
        pipeline
        | "once" >> beam.Create([None])
        | "result"
        >> beam.Map(
            _write_result,
            entries=beam.pvalue.AsList(entries),
            totals=beam.pvalue.AsDict(totals),
            path=places.result,
        )
    )


def _split(outputs: Any, name: str, events: list[Any]) -> Any:
    """A step gives ("page", document) or ("event", event): the pages, with the events put to the others."""
    events.append(outputs | f"{name}: events" >> beam.FlatMap(_values_of, kind="event"))
    return outputs | f"{name}: pages" >> beam.FlatMap(_values_of, kind="page")


def _read(pipeline: Any, tasks: list[Task], config: WebConfig, places: Places, events: list[Any]) -> Parts:
    items = (
        pipeline
        | "tasks" >> beam.Create(tasks)
        | "spread" >> beam.Reshuffle()
        | "read" >> beam.ParDo(steps.Read(config, places.pages))
    )
    locations = items | "locations" >> beam.FlatMap(_values_of, kind="picture") | "by url" >> beam.Map(tuple)
    return _split(items, "read", events), locations


def _judge(pages: Any, config: WebConfig, events: list[Any]) -> Any:
    boilerplate = (
        pages
        | "passage keys" >> beam.FlatMap(steps.passage_keys, least_words=config.passages.least_boilerplate_words)
        | "by passage" >> beam.GroupByKey()
        | "on many pages" >> beam.FlatMap(steps.on_many_pages, most=config.passages.most_pages_of_site)
    )
    joined = (
        {"pages": pages | "pages by id" >> beam.Map(_with_id), "passages": boilerplate}
        | "passages to pages" >> beam.CoGroupByKey()
        | "judge" >> beam.ParDo(steps.Judge(config))
    )
    return _split(joined, "judge", events)


def _deduplicate(pages: Any, config: WebConfig, events: list[Any]) -> Any:
    first = (
        pages
        | "text keys" >> beam.Map(_with_text_key)
        | "by text" >> beam.GroupByKey()
        | "best of the same" >> beam.FlatMap(steps.best_of_same)
    )
    pages = _split(first, "same", events)
    beaten = (
        pages
        | "bands" >> beam.FlatMap(steps.text_bands, rules=config.duplicates)
        | "by band" >> beam.GroupByKey()
        | "beaten" >> beam.FlatMap(steps.beaten_texts, threshold=config.duplicates.similarity)
    )
    second = (
        {"pages": pages | "unique by id" >> beam.Map(_with_id), "better": beaten}
        | "better to pages" >> beam.CoGroupByKey()
        | "drop near" >> beam.FlatMap(steps.drop_near)
    )
    return _split(second, "near", events)


def _decontaminate(pages: Any, config: WebConfig, places: Places, events: list[Any]) -> Any:
    checked = pages | "evaluation texts" >> beam.ParDo(steps.EvaluationTexts(config, places.evaluation))
    return _split(checked, "evaluation", events)


def _with_pictures(pages: Any, locations: Any, config: WebConfig, places: Places, events: list[Any]) -> Any:
    pages = _split(
        pages | "references" >> beam.FlatMap(steps.drop_references, rules=config.pictures), "references", events
    )
    measured = (
        {"pages": pages | "picture uses" >> beam.FlatMap(steps.picture_uses), "locations": locations}
        | "by address" >> beam.CoGroupByKey()
        | "measure" >> beam.ParDo(steps.Measure(config, places.folders, places.evaluation))
    )
    facts = measured | "facts" >> beam.FlatMap(_values_of, kind="facts")
    uses = measured | "uses" >> beam.FlatMap(_values_of, kind="use") | "uses by url" >> beam.Map(tuple)
    alike = (
        facts
        | "picture bands" >> beam.FlatMap(steps.picture_bands)
        | "by picture band" >> beam.GroupByKey()
        | "alike" >> beam.FlatMap(steps.alike, rules=config.pictures)
    )
    judged = (
        {"facts": facts | "facts by url" >> beam.Map(_with_url), "alike": alike, "pages": uses}
        | "pictures judged by address" >> beam.CoGroupByKey()
        | "pictures to pages" >> beam.FlatMap(steps.judge_picture, rules=config.pictures)
    )
    chosen = (
        {"pages": pages | "with pictures by id" >> beam.Map(_with_id), "facts": judged}
        | "facts to pages" >> beam.CoGroupByKey()
        | "choose" >> beam.FlatMap(steps.choose_pictures, rules=config.pictures)
    )
    return _split(chosen, "choose", events)


def _write(pages: Any, config: WebConfig, places: Places) -> Any:
    sizes = pages | "sizes" >> beam.Map(_size) | "all sizes" >> beam.CombineGlobally(_sum_sizes)
    shards = sizes | "shards" >> beam.Map(shard_count, wanted=config.shards)
    return (
        pages
        | "place" >> beam.Map(_placed, shards=beam.pvalue.AsSingleton(shards))
        | "by shard" >> beam.GroupByKey()
        | "write" >> beam.Map(_write_shard, directory=places.shards)
    )


class _TallyFn(beam.CombineFn):
    """`funnel.Tally`, as Beam calls it."""

    def create_accumulator(self) -> Any:
        return Tally().empty()

    def add_input(self, total: Any, event: Any) -> Any:
        return Tally().add(total, event)

    def merge_accumulators(self, totals: Any) -> Any:
        return Tally().merge(totals)

    def extract_output(self, total: Any) -> Any:
        return total


def _values_of(item: tuple[str, Any], kind: str) -> Iterator[Any]:
    if item[0] == kind:
        yield item[1]


def _keyed_event(event: Event) -> tuple[str, Any]:
    return event[0], (event[1], event[2])


def _with_id(document: Mapping[str, Any]) -> tuple[str, Any]:
    return document["id"], document


def _with_url(facts: Mapping[str, Any]) -> tuple[str, Any]:
    return facts["url"], facts


def _with_text_key(document: dict[str, Any]) -> tuple[str, Any]:
    return duplicates.text_key(document), document


def _size(document: dict[str, Any]) -> tuple[int, int]:
    return 1, document_bytes(document)


def _sum_sizes(sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    documents, total = 0, 0
    for count, size in sizes:
        documents, total = documents + count, total + size
    return documents, total


def _placed(document: dict[str, Any], shards: int) -> tuple[tuple[int, int], dict[str, Any]]:
    return (place_of(document, shards), shards), document


def _write_shard(item: tuple[tuple[int, int], Iterable[dict[str, Any]]], directory: str) -> dict[str, Any]:
    (shard, shards), documents = item
    return write_documents(shard, shards, documents, directory)


def _write_result(_: None, entries: list[dict[str, Any]], totals: dict[str, Any], path: str) -> None:
    files = sorted(entries, key=lambda entry: entry["name"])
    text = json.dumps({"files": files, "totals": totals}, ensure_ascii=True)
    partial = epath.Path(f"{path}.partial")
    partial.write_text(text)
    partial.replace(path)
