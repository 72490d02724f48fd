import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax.evaluation.metrics import METRICS, contains, exact_match, normalise


def test_the_examples_of_the_docstring():
    assert normalise("A  Red circle. ") == "a red circle"
    assert normalise("ЖЁЛТЫЙ") == "жёлтый"


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("Yes.", "yes", 1),
        (" ДА! ", "да", 1),
        ("жёлтый", "желтый", 0),
        ("ж\u0435\u0308лтый", "жёлтый", 1),
        ("голубой", "голубои\u0306", 1),
        ("STRASSE", "straße", 1),
        ("a circle", "circle", 0),
        ("", "no", 0),
        ("0.5", "05", 0),
    ],
)
def test_exact_match_sees_what_matters(prediction, answer, score):
    assert exact_match(prediction, {"answer": answer}) == score
    assert METRICS["exact_match"](prediction, {"answer": answer}) == score


@given(st.text())
def test_normalising_twice_changes_nothing_more(text):
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        ("The capital of France is Paris.", 1),
        ("paris", 1),
        ("It is a comparison.", 0),
        ("the city of light", 1),
        ("Light!", 0),
        ("", 0),
    ],
)
def test_an_answer_contains_an_expected_word_or_not(prediction, score):
    assert contains(prediction, {"answer": "x", "expected": ("Paris", "City of Light")}) == score


def test_without_expected_words_the_answer_itself_is_looked_for():
    assert contains("I think: RED.", {"answer": "red"}) == 1
