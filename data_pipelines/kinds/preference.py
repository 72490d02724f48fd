"""The preference kind: a prompt with its pictures, an answer that was chosen and one that was rejected."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from data_pipelines.examples import Example, Segment, Text
from data_pipelines.kinds.parts import pictures_of, record_id, text_of, turns_of
from data_pipelines.quarantine import BadRecord


@dataclasses.dataclass(frozen=True)
class Preference:
    """trunk = pictures and the prompt's turns; branches = (chosen, rejected), labelled 1 and 0, with loss.

    {'id': 'duck', 'image': Image(path='duck.png'), 'prompt': 'What is this?', 'chosen': 'A duck.',
     'rejected': 'A goose.'}
    ->
    Example(
        trunk=(Image(path='duck.png'), Text('What is this?', role='user')),
        branches=(
            (Text('A duck.', loss=True, role='assistant'),), (Text('A goose.', loss=True, role='assistant'),)),
        id='duck', labels=(1.0, 0.0))
    """

    kind: ClassVar[str] = "preference"

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator, source: str = "") -> Example:
        """Makes an example of {'id', 'prompt' | 'messages', 'chosen', 'rejected'}, with 'image', 'images' or neither.

        'messages' is a dialogue that ends with the user's turn, and may hold pictures of its own. An answer is a text,
        or a list of messages that continue the dialogue.

        Raises:
            BadRecord: if a part is missing or empty, the prompt ends with the assistant's turn, or the answers are the
                same.
        """
        where = record_id(record)
        prompt: tuple[Segment, ...]
        if record.get("messages") is not None:
            prompt = turns_of(record["messages"], where)
        else:
            prompt = (Text(text_of(record.get("prompt"), "prompt", where), role="user"),)
        last = prompt[-1]
        if not (isinstance(last, Text) and last.role == "user"):
            raise BadRecord("the prompt does not end with a turn of the user", where)
        # What the assistant said before the prompt is not what the answers are compared by.
        prompt = tuple(dataclasses.replace(turn, loss=False) if isinstance(turn, Text) else turn for turn in prompt)
        branches = (_answer(record.get("chosen"), "chosen", where), _answer(record.get("rejected"), "rejected", where))
        if branches[0] == branches[1]:
            raise BadRecord("the chosen and the rejected answer are the same", where)
        trunk = (*pictures_of(record), *prompt)
        return Example(trunk=trunk, branches=branches, source=source, id=where, labels=(1.0, 0.0))


def _answer(value: Any, name: str, where: str) -> tuple[Text, ...]:
    if not isinstance(value, (list, tuple)):
        return (Text(text_of(value, f"{name} answer", where), loss=True, role="assistant"),)
    turns = turns_of(value, where)
    texts = tuple(turn for turn in turns if isinstance(turn, Text))
    if len(texts) != len(turns):
        raise BadRecord(f"a picture in the {name} answer", where)
    if texts[0].role != "assistant":
        raise BadRecord(f"the {name} answer does not begin with a turn of the assistant", where)
    return texts
