"""What a good question and answer look like, and how captions become answers."""

import pytest

from data_pipelines.prepare.corpora.instruct.form import as_quoted, as_sentence, problem


def test_sentences() -> None:
    assert (as_sentence("waving hand: dark skin tone"), as_sentence("Is it?")) == (
        "Waving hand: dark skin tone.",
        "Is it?",
    )
    assert as_sentence("диалог «Слои»") == "Диалог «Слои»."
    assert as_sentence("Он спросил: «Что?»") == "Он спросил: «Что?»"
    assert as_sentence("  a  b,") == "A b."
    assert as_sentence(" ") == ""


def test_quoted() -> None:
    assert as_quoted("A duck.") == "A duck"
    assert as_quoted("The “Layers” dialog…") == "The 'Layers' dialog…"


@pytest.mark.parametrize(
    ("question", "answer", "language", "what"),
    [
        ("What is it?", "", "en", "no answer"),
        ("What is it?", "A {thing}.", "en", "braces"),
        ("What is it?", "A  thing.", "en", "stray blanks"),
        ("What is it?", "A thing .", "en", "stray blanks"),
        ("What is it? ", "A thing.", "en", "blanks around"),
        ("What is it?", "A (thing.", "en", "other half"),
        ("What is it?", "a thing.", "en", "small letter"),
        ("What is it?", "A thing", "en", "does not end"),
        ("What is it?", "A\u200bthing.", "en", "control characters"),
        ("What is it?", "x" * 2000, "en", "longer"),
        ("What is it?", "Совсем другое дело.", "en", "another script"),
        ("Что это?", "Something left in English.", "ru", "another script"),
        ("What is it?", "Утка.", "ru", "another script"),
    ],
)
def test_bad_form_is_named(question: str, answer: str, language: str, what: str) -> None:
    assert what in problem(question, answer, language)


def test_good_form_passes() -> None:
    assert not problem("What is it?", "A duck.", "en")
    assert not problem("Что это за программа?", "GIMP.", "ru")
    assert not problem("Какая буква?\nА. Утка.\nБ. Гусь.", "Б", "ru", is_letter=True)
