"""One batch while it is decoded: the rows' answers, read from the device some tokens at a time."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Int

from data_pipelines.tokenizers import Tokenizer
from vlm_jax.batch import Batch
from vlm_jax.generation import decoding
from vlm_jax.generation.requests import Finish, Piece, Request
from vlm_jax.generation.samplers import settings_of
from vlm_jax.generation.texts import AnswerText
from vlm_jax.models.vlm import VLMConfig


@dataclasses.dataclass(frozen=True)
class Row:
    """What one row of a batch answers."""

    request: Request
    number: int
    """The request's place among those asked together, and the number its draws depend on."""
    sample: int
    prompt: int
    """Which of the batch's prompts it continues."""
    room: int
    """New tokens that it may have: as requested, or what the context has left."""


def end_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that end an answer."""
    return tuple(getattr(tokenizer, "end_ids", (tokenizer.end_id,)))


def answer_of(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """New tokens -> text, up to the first end token."""
    ends = end_ids(tokenizer)
    length = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokenizer.decode(list(tokens[:length]))


@dataclasses.dataclass(frozen=True)
class Running:
    """A batch of prompts and the rows that continue them; there may be more rows than prompts, and padding."""

    config: VLMConfig
    params: Any
    unrolled: Any
    """Parameters for decoding, if they are others than for prefill: `decoding.unrolled_params`."""
    tokenizer: Tokenizer
    batch: Batch
    rows: Sequence[Row]
    size: int
    """B, rows with padding."""
    capacity: int
    """Room for new tokens."""
    chunk: int = 0
    """Prompts are read so many positions at a time; 0 = at once."""
    same_draws: bool = False
    """Draws depend on the seed and the sample only, not on the row's number."""

    def whole(self) -> Int[Array, "B capacity"]:
        """Starts to decode to the end and gives the new tokens, which may still be on their way."""
        controls = self._controls()
        now, tokens = self._start(controls)
        return self._advance(now, tokens, self._room, np.zeros(self.size, bool), controls)[1]

    def pieces(self, steps: int, cancelled: Callable[[int], bool] | None = None) -> Iterator[Piece]:
        """Decodes `steps` tokens at a time and gives what may be shown.

        The device works on the next tokens while the host reads the last ones.

        Args:
            steps: tokens between two looks of the host.
            cancelled: asked with a request's number now and then; if True, its rows are decoded no further.
        """
        controls = self._controls()
        now, tokens = self._start(controls)
        answers = [_Answer(row, self.tokenizer) for row in self.rows]
        dropped = np.zeros(self.size, bool)
        count = 1
        while True:
            until = min(count + steps, self._room)
            ahead = self._advance(now, tokens, until, dropped.copy(), controls) if until > count else None
            new = np.asarray(tokens)[:, :count]
            gone = {n for n in {row.number for row in self.rows} if cancelled is not None and cancelled(n)}
            for place, answer in enumerate(answers):
                if answer.row.number in gone:
                    answer.live = False
                yield from answer.read(new[place].tolist())
                dropped[place] = not answer.live
            if ahead is None or not any(answer.live for answer in answers):
                return
            (now, tokens), count = ahead, until

    @property
    def _room(self) -> int:
        return max(row.room for row in self.rows)

    def _start(self, controls: decoding.Controls) -> tuple[decoding.Decoding, Array]:
        continued = [row.prompt for row in self.rows]
        spread = None
        if continued != list(range(len(continued))) or self.size != self.batch.tokens.shape[0]:
            spread = np.zeros(self.size, np.int32)
            spread[: len(continued)] = continued
        chunk = self.chunk or self.batch.tokens.shape[1]
        unrolled = self.unrolled is not None
        return decoding.start(self.config, unrolled, self.capacity, chunk, self.params, self.batch, spread, controls)

    def _advance(
        self, now: decoding.Decoding, tokens: Array, until: int, dropped: np.ndarray, controls: decoding.Controls
    ) -> tuple[decoding.Decoding, Array]:
        unrolled = self.unrolled is not None
        params = self.unrolled if unrolled else self.params
        return decoding.advance(self.config, unrolled, params, now, tokens, np.int32(until), dropped, controls)

    def _controls(self) -> decoding.Controls:
        tokenizer, rows = self.tokenizer, self.rows
        idle = self.size - len(rows)
        settings = settings_of([row.request.sampler for row in rows] + [rows[0].request.sampler] * idle)

        def column(values: Sequence[int], dtype: Any = np.int32) -> np.ndarray:
            return np.array([*values, *[0] * idle], dtype)

        return decoding.Controls(
            decoding.Vocabulary(np.array(end_ids(tokenizer), np.int32), tokenizer.pad_id, tokenizer.vocabulary_size),
            settings,
            decoding.Draws(
                seeds=column([row.request.seed & 0xFFFFFFFF for row in rows], np.uint32),
                numbers=column([0 if self.same_draws else row.number for row in rows]),
                samples=column([row.sample for row in rows]),
            ),
            max_new_tokens=column([row.room for row in rows]),
        )


class _Answer:
    """One row's answer while it is written."""

    def __init__(self, row: Row, tokenizer: Tokenizer) -> None:
        self.row = row
        self.live = True
        self._text = AnswerText(tokenizer.decode, row.request.stop)
        self._ends = end_ids(tokenizer)
        self._count = 0

    def read(self, tokens: list[int]) -> Iterator[Piece]:
        """Takes the row's tokens so far; gives the piece that they add, if any."""
        if not self.live:
            return
        finish: Finish | None = None
        for token in tokens[self._count : self.row.room]:
            self._count += 1
            if token in self._ends:
                finish = "stop"
                break
            self._text.add(token)
            if self._text.stopped:
                finish = "stop"
                break
        if finish is None and self._count == self.row.room:
            finish = "length"
        if finish is not None:
            self._text.finish()
            # The last bytes may complete a stop string.
            finish = "stop" if self._text.stopped else finish
            self.live = False
        text = self._text.take(everything=finish is not None)
        if text or finish is not None:
            yield Piece(self.row.number, self.row.sample, text, finish, self._count)
