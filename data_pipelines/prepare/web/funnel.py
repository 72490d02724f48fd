"""What every rule dropped: counted over the whole run, with samples to look at."""

import dataclasses
import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_pipelines.prepare.web.documents import Document, picture_count, text_of, word_count

SAMPLES = 6
"""Kept for every rule: those with the smallest hashes, so always the same ones."""
_SHOWN = 400
"""Characters of a sample's text."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A reason to drop something; `unit` is what it drops: pages, passages or pictures."""

    name: str
    unit: str
    what: str


RULES = (
    Rule("too_many_bytes_of_html", "page", "the HTML file is too large to parse"),
    Rule("unreadable_page", "page", "the page's file cannot be read"),
    Rule("undecodable", "passage", "bytes that fit no encoding"),
    Rule("links", "passage", "a list of links"),
    Rule("repeated_passage", "passage", "stood on the page before"),
    Rule("same_address", "page", "another capture of the same address"),
    Rule("site_boilerplate", "passage", "stands on many pages of its site"),
    Rule("language", "page", "in a language that is not wanted"),
    Rule("untranslated", "passage", "not in the script of the page's language"),
    Rule("too_short", "page", "too few words"),
    Rule("too_long", "page", "too many words"),
    Rule("word_length", "page", "words too short or too long in the mean"),
    Rule("symbols", "page", "too few letters among its characters"),
    Rule("placeholder", "page", "a short page that only stands in for another"),
    Rule("ellipses", "page", "passages break off in an ellipsis"),
    Rule("repetition", "page", "the same passages or word sequences again and again"),
    Rule("exact_duplicate", "page", "the same words as another page"),
    Rule("near_duplicate", "page", "nearly the same words as another page (MinHash)"),
    Rule("contaminated_text", "page", "shares a sequence of words with an evaluation set"),
    Rule("tracking_pixel", "picture", "a few pixels, to count readers"),
    Rule("bad_name", "picture", "its name says that it is decoration"),
    Rule("missing", "picture", "no input holds it, or it lies outside its folder"),
    Rule("too_many_bytes", "picture", "its file is too large"),
    Rule("unreadable", "picture", "no picture in a known format, or damaged"),
    Rule("too_small", "picture", "too few pixels on the shorter side"),
    Rule("too_large", "picture", "too many pixels"),
    Rule("aspect", "picture", "too long and narrow"),
    Rule("contaminated_picture", "picture", "nearly the same as an evaluation picture (perceptual hash)"),
    Rule("on_many_pages", "picture", "it, or one nearly the same, stands on many pages"),
    Rule("repeated_picture", "picture", "it, or one nearly the same, stood on the page before"),
    Rule("few_pictures", "page", "too few pictures are left"),
    Rule("many_pictures", "page", "too many pictures"),
    Rule("few_words_a_picture", "page", "too few words for its pictures"),
)
"""In the order in which they are applied."""

READ, WRITTEN, CUT_INPUT = "read", "written", "cut_input"

Event = tuple[str, list[int], dict[str, Any]]
"""(rule or READ, WRITTEN, CUT_INPUT; [pages, passages, pictures, words]; a sample)."""


def page_event(rule: str, document: Document, **more: Any) -> Event:
    """A whole page: read, dropped or written."""
    segments = document["segments"]
    counts = [1, 0, picture_count(segments), word_count(segments)]
    return rule, counts, {"id": document["id"], "text": _short(text_of(document)), **more}


def passage_event(rule: str, document: Document, segments: Sequence[Mapping[str, Any]]) -> Event:
    """A passage that is dropped."""
    text = " ".join(segment["text"] for segment in segments)
    return rule, [0, 1, 0, word_count(segments)], {"id": document["id"], "text": _short(text)}


def picture_event(rule: str, document: Document, segment: Mapping[str, Any], location: Any) -> Event:
    """A reference to a picture that is dropped; the location, if there is one, shows it in the report."""
    sample = {"id": document["id"], "text": segment["image"], "location": location}
    return rule, [0, 0, 1, 0], sample


class Tally:
    """Adds events up; the parts that workers have counted can be merged in any order."""

    def empty(self) -> list[Any]:
        """[counts, samples] of nothing."""
        return [[0, 0, 0, 0], []]

    def add(self, total: list[Any], event: tuple[list[int], dict[str, Any]]) -> list[Any]:
        """The total with one more event."""
        counts, sample = event
        return self.merge([total, [counts, [[_order(sample), sample]]]])

    def merge(self, totals: Iterable[list[Any]]) -> list[Any]:
        """The sum of totals."""
        counts = [0, 0, 0, 0]
        samples: list[list[Any]] = []
        for part, some in totals:
            counts = [a + b for a, b in zip(counts, part, strict=True)]
            samples = heapq.nsmallest(SAMPLES, [*samples, *some], key=lambda entry: entry[0])
        return [counts, samples]


def funnel_table(totals: Mapping[str, list[Any]]) -> dict[str, Any]:
    """The whole funnel as JSON: what was read, what each rule dropped of what was left before it, what was written.

    Raises:
        ValueError: if the numbers do not add up: a fault of the pipeline, never of the input.
    """
    left = _counts(totals, READ)
    rows = []
    for rule in RULES:
        dropped = _counts(totals, rule.name)
        before = dict(left)
        left = {name: left[name] - dropped[name] for name in left}
        rows.append(
            {
                **dataclasses.asdict(rule),
                "dropped": dropped,
                "of": before,
                "left": dict(left),
                "samples": [sample for _, sample in totals.get(rule.name, [[], []])[1]],
            }
        )
    written = _counts(totals, WRITTEN)
    lost = {name: left[name] - written[name] for name in ("pages", "pictures", "words")}
    if any(lost.values()):
        raise ValueError(f"the funnel does not add up: {lost} neither dropped nor written")
    languages = {
        name.removeprefix(f"{WRITTEN}:"): _counts(totals, name) for name in sorted(totals) if f"{WRITTEN}:" in name
    }
    return {
        "read": _counts(totals, READ),
        "rules": rows,
        "written": written,
        "languages": languages,
        "samples": [sample for name in languages for _, sample in totals[f"{WRITTEN}:{name}"][1]],
        "cut_inputs": [sample["text"] for _, sample in totals.get(CUT_INPUT, [[], []])[1]],
    }


def _counts(totals: Mapping[str, list[Any]], name: str) -> dict[str, int]:
    counts = totals.get(name, [[0, 0, 0, 0]])[0]
    return dict(zip(("pages", "passages", "pictures", "words"), counts, strict=True))


def _order(sample: Mapping[str, Any]) -> str:
    return hashlib.sha256(f"{sample['id']}\0{sample['text']}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
