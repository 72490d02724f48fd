"""Captions for easy-VQA's pictures, drawn from nothing but the questions and answers about each picture."""

from collections.abc import Callable, Iterable, Mapping

from data_pipelines.sources import easy_vqa_russian
from data_pipelines.sources.easy_vqa_questions import COLORS, SHAPES, Question


def derive(asked: Iterable[tuple[Question, str]]) -> tuple[str, str]:
    """(colour, shape) of a picture's one figure, each '' where the answers leave more than one possibility.

    A question about colour or shape is settled by its answer, and what it names in passing is there ('what is the blue
    shape?' says blue). A yes/no question settles or excludes what it names. What is left when all others are excluded
    is settled too.

    Raises:
        ValueError: if the answers contradict each other.
    """
    colors, shapes = set(COLORS), set(SHAPES)
    for question, answer in asked:
        names = {question.color, question.shape}
        if question.type in ("color", "shape"):
            names.add(answer)
        elif (answer == "yes") == question.negated:
            colors -= names
            shapes -= names
            continue
        colors &= names & set(COLORS) or colors
        shapes &= names & set(SHAPES) or shapes
    if not colors or not shapes:
        raise ValueError(f"its answers contradict each other about the {'shape' if colors else 'colour'}")
    return colors.pop() if len(colors) == 1 else "", shapes.pop() if len(shapes) == 1 else ""


def english(color: str, shape: str) -> tuple[str, ...]:
    """Captions that name the colour and the shape; '' = not known."""
    if color and shape:
        return (
            f"A {color} {shape}.",
            f"There is a {color} {shape} in the picture.",
            f"The shape is a {shape} and its color is {color}.",
            f"The picture shows a {color} {shape}.",
        )
    if color:
        return f"A {color} shape.", f"There is a {color} shape in the picture.", f"The color of the shape is {color}."
    if shape:
        return f"A {shape}.", f"There is a {shape} in the picture.", f"The picture shows a {shape}."
    return ()


PHRASES: Mapping[str, Callable[[str, str], tuple[str, ...]]] = {"en": english, "ru": easy_vqa_russian.captions}
"""Language -> (colour, shape) -> captions; none where neither is known."""
