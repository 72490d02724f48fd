"""Dialogues over caption sets: a picture named in one language and then in the other, and two pictures told apart."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.prepare.corpora.instruct.distractors import may_mean_the_same, stems
from data_pipelines.prepare.corpora.instruct.form import as_quoted, as_sentence, problem
from data_pipelines.prepare.corpora.instruct.wordings import wording
from data_pipelines.prepare.corpora.sets import Record
from data_pipelines.prepare.splits import Split

_ONE_IN = 4
"""A dialogue of either sort is made of one record in so many: its pictures are stored once more."""

_IN_THE_OTHER: Mapping[str, tuple[str, ...]] = {
    "en": ("And in English?", "Say it in English, please.", "What is that in English?"),
    "ru": ("А по-русски?", "Скажи это по-русски.", "Как это будет по-русски?"),
}

_WHICH: Mapping[str, tuple[str, ...]] = {
    "en": (
        "Which of the two pictures shows “{caption}”, the first or the second?",
        "To which picture does “{caption}” belong: the first or the second?",
        "Two pictures. Is “{caption}” the first or the second?",
    ),
    "ru": (
        "На какой из двух картинок «{caption}», на первой или на второй?",
        "К какой картинке относится «{caption}»: к первой или ко второй?",
        "Две картинки. «{caption}» — это первая или вторая?",
    ),
}

_ORDER: Mapping[str, tuple[tuple[str, str], ...]] = {
    "en": (("The first.", "The second."),) * 3,
    "ru": (("На первой.", "На второй."), ("К первой.", "Ко второй."), ("Первая.", "Вторая.")),
}
"""Answers to each of the wordings."""

Names = Mapping[str, str]
"""Language -> a name of what the picture shows."""


def dialogues(records: Iterable[tuple[Split, Record, Names]]) -> Iterator[tuple[Split, Record]]:
    """Dialogues about some of the pictures.

    Args:
        records: Split, caption record, and a name in each language that has one.

    Yields:
        (split, {'id', 'messages', 'real', …}); both sorts keep to the split of their pictures.
    """
    named = sorted(
        ((split, record, names) for split, record, names in records if names), key=lambda each: each[1]["id"]
    )
    by_split: dict[Split, list[tuple[Record, Names]]] = {}
    for split, record, names in named:
        by_split.setdefault(split, []).append((record, names))
    for split, record, names in named:
        rng = np.random.default_rng(_seed(record["id"]))
        chance = rng.random()
        made = None
        if chance < 1 / _ONE_IN:
            made = _in_both_languages(split, record, names, rng)
        elif chance < 2 / _ONE_IN:
            made = _told_apart(record, names, by_split[split], rng)
        if made is not None and not _problem(made["messages"]):
            yield split, made


def _in_both_languages(split: Split, record: Record, names: Names, rng: np.random.Generator) -> Record | None:
    if len(names) < 2:
        return None
    first, second = (sorted(names)[index] for index in rng.permutation(2))
    question, held_out = wording("name", first, split, rng)
    again = _IN_THE_OTHER[second][int(rng.integers(len(_IN_THE_OTHER[second])))]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"image": record["image"]}, {"text": question}]},
        {"role": "assistant", "content": as_sentence(names[first])},
        {"role": "user", "content": again},
        {"role": "assistant", "content": as_sentence(names[second])},
    ]
    return _record("both", messages, [record], held_out=held_out)


def _told_apart(
    record: Record, names: Names, others: Sequence[tuple[Record, Names]], rng: np.random.Generator
) -> Record | None:
    language = sorted(names)[int(rng.integers(len(names)))]
    meant = stems(names[language])
    for _ in range(12):
        other, other_names = others[int(rng.integers(len(others)))]
        if language in other_names and not may_mean_the_same(meant, stems(other_names[language])):
            break
    else:
        return None
    which, place = int(rng.integers(len(_WHICH[language]))), int(rng.integers(2))
    pictures = [record["image"], other["image"]] if place == 0 else [other["image"], record["image"]]
    question = _WHICH[language][which].format(caption=as_quoted(names[language]))
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [*({"image": picture} for picture in pictures), {"text": question}]},
        {"role": "assistant", "content": _ORDER[language][which][place]},
    ]
    return _record("two", messages, [record, other], held_out=False)


def _record(sort: str, messages: list[dict[str, Any]], records: Sequence[Record], held_out: bool) -> Record:
    first = records[0]
    return {
        "id": f"instruct/{first['id']}/{sort}",
        "messages": messages,
        "real": [key for record in records for key in record["real"]],
        "family": first.get("family", first["id"]),
        "held_out": held_out,
    }


def _problem(messages: Sequence[Mapping[str, Any]]) -> str:
    for asked, answered in zip(messages[::2], messages[1::2], strict=True):
        content = asked["content"]
        question = content if isinstance(content, str) else content[-1]["text"]
        language = "ru" if any("а" <= letter <= "я" for letter in question.lower()) else "en"
        if found := problem(question, answered["content"], language):
            return found
    return ""


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"dialogue {name}".encode()).digest()[:8], "big")
