"""Instruct triplets (picture, question, answer) by templates over a set's real captions, names, keywords and headings.

Answers are what the corpus says; wrong answers in choices are what it says of other pictures of the same split. Each
pair's form is checked, since fine-tuning learns form. Wordings are held out: see `instruct_wordings`.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.prepare.corpora.instruct.dialogues import dialogues
from data_pipelines.prepare.corpora.instruct.distractors import Distractors
from data_pipelines.prepare.corpora.instruct.form import as_quoted, as_sentence, problem
from data_pipelines.prepare.corpora.instruct.wordings import LETTERS, QUOTES, RIGHT, WRONG, YES_NO, Task, wording
from data_pipelines.prepare.corpora.sets import CorpusSet, Record
from data_pipelines.prepare.splits import Split
from data_pipelines.words import words_of

_NAME_WORDS = 8
"""A caption of no more words names its picture; a longer one describes it."""

_OPTION_WORDS = 30
"""Longer captions are not put into choices."""

_MOST_PAGES = 3
"""A heading that stands on more pages says little of a picture."""

_LETTERED = frozenset({"choose_letter", "keywords"})

Pools = dict[tuple[Split, str], Distractors]


@dataclasses.dataclass(frozen=True)
class Said:
    """What a record says of its picture in one language."""

    language: str
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    headings: tuple[str, ...]
    keywords: tuple[str, ...]

    @property
    def everything(self) -> tuple[str, ...]:
        return (*self.names, *self.descriptions, *self.headings, *self.keywords)

    @property
    def options(self) -> tuple[str, ...]:
        """Captions that are short enough to stand in a choice."""
        return tuple(text for text in (*self.names, *self.descriptions) if len(words_of(text)) <= _OPTION_WORDS)


def triplets(records: Iterable[tuple[Split, Record]]) -> Iterator[tuple[Split, Record]]:
    """For each record of a caption set, one with questions and answers about its picture, in the languages it has.

    Args:
        records: (split, {'id', 'image', 'captions', 'real', 'topic'?, 'keywords'?}); a caption may have a 'heading'.

    Yields:
        (split, {'id', 'image', 'questions': [{'question', 'answer', 'language', 'task', 'held_out'}], 'real', …}): the
        same whatever the order of the records. One without a question of good form is left out. Then `dialogues`.
    """
    everything = _with_telling_headings(list(records))
    pools = _pools(everything)
    for split, record in everything:
        rng = np.random.default_rng(_seed(record["id"]))
        questions = [
            question
            for said in said_of(record)
            for question in _questions(said, split, record, pools[split, said.language], rng)
        ]
        if questions:
            kept: Record = {key: record[key] for key in ("image", "real", "topic", "family") if key in record}
            yield split, {"id": f"instruct/{record['id']}", **kept, "questions": questions}
    yield from dialogues((split, record, _first_names(record)) for split, record in everything)


def _with_telling_headings(records: list[tuple[Split, Record]]) -> list[tuple[Split, Record]]:
    """The records, with the page's title in place of a heading that many pages have ('Options')."""
    titles: dict[str, set[str]] = {}
    for _, record in records:
        for caption in record["captions"]:
            titles.setdefault(caption.get("heading", ""), set()).add(caption.get("title", ""))

    def telling(caption: dict[str, str]) -> dict[str, str]:
        heading = caption.get("heading", "")
        return caption | {"heading": caption.get("title", "")} if len(titles[heading]) > _MOST_PAGES else caption

    return [(split, record | {"captions": [telling(each) for each in record["captions"]]}) for split, record in records]


def _first_names(record: Record) -> dict[str, str]:
    return {said.language: said.names[0] for said in said_of(record) if said.names}


def _topic(record: Record) -> str:
    return record.get("topic") or record["id"].rpartition("/")[0]


def said_of(record: Record) -> list[Said]:
    """What a caption record says, by language."""
    languages = dict.fromkeys(caption["language"] for caption in record["captions"])
    return [_said(record, language) for language in languages if language in YES_NO]


def _said(record: Record, language: str) -> Said:
    captions = [caption for caption in record["captions"] if caption["language"] == language]
    is_name = [caption.get("name") or len(words_of(caption["text"])) <= _NAME_WORDS for caption in captions]
    return Said(
        language,
        names=tuple(each["text"] for each, name in zip(captions, is_name, strict=True) if name),
        descriptions=tuple(each["text"] for each, name in zip(captions, is_name, strict=True) if not name),
        headings=tuple(dict.fromkeys(each["heading"] for each in captions if each.get("heading"))),
        keywords=tuple(record.get("keywords", {}).get(language, ())),
    )


