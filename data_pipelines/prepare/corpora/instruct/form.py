"""The form of questions and answers: how a caption is written as an answer, and what a good pair looks like."""

import re

from data_pipelines.prepare.scripts import script_share

MOST_CHARACTERS = {"question": 900, "answer": 1500}

_END = re.compile(r"[.!?…][)»”'\"]*$")
_BROKEN = re.compile(
    r"[{}\x00-\x09\x0b-\x1f\x7f\ufffd\u200b-\u200f\u202a-\u202e\ufeff]|  |\n\n| [,.;:!?](?!\w)|,,|\?\?"
)
_PAIRS = (("(", ")"), ("[", "]"), ("«", "»"), ("“", "”"))
_FEW = 12
"""Letters: shorter answers may be a name in the other script ('GIMP')."""


def as_sentence(text: str) -> str:
    """A caption as an answer: begins with a capital letter, ends with a full stop.

    >>> as_sentence("waving hand: dark skin tone"), as_sentence("Is it?")
    ('Waving hand: dark skin tone.', 'Is it?')
    """
    text = " ".join(text.split())
    if not text:
        return ""
    text = text[0].upper() + text[1:]
    return text if _END.search(text) else f"{text.rstrip(' ,;:-–—')}."


def as_quoted(text: str) -> str:
    """A caption as words within a sentence: without its full stop, with single quotes inside.

    >>> as_quoted("A duck.")
    'A duck'
    """
    text = " ".join(text.split())
    text = text.removesuffix(".") if not text.endswith("..") else text
    return re.sub('[“”«»"]', "'", text)


def problem(question: str, answer: str, language: str, is_letter: bool = False) -> str:
    """What is wrong with the form of a pair; '' if nothing is.

    Args:
        question: As the user asks it.
        answer: As the assistant should answer.
        language: Of both, 'en' or 'ru'.
        is_letter: The answer is the letter of a choice, or words without the form of a sentence.
    """
    for name, text in (("question", question), ("answer", answer)):
        if not text.strip():
            return f"no {name}"
        if text != text.strip():
            return f"{name}: blanks around it"
        if len(text) > MOST_CHARACTERS[name]:
            return f"{name}: longer than {MOST_CHARACTERS[name]} characters"
        if _BROKEN.search(text):
            return f"{name}: braces, control characters, or stray blanks and marks"
        if any(text.count(opening) != text.count(closing) for opening, closing in _PAIRS):
            return f"{name}: a bracket or quote without its other half"
    if script_share(question, language) < 0.5:
        return "question: mostly in another script"
    letters = sum(character.isalpha() for character in answer)
    if letters > _FEW and script_share(answer, language) < 0.5:
        return "answer: mostly in another script"
    if is_letter:
        return ""
    if answer[0].islower():
        return "answer: begins with a small letter"
    if not _END.search(answer):
        return "answer: does not end as a sentence"
    return ""
