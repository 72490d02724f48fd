import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax.evaluation.metrics import METRICS, exact_match, normalise


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
