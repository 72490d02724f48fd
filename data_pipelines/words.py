"""Words of a text and its script, which tells the two languages apart where no record says which one it is in."""

import re
from typing import Literal

Script = Literal["latin", "cyrillic", "other"]

SCRIPTS = {"latin": "Latin script", "cyrillic": "Cyrillic script", "other": "other"}
"""What to call them."""

WORD = re.compile(r"\w+(?:[-'’]\w+)*")
"""A word: letters and digits in a row, with the hyphens and apostrophes inside."""

_CYRILLIC = re.compile(r"[\u0400-\u052f\u1c80-\u1c8f\u2de0-\u2dff\ua640-\ua69f]")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")


def script_of(text: str) -> Script:
    """'cyrillic' or 'latin', whichever has more letters in the text; 'other' where it has neither."""
    cyrillic, latin = len(_CYRILLIC.findall(text)), len(_LATIN.findall(text))
    if not cyrillic and not latin:
        return "other"
    return "cyrillic" if cyrillic > latin else "latin"


def words_of(text: str) -> list[str]:
    """The words of a text, in order."""
    return WORD.findall(text)
