"""The captions kind: a picture, and for each of its captions a request and the caption as answer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.examples import Example, Text
from data_pipelines.quarantine import BadRecord
from vlm_jax.errors import UserError

REQUESTS: Mapping[str, tuple[str, ...]] = {
    "en": ("Describe the picture.", "What is in the picture?", "Write a caption."),
    "ru": ("Опиши картинку.", "Что на картинке?", "Напиши подпись."),
}


@dataclasses.dataclass(frozen=True)
class Captions:
    """trunk = (image,); a branch a caption: the user asks for one in its language, the assistant gives it, with loss.

    captions: how many of a record's captions to take, drawn anew every time; 0 = all of them.
    """

    captions: int = 0

    def __post_init__(self) -> None:
        if self.captions < 0:
            raise UserError(f"captions {self.captions}: give the number to take of each record, or 0 for all of them")

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator, source: str = "") -> Example:
        """Makes an example of {'id', 'image', 'captions': [{'text', 'language'}]}.

        Raises:
            BadRecord: if the record has no caption, an empty one, or one in a language without a request.
        """
        captions = record.get("captions") or ()
        if not captions:
            raise BadRecord("no caption", record["id"])
        order = rng.permutation(len(captions))[: self.captions or None]
        branches = []
        for index in order:
            text, language = captions[index]["text"], captions[index]["language"]
            if not text.strip():
                raise BadRecord("an empty caption", record["id"])
            if language not in REQUESTS:
                raise BadRecord(f"a caption in '{language}', for which there is no request", record["id"])
            request = REQUESTS[language][int(rng.integers(len(REQUESTS[language])))]
            branches.append((Text(request, role="user"), Text(text, loss=True, role="assistant")))
        return Example(trunk=(record["image"],), branches=tuple(branches), source=source, id=record["id"])
