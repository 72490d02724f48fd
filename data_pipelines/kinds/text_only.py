"""The text-only kind: running text without a picture, learned from its first word to its last."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from data_pipelines.examples import Example, Text, WhenLong
from data_pipelines.kinds.parts import record_id, text_of


@dataclasses.dataclass(frozen=True)
class TextOnly:
    """trunk = (text,), with loss.

        {'id': 'page', 'text': 'Утки плавают.'}
        ->
        Example(trunk=(Text('Утки плавают.', loss=True),), id='page', when_long='split')

    when_long: what becomes of a text that no row can hold.
    """

    kind: ClassVar[str] = "text_only"

    when_long: WhenLong = "split"

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator, source: str = "") -> Example:
        """Makes an example of {'id', 'text'}.

        Raises:
            BadRecord: if there is no text.
        """
        where = record_id(record)
        text = text_of(record.get("text"), "text", where)
        return Example(trunk=(Text(text, loss=True),), source=source, id=where, when_long=self.when_long)
