"""The English questions of easy-VQA: 24 templates, what each asks for, and what its answer says about the picture."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

COLORS = ("black", "gray", "red", "brown", "yellow", "green", "blue", "teal")
SHAPES = ("rectangle", "circle", "triangle")

QuestionType = Literal["yes_no_color", "yes_no_shape", "color", "shape"]

# {color} and {shape} are the only words that vary. A negated question is answered 'yes' when the thing is absent.
TEMPLATES: Mapping[str, tuple[QuestionType, bool]] = {
    "is there a {color} shape?": ("yes_no_color", False),
    "is there a {color} shape in the image?": ("yes_no_color", False),
    "is a {color} shape present?": ("yes_no_color", False),
    "does the image contain a {color} shape?": ("yes_no_color", False),
    "is there not a {color} shape?": ("yes_no_color", True),
    "is there not a {color} shape in the image?": ("yes_no_color", True),
    "is no {color} shape present?": ("yes_no_color", True),
    "does the image not contain a {color} shape?": ("yes_no_color", True),
    "is there a {shape}?": ("yes_no_shape", False),
    "is there a {shape} in the image?": ("yes_no_shape", False),
    "is a {shape} present?": ("yes_no_shape", False),
    "does the image contain a {shape}?": ("yes_no_shape", False),
    "is there not a {shape}?": ("yes_no_shape", True),
    "is there not a {shape} in the image?": ("yes_no_shape", True),
    "is no {shape} present?": ("yes_no_shape", True),
    "does the image not contain a {shape}?": ("yes_no_shape", True),
    "what color is the shape?": ("color", False),
    "what is the color of the shape?": ("color", False),
    "what color is the {shape}?": ("color", False),
    "what is the color of the {shape}?": ("color", False),
    "what shape is in the image?": ("shape", False),
    "what shape does the image contain?": ("shape", False),
    "what shape is present?": ("shape", False),
    "what is the {color} shape?": ("shape", False),
}


@dataclasses.dataclass(frozen=True)
class Question:
    """A question taken apart: its template, and the colour or shape that it names ('' = none)."""

    template: str
    type: QuestionType
    negated: bool
    color: str = ""
    shape: str = ""

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers it may have."""
        return {"color": COLORS, "shape": SHAPES}.get(self.type, ("yes", "no"))


def _all_questions() -> dict[str, Question]:
    questions = {}
    for template, (kind, negated) in TEMPLATES.items():
        for color in COLORS if "{color}" in template else ("",):
            for shape in SHAPES if "{shape}" in template else ("",):
                question = Question(template, kind, negated, color, shape)
                questions[template.format(color=color, shape=shape)] = question
    return questions


QUESTIONS: Mapping[str, Question] = _all_questions()
"""Every question that the data set can ask: 107 of them."""
