"""Texts about coloured shapes, without pictures: the world of easy-VQA in words, for an LLM that is to meet it later.

A sentence says what a picture would show, and a question asks about it: what has to be learned from such texts is how
to answer, so that the picture side has only to say what the sentence says.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any, Literal

from data_pipelines.kinds.requests import REQUESTS
from data_pipelines.sources import easy_vqa_captions
from data_pipelines.sources.easy_vqa_questions import COLORS, SHAPES, TEMPLATES
from vlm_jax.errors import UserError

_PARTS = 10
"""One question of so many is kept for validation."""


@dataclasses.dataclass(frozen=True)
class ShapeTexts:
    """Which questions to list: those of one split; about a tenth of them, chosen by their words, are 'validation'."""

    split: Literal["train", "validation"] = "train"
    name: str = "shape_texts"


class ShapeTextsSource:
    """Records without a picture: one for each colour, shape and way to say it.

        {'id': 'shape_texts/red/circle/0', 'questions': [
            {'question': 'A red circle. what color is the shape?', 'answer': 'red', 'language': 'en', 'type': 'color'},
            …]}

    The questions are easy-VQA's, and requests for a caption, whose answer is the shortest one. Half of the answers to
    yes/no questions are yes.
    """

    def __init__(self, config: ShapeTexts) -> None:
        """Raises UserError if there is no such split."""
        if config.split not in ("train", "validation"):
            raise UserError(f"source '{config.name}': there is no split '{config.split}'; choose train or validation")
        self.config = config
        self.name = config.name
        ways = range(len(easy_vqa_captions.english(COLORS[0], SHAPES[0])))
        held_out = config.split == "validation"
        every = [_record(color, shape, way, held_out) for color in COLORS for shape in SHAPES for way in ways]
        self._records = [record for record in every if record["questions"]]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record of one shape."""
        return self._records[index]


def _record(color: str, shape: str, way: int, held_out: bool) -> dict[str, Any]:
    captions = easy_vqa_captions.english(color, shape)
    asked = [*_asked(color, shape, way), *((text, captions[0], "caption") for text in REQUESTS["en"])]
    questions = [
        {"question": f"{captions[way]} {question}", "answer": answer, "language": "en", "type": kind}
        for question, answer, kind in asked
    ]
    chosen = [entry for entry in questions if _is_held_out(entry["question"]) == held_out]
    return {"id": f"shape_texts/{color}/{shape}/{way}", "questions": chosen}


def _asked(color: str, shape: str, way: int) -> Iterator[tuple[str, str, str]]:
    """(question, answer, type) of every template: where one can be answered no, once with what is there, once not."""
    other_color = COLORS[(COLORS.index(color) + 1 + (way + SHAPES.index(shape)) % (len(COLORS) - 1)) % len(COLORS)]
    other_shape = SHAPES[(SHAPES.index(shape) + 1 + (way + COLORS.index(color)) % (len(SHAPES) - 1)) % len(SHAPES)]
    for template, (kind, negated) in TEMPLATES.items():
        if kind in ("color", "shape"):
            yield template.format(color=color, shape=shape), color if kind == "color" else shape, kind
            continue
        yield template.format(color=color, shape=shape), "no" if negated else "yes", kind
        yield template.format(color=other_color, shape=other_shape), "yes" if negated else "no", kind


def _is_held_out(question: str) -> bool:
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big") % _PARTS == 0
