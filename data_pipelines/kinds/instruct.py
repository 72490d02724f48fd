"""The instruct kind: a picture, and for each question about it the question and its answer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.examples import Example, Text
from data_pipelines.quarantine import BadRecord
from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Instruct:
    """trunk = (image,), or nothing where a record has none; a branch a question: the user asks, the assistant answers,
    with loss.

    questions: how many of a record's questions to take, drawn anew every time; 0 = all of them, in their order.
    """

    questions: int = 0

    def __post_init__(self) -> None:
        if self.questions < 0:
            raise UserError(f"questions {self.questions}: give the number to take of each record, or 0 for all of them")

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator, source: str = "") -> Example:
        """Makes an example of {'id', 'questions': [{'question', 'answer'}]}, with an 'image' or without.

        Raises:
            BadRecord: if the record has no question, or an empty question or answer.
        """
        questions = record.get("questions") or ()
        if not questions:
            raise BadRecord("no question", record["id"])
        if self.questions:
            questions = [questions[index] for index in rng.permutation(len(questions))[: self.questions]]
        branches = []
        for entry in questions:
            for field in ("question", "answer"):
                if not isinstance(entry.get(field), str) or not entry[field].strip():
                    raise BadRecord(
                        f"an entry without {'a question' if field == 'question' else 'an answer'}", record["id"]
                    )
            branches.append(
                (Text(entry["question"], role="user"), Text(entry["answer"], loss=True, role="assistant")),
            )
        trunk = (record["image"],) if "image" in record else ()
        return Example(trunk=trunk, branches=tuple(branches), source=source, id=record["id"])
