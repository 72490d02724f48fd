"""The instruct kind: pictures, and for each question about them the question and its answer; or a whole dialogue."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from data_pipelines.examples import Example, Text, WhenLong
from data_pipelines.kinds.parts import pictures_of, record_id, turns_of
from data_pipelines.quarantine import BadRecord
from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Instruct:
    """Of a record with questions: trunk = its pictures, or nothing where it has none; a branch a question: the user
    asks, the assistant answers, with loss.

        {'id': 'duck', 'image': Image(path='duck.png'), 'questions': [{'question': 'Is it a duck?', 'answer': 'Yes.'}]}
        ->
        Example(
            trunk=(Image(path='duck.png'),),
            branches=((Text('Is it a duck?', role='user'), Text('Yes.', loss=True, role='assistant')),),
            id='duck')

    Of a record with messages: trunk = the dialogue, with loss on what the assistant says; a turn's pictures stand
    before it.

        {'id': 'birds', 'messages': [
            {'role': 'user', 'content': [{'image': Image(path='duck.png')}, {'text': 'What is this?'}]},
            {'role': 'assistant', 'content': 'A duck.'},
            {'role': 'user', 'content': [{'image': Image(path='goose.png')}, {'text': 'And this?'}]},
            {'role': 'assistant', 'content': 'A goose.'}]}
        ->
        Example(
            trunk=(
                Image(path='duck.png'), Text('What is this?', role='user'),
                Text('A duck.', loss=True, role='assistant'),
                Image(path='goose.png'), Text('And this?', role='user'),
                Text('A goose.', loss=True, role='assistant')),
            id='birds')

    questions: how many of a record's questions to take, drawn anew every time; 0 = all of them, in their order.
    when_long: what becomes of a dialogue that no row can hold. (One with questions is refused.)
    """

    kind: ClassVar[str] = "instruct"

    questions: int = 0
    when_long: WhenLong = "refuse"

    def __post_init__(self) -> None:
        if self.questions < 0:
            raise UserError(f"questions {self.questions}: give the number to take of each record, or 0 for all of them")

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator, source: str = "") -> Example:
        """Makes an example of {'id', 'questions': [{'question', 'answer'}]} or {'id', 'messages': [{'role',
        'content'}]}, with 'image', 'images' or neither; pictures of the record stand before those of its messages.

        Raises:
            BadRecord: if the record has no question, an empty question or answer, or a dialogue without an answer.
        """
        if record.get("messages") is not None:
            return self._dialogue(record, source)
        where = record_id(record)
        questions = record.get("questions") or ()
        if not questions:
            raise BadRecord("no question", where)
        if self.questions:
            questions = [questions[index] for index in rng.permutation(len(questions))[: self.questions]]
        branches = []
        for entry in questions:
            for field in ("question", "answer"):
                if not isinstance(entry.get(field), str) or not entry[field].strip():
                    raise BadRecord(f"an entry without {'a question' if field == 'question' else 'an answer'}", where)
            branches.append(
                (Text(entry["question"], role="user"), Text(entry["answer"], loss=True, role="assistant")),
            )
        return Example(trunk=pictures_of(record), branches=tuple(branches), source=source, id=where)

    def _dialogue(self, record: Mapping[str, Any], source: str) -> Example:
        where = record_id(record)
        turns = turns_of(record["messages"], where)
        if not any(isinstance(turn, Text) and turn.loss for turn in turns):
            raise BadRecord("a dialogue without an answer", where)
        trunk = (*pictures_of(record), *turns)
        return Example(trunk=trunk, source=source, id=where, when_long=self.when_long)