def _pools(records: Sequence[tuple[Split, Record]]) -> Pools:
    found: dict[tuple[Split, str], list[tuple[str, str]]] = {}
    for split, record in records:
        for said in said_of(record):
            pool = found.setdefault((split, said.language), [])
            pool += [(_topic(record), text) for text in said.options]
    return {key: Distractors(pairs) for key, pairs in found.items()}


def _questions(
    said: Said, split: Split, record: Record, pool: Distractors, rng: np.random.Generator
) -> Iterator[dict[str, object]]:
    draw = _Draw(said, _topic(record), pool, rng)
    for task, make in _MAKERS.items():
        template, held_out = wording(task, said.language, split, rng)
        made = make(draw)
        if made is None:
            continue
        fields, answer = made
        question = template.format(**fields)
        if not problem(question, answer, said.language, is_letter=task in _LETTERED):
            yield {
                "question": question,
                "answer": answer,
                "language": said.language,
                "task": task,
                "held_out": held_out,
            }


@dataclasses.dataclass(frozen=True)
class _Draw:
    """What the makers of questions draw from."""

    said: Said
    topic: str
    pool: Distractors
    rng: np.random.Generator

    def one(self, texts: Sequence[str]) -> str:
        return texts[int(self.rng.integers(len(texts)))]

    def wrong(self, right: str, count: int) -> list[str]:
        return self.pool.draw(self.said.everything, self.topic, count, self.rng, length=len(right))


Made = tuple[dict[str, str], str] | None
"""What goes into the wording, and the answer."""


def _name(draw: _Draw) -> Made:
    return ({}, as_sentence(draw.one(draw.said.names))) if draw.said.names else None


def _describe(draw: _Draw) -> Made:
    return ({}, as_sentence(draw.one(draw.said.descriptions))) if draw.said.descriptions else None


def _fits(draw: _Draw) -> Made:
    """Half of the captions in question are wrong."""
    options = draw.said.options
    if not options:
        return None
    right = draw.one(options)
    wrong = draw.wrong(right, 1) if draw.rng.random() < 0.5 else []
    return {"caption": as_quoted(wrong[0] if wrong else right)}, YES_NO[draw.said.language][bool(wrong)]


def _choose_letter(draw: _Draw) -> Made:
    options, place = _options(draw, 4)
    if not options:
        return None
    letters = LETTERS[draw.said.language]
    lines = "\n".join(f"{letter}. {as_sentence(text)}" for letter, text in zip(letters, options, strict=False))
    return {"options": lines}, letters[place]


def _choose_text(draw: _Draw) -> Made:
    options, place = _options(draw, 3)
    if not options:
        return None
    quoted = ", ".join(QUOTES[draw.said.language].format(as_quoted(text)) for text in options)
    return {"options": quoted}, as_sentence(options[place])


def _options(draw: _Draw, count: int) -> tuple[list[str], int]:
    """The right caption among wrong ones, at a random place; nothing if there are too few of them."""
    if not draw.said.options:
        return [], 0
    right = draw.one(draw.said.options)
    options = draw.wrong(right, count - 1)
    if len(options) < count - 1:
        return [], 0
    place = int(draw.rng.integers(count))
    options.insert(place, right)
    return options, place


def _correct(draw: _Draw) -> Made:
    """A third of the captions are right."""
    options, language = draw.said.options, draw.said.language
    if not options:
        return None
    right = draw.one(options)
    wrong = draw.wrong(right, 1) if draw.rng.random() < 2 / 3 else []
    answer = WRONG[language].format(caption=as_quoted(right)) if wrong else RIGHT[language]
    return {"caption": as_quoted(wrong[0] if wrong else right)}, answer


def _keywords(draw: _Draw) -> Made:
    return ({}, ", ".join(draw.said.keywords)) if len(draw.said.keywords) > 1 else None


def _heading(draw: _Draw) -> Made:
    return ({}, as_sentence(draw.one(draw.said.headings))) if draw.said.headings else None


_MAKERS: dict[Task, Callable[[_Draw], Made]] = {
    "name": _name,
    "describe": _describe,
    "fits": _fits,
    "choose_letter": _choose_letter,
    "choose_text": _choose_text,
    "correct": _correct,
    "keywords": _keywords,
    "heading": _heading,
}


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"instruct {name}".encode()).digest()[:8], "big")


def instruct_set(captions: CorpusSet) -> CorpusSet:
    """The set of instruct triplets over a caption set: 'captions/emoji' -> 'instruct/emoji'."""

    def build(raw: Path) -> Iterator[tuple[Split, Record]]:
        return triplets(captions.build(raw))

    name = captions.name.partition("/")[2]
    return CorpusSet(
        name=f"instruct/{name}",
        kind="instruct",
        packages=captions.packages,
        licence=captions.licence,
        build=build,
        about=f"Questions by templates over {captions.name}; wordings held out for validation and test",
    )
