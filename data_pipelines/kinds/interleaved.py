"""The interleaved kind: a document, its text and pictures in reading order, read and learned from top to bottom."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from data_pipelines.examples import Example, Image, Segment, Text, WhenLong
from data_pipelines.kinds.parts import record_id
from data_pipelines.quarantine import BadRecord

Placement = Literal["as_is", "before", "after", "random"]


@dataclasses.dataclass(frozen=True)
class Interleaved:
    r"""trunk = the document's texts, with loss, and its pictures.

        {'id': 'page', 'segments': [
            {'text': 'Birds'}, {'text': 'A duck swims.'}, {'image': Image(path='duck.png')}, {'text': 'It dives.'}]}
        ->
        Example(
            trunk=(
                Text('Birds\n\nA duck swims.', loss=True), Image(path='duck.png'), Text('It dives.', loss=True)),
            id='page', when_long='split')

    placement: 'as_is' leaves pictures where they stood in the page. 'before' and 'after' put each directly before or
        after the text that it belongs to: the one its 'text_index' names, else the one that follows it (the last one,
        where none follows). 'random' does one of the two to a whole document, drawn anew every time.
    separator: stands between texts that have no picture between them.
    when_long: what becomes of a document that no row can hold.
    """

    kind: ClassVar[str] = "interleaved"

    placement: Placement = "as_is"
    separator: str = "\n\n"
    when_long: WhenLong = "split"

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator, source: str = "") -> Example:
        """Makes an example of {'id', 'segments': [{'text'} | {'image', 'text_index'?}]}; blank texts are left out.

        Raises:
            BadRecord: if there is no text, or a segment is neither text nor picture or belongs to a text that is none.
        """
        segments = record.get("segments") or ()
        where = record_id(record)
        for segment in segments:
            _check(segment, segments, where)
        if not any(_has_text(segment) for segment in segments):
            raise BadRecord("a document without text", where)
        placement = self.placement
        if placement == "random":
            placement = "before" if rng.integers(2) else "after"
        order = range(len(segments)) if placement == "as_is" else _placed(segments, placement == "before")
        trunk = _joined([segments[index] for index in order], self.separator)
        return Example(trunk=trunk, source=source, id=where, when_long=self.when_long)


def _has_text(segment: Mapping[str, Any]) -> bool:
    return bool("text" in segment and segment["text"].strip())


def _check(segment: Any, segments: Sequence[Any], where: str) -> None:
    if not isinstance(segment, Mapping) or not (
        isinstance(segment.get("text"), str) or isinstance(segment.get("image"), Image)
    ):
        raise BadRecord("a segment is neither {'text'} nor {'image'}", where)
    index = segment.get("text_index")
    if index is None:
        return
    if not isinstance(index, int) or not 0 <= index < sum("text" in other for other in segments):
        raise BadRecord(f"a picture belongs to text {index!r}, which the document does not have", where)


def _placed(segments: Sequence[Mapping[str, Any]], before: bool) -> list[int]:
    """The order of segments that puts each picture next to its text."""
    texts = [index for index, segment in enumerate(segments) if "text" in segment]
    readable = [index for index in texts if _has_text(segments[index])]
    beside: dict[int, list[int]] = {index: [] for index in texts}
    for index, segment in enumerate(segments):
        if "text" in segment:
            continue
        if segment.get("text_index") is not None:
            beside[texts[segment["text_index"]]].append(index)
        else:
            beside[next((text for text in readable if text > index), readable[-1])].append(index)
    order: list[int] = []
    for text in texts:
        order += [*beside[text], text] if before else [text, *beside[text]]
    return order


def _joined(segments: Sequence[Mapping[str, Any]], separator: str) -> tuple[Segment, ...]:
    trunk: list[Segment] = []
    texts: list[str] = []
    for segment in segments:
        if "text" not in segment:
            trunk += [Text(separator.join(texts), loss=True)] if texts else []
            trunk.append(segment["image"])
            texts = []
        elif segment["text"].strip():
            texts.append(segment["text"])
    return (*trunk, Text(separator.join(texts), loss=True)) if texts else tuple(trunk)
