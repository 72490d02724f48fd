"""Which language's letters a text is written in: finds the passages of a translation that nobody translated."""

import re

_LETTERS = {
    "en": re.compile(r"[A-Za-zÀ-ÖØ-öø-ÿ]"),
    "ru": re.compile(r"[А-Яа-яЁё]"),
}
_ANY_LETTER = re.compile(r"[^\W\d_]")

LANGUAGES = tuple(_LETTERS)


def script_share(text: str, language: str) -> float:
    """The share of the text's letters that belong to the language's script, 0..1; 1 where there are no letters.

    >>> script_share('Нажмите OK', 'ru')
    0.7777777777777778
    """
    letters = len(_ANY_LETTER.findall(text))
    return len(_LETTERS[language].findall(text)) / letters if letters else 1.0


def is_written_in(text: str, language: str, share: float = 0.5) -> bool:
    """Whether at least that share of the text's letters is of the language's script.

    Half is enough: Russian manuals are full of names and of terms in Latin letters, while a passage that was left in
    English has hardly a Cyrillic letter.
    """
    return script_share(text, language) >= share
