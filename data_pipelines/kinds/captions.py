"""The captions kind: a picture, and for each of its captions a request and the caption as answer."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from data_pipelines.examples import Example, Image, Text
from data_pipelines.kinds.parts import pictures_of, record_id, text_of
from data_pipelines.kinds.requests import REQUESTS, WORDINGS, Wordings
from data_pipelines.quarantine import BadRecord
from vlm_jax.errors import UserError

__all__ = ["REQUESTS", "Captions"]


@dataclasses.dataclass(frozen=True)
class Captions:
    """trunk = (image,); a branch a caption: the user asks for one in its language, the assistant gives it, with loss.

        {'id': 'duck', 'image': Image(path='duck.png'), 'captions': [{'text': 'Утка.', 'language': 'ru'}]}
        ->
        Example(
            trunk=(Image(path='duck.png'),),
            branches=((Text('Напиши подпись.', role='user'), Text('Утка.', loss=True, role='assistant')),),
            id='duck')

    Without a request, the bare form: trunk = (image, caption), running text with loss; a long one is cut.

        Example(
            trunk=(Image(path='duck.png'), Text('Утка.', loss=True)), id='duck', when_long='cut')

    captions: how many of a record's captions to take, drawn anew every time; 0 = all of them.
    languages: take captions in these only; () = in all. The others of a record are left alone.
    wordings: of the request: 'plain' = three a language; 'train' = those and more; 'held_out' = some that are in
        neither, for validation and test.
    bare: share of the examples, 0 to 1, that take the bare form, with one caption, which may be in any language.
    """

    kind: ClassVar[str] = "captions"

    captions: int = 0
    languages: tuple[str, ...] = ()
    wordings: Wordings = "plain"
    bare: float = 0.0

    def __post_init__(self) -> None:
        if self.captions < 0:
            raise UserError(f"captions {self.captions}: give the number to take of each record, or 0 for all of them")
        if not 0 <= self.bare <= 1:
            raise UserError(f"bare {self.bare}: give the share of captions without a request, from 0 to 1")
        strangers = [language for language in self.languages if language not in REQUESTS]
        if strangers and self.bare < 1:
            raise UserError(
                f"languages: there is no request in '{strangers[0]}', only in {', '.join(REQUESTS)}; set bare to 1"
            )

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator, source: str = "") -> Example:
        """Makes an example of {'id', 'image', 'captions': [{'text', 'language'}]}.

        Raises:
            BadRecord: if the record has no picture, no caption in the languages, an empty one, or one in a language
                without a request.
        """
        where = record_id(record)
        pictures = pictures_of(record)
        if not pictures:
            raise BadRecord("no picture", where)
        captions = record.get("captions") or ()
        if self.languages:
            captions = [caption for caption in captions if caption.get("language") in self.languages]
        if not captions:
            raise BadRecord(f"no caption{' in ' + ', '.join(self.languages) if self.languages else ''}", where)
        # No draw where there is nothing to draw: the other options leave an order as it was.
        if self.bare and rng.random() < self.bare:
            return _bare(pictures, captions, rng, source, where)
        order = rng.permutation(len(captions))[: self.captions or None]
        branches = tuple(self._branch(captions[index], rng, where) for index in order)
        return Example(trunk=pictures, branches=branches, source=source, id=where)

    def _branch(self, caption: Mapping[str, Any], rng: np.random.Generator, where: str) -> tuple[Text, Text]:
        text, language = text_of(caption.get("text"), "caption", where), caption.get("language", "")
        requests = WORDINGS[self.wordings].get(language)
        if requests is None:
            which = f"in '{language}', for which there is no request" if language else "of unknown language"
            raise BadRecord(f"a caption {which}: set the source's `language`, or choose the bare form", where)
        request = requests[int(rng.integers(len(requests)))]
        return Text(request, role="user"), Text(text, loss=True, role="assistant")


def _bare(
    pictures: tuple[Image, ...],
    captions: Sequence[Mapping[str, Any]],
    rng: np.random.Generator,
    source: str,
    where: str,
) -> Example:
    text = text_of(captions[int(rng.integers(len(captions)))].get("text"), "caption", where)
    return Example(trunk=(*pictures, Text(text, loss=True)), source=source, id=where, when_long="cut")
