"""Unicode's Common Locale Data Repository: what emoji are called, with keywords, in any of its languages."""

import dataclasses
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

from data_pipelines.prepare.corpora.packages import package_path
from vlm_jax.errors import UserError

_COMMON = "usr/share/unicode/cldr/common"


@dataclasses.dataclass(frozen=True)
class Annotation:
    """What one language says of an emoji."""

    name: str
    keywords: tuple[str, ...] = ()


def annotations(raw: Path, language: str) -> Mapping[str, Annotation]:
    """Emoji (its characters, without variation selectors) -> name and keywords; what has no name is left out.

    Args:
        raw: Where packages are unpacked.
        language: 'en', 'ru', …

    Raises:
        UserError: if the package is not there, has no such language, or a file is damaged.
    """
    names: dict[str, str] = {}
    keywords: dict[str, tuple[str, ...]] = {}
    for folder in ("annotations", "annotationsDerived"):  # the second: skin tones, flags, families, put together
        path = package_path(raw, "unicode-cldr-core", f"{_COMMON}/{folder}/{language}.xml")
        try:
            root = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            raise UserError(f"{path}: not whole XML ({error}); unpack its package again") from None
        for entry in root.iter("annotation"):
            emoji, text = entry.get("cp", ""), (entry.text or "").strip()
            if not text or text == "↑↑↑":  # inherited from another locale
                continue
            if entry.get("type") == "tts":
                names[emoji] = text
            else:
                keywords[emoji] = tuple(word.strip() for word in text.split("|") if word.strip())
    return {emoji: Annotation(name, keywords.get(emoji, ())) for emoji, name in names.items()}
