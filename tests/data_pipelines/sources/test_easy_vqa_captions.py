"""Captions say what the answers settle, no less and nothing else."""

import itertools

import pytest

from data_pipelines.sources.easy_vqa_captions import PHRASES, derive
from data_pipelines.sources.easy_vqa_questions import COLORS, QUESTIONS, SHAPES


def derived(*pairs):
    return derive((QUESTIONS[question], answer) for question, answer in pairs)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([("what color is the shape?", "blue")], ("blue", "")),
        ([("what shape is present?", "circle")], ("", "circle")),
        ([("what color is the circle?", "blue")], ("blue", "circle")),
        ([("what is the blue shape?", "circle")], ("blue", "circle")),
        ([("is there a red shape?", "yes")], ("red", "")),
        ([("is there a red shape?", "no")], ("", "")),
        ([("is there not a red shape?", "no")], ("red", "")),
        ([("is no red shape present?", "yes")], ("", "")),
        ([("is there a circle?", "no"), ("does the image not contain a triangle?", "yes")], ("", "rectangle")),
        ([(f"is a {color} shape present?", "no") for color in COLORS[1:]], ("black", "")),
        ([(f"is a {color} shape present?", "no") for color in COLORS[2:]], ("", "")),
        ([], ("", "")),
    ],
)
def test_what_answers_settle(pairs, expected):
    assert derived(*pairs) == expected


@pytest.mark.parametrize(
    ("pairs", "about"),
    [
        ([("what color is the shape?", "blue"), ("is there a blue shape?", "no")], "colour"),
        ([("what color is the shape?", "blue"), ("is there a red shape?", "yes")], "colour"),
        ([("what color is the circle?", "blue"), ("is no circle present?", "yes")], "shape"),
        ([(f"is there a {shape}?", "no") for shape in SHAPES], "shape"),
    ],
)
def test_contradictions_are_refused(pairs, about):
    with pytest.raises(ValueError, match=f"contradict each other about the {about}"):
        derived(*pairs)


def truth(question, color, shape):
    """The answer to a question about a picture of one figure; None where the question supposes what is not there."""
    if question.type == "yes_no_color":
        return "yes" if (question.color == color) != question.negated else "no"
    if question.type == "yes_no_shape":
        return "yes" if (question.shape == shape) != question.negated else "no"
    if question.color not in ("", color) or question.shape not in ("", shape):
        return None
    return color if question.type == "color" else shape


@pytest.mark.parametrize(("color", "shape"), itertools.product(COLORS, SHAPES))
def test_all_true_answers_settle_the_truth_and_any_single_one_never_denies_it(color, shape):
    pairs = [(text, truth(question, color, shape)) for text, question in QUESTIONS.items()]
    pairs = [pair for pair in pairs if pair[1] is not None]
    assert derived(*pairs) == (color, shape)
    for pair in pairs:
        found = derived(pair)
        assert found[0] in ("", color)
        assert found[1] in ("", shape)


def test_english_captions_name_what_is_known():
    phrases = PHRASES["en"]
    assert phrases("blue", "rectangle")[0] == "A blue rectangle."
    for caption in phrases("blue", "rectangle"):
        assert "blue" in caption
        assert "rectangle" in caption
    assert phrases("blue", "") == (
        "A blue shape.",
        "There is a blue shape in the picture.",
        "The color of the shape is blue.",
    )
    assert phrases("", "circle") == ("A circle.", "There is a circle in the picture.", "The picture shows a circle.")
    assert phrases("", "") == ()
