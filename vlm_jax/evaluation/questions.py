"""The questions of a benchmark's source, and what its controls need: majority answers and wrong pictures."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from data_pipelines import images as image_functions
from data_pipelines.examples import Image
from data_pipelines.images import BadImage
from data_pipelines.kinds.captions import REQUESTS
from data_pipelines.quarantine import BadRecord, Quarantine
from data_pipelines.sources import Source, SourceConfig, open_source

Ask = Literal["questions", "captions"]
"""What a record is asked for."""

Check = Callable[[Image], object]
"""Raises BadImage at a picture that cannot be shown to a model."""


@dataclasses.dataclass(frozen=True)
class Question:
    """One question, about one picture or about none."""

    id: str
    """The record's id and the question's number in it: 'easy_vqa/test/17#3'."""
    picture: str
    """The record's id: the cluster that the question belongs to."""
    image: Image | None
    record: Mapping[str, Any]
    """{'question', 'answer', 'language', 'type', …} as the source gives it; what a metric reads."""

    @property
    def kind(self) -> tuple[str, str]:
        """(language, type)."""
        return self.record.get("language", ""), self.record.get("type", "")


def list_questions(
    source: Source,
    quarantine: Quarantine | None = None,
    *,
    check_picture: Check | None = image_functions.decode,
    ask: Ask = "questions",
) -> list[Question]:
    """All questions, in the source's order.

    Args:
        source: lists records with questions, or pictures with captions.
        quarantine: where records go that cannot be read, have no question, or whose picture cannot be decoded; None
            leaves them out (for counting answers, where nothing is measured on them).
        check_picture: called with every picture once, so that a bad one is met here and not in the middle of
            generation; None = pictures are not looked at.
        ask: "captions" makes a request for a caption of every caption, of type 'caption'.

    Raises:
        UserError: from the quarantine, if bad records are too many.
    """
    if quarantine is not None:
        quarantine.expect(source.name, len(source))
    questions: list[Question] = []
    for index in range(len(source)):
        if quarantine is not None:
            quarantine.met(source.name)
        try:
            questions += _questions_of(source[index], check_picture, ask)
        except (BadRecord, BadImage) as error:
            if quarantine is not None:
                record_id = getattr(error, "record_id", "") or f"{source.name}[{index}]"
                quarantine.add(source.name, record_id, str(error))
    return questions


def _questions_of(record: Mapping[str, Any], check_picture: Check | None, ask: Ask) -> list[Question]:
    entries = record.get("questions") or () if ask == "questions" else _requests(record)
    if not entries:
        raise BadRecord(f"no {ask.removesuffix('s')}", record["id"])
    image = record.get("image")
    if check_picture is not None and image is not None:
        try:
            check_picture(image)
        except BadImage as error:
            raise BadRecord(str(error), record["id"]) from None
    return [Question(f"{record['id']}#{number}", record["id"], image, entry) for number, entry in enumerate(entries)]


def _requests(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A question for every caption of a record: in its language, and always in the same words."""
    captions = record.get("captions") or ()
    for caption in captions:
        if caption["language"] not in REQUESTS:
            raise BadRecord(f"a caption in '{caption['language']}', for which there is no request", record["id"])
    return [
        {
            "question": REQUESTS[caption["language"]][0],
            "answer": caption["text"],
            "language": caption["language"],
            "type": "caption",
        }
        for caption in captions
    ]


def choose(questions: Sequence[Question], limit: int, seed: int) -> list[Question]:
    """So many of the questions, drawn by the seed, in their order; all of them for 0."""
    if not 0 < limit < len(questions):
        return list(questions)
    return [questions[i] for i in sorted(np.random.default_rng(seed).permutation(len(questions))[:limit])]


def training_source(config: SourceConfig) -> SourceConfig | None:
    """The same source's training split, or None if it has no splits."""
    fields = {field.name for field in dataclasses.fields(config)}
    if "split" not in fields:
        return None
    changed: dict[str, Any] = {"split": "train"} | ({"limit": 0} if "limit" in fields else {})
    return dataclasses.replace(config, **changed)


def majority_answers(
    config: SourceConfig, questions: Sequence[Question], ask: Ask = "questions"
) -> dict[tuple[str, str], str]:
    """The most common answer to each kind of question: what can be said without looking at anything.

    It is counted in the source's training split, as a model would have to learn it; in the questions themselves only if
    the source has no training split. Of equally common answers the first in the alphabet is taken.

    Returns:
        (language, type) -> answer, for every kind in `questions`; '' for one that training does not have.
    """
    training = training_source(config)
    counted = questions if training is None else list_questions(open_source(training), check_picture=None, ask=ask)
    counts: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for question in counted:
        counts[question.kind][question.record["answer"]] += 1
    return {
        kind: min(counts[kind], key=lambda answer: (-counts[kind][answer], answer), default="")
        for kind in dict.fromkeys(question.kind for question in questions)
    }


def wrong_images(questions: Sequence[Question], seed: int) -> list[Image]:
    """For each question another picture than its own; questions that share a picture share the wrong one too.

    Pictures are put in a random order and each one's place is taken by the next: every picture is shown as often as
    questions were asked about its forerunner, and none stands in its own place.

    Raises:
        ValueError: if there are not at least two pictures.
    """
    images = {question.picture: question.image for question in questions if question.image is not None}
    if len(images) < 2:
        raise ValueError("wrong_images: pictures can only be exchanged where there are two or more")
    order = [list(images)[i] for i in np.random.default_rng(seed).permutation(len(images))]
    instead = dict(zip(order, order[1:] + order[:1], strict=True))
    return [images[instead[question.picture]] for question in questions]
