"""Which split a page or a picture belongs to: a pure function of its name, so the same in every language and run."""

import hashlib
from typing import Literal, get_args

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = get_args(Split)

_SHARES = {"test": 0.05, "validation": 0.05}


def split_of(key: str) -> Split:
    """The split of everything that has to do with a page or picture: 5% test, 5% validation, the rest train.

    Args:
        key: Its name, without a language: 'gimp/gimp-tool-crop', 'tuxpaint/animals/birds/duck'. Texts, captions and
            questions in any language that belong to it share the key.
    """
    return _split(key, "split")


def template_split(template: str) -> Split:
    """The split of a wording (of a question, a request): held-out wordings stand in validation and test only."""
    return _split(template, "template")


def _split(key: str, purpose: str) -> Split:
    place = int.from_bytes(hashlib.sha256(f"{purpose} {key}".encode()).digest()[:8], "big") / 2**64
    for split, share in _SHARES.items():
        if place < share:
            return split  # type: ignore[return-value]
        place -= share
    return "train"
