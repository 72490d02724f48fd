"""The engine: answers many prompts in batches, or some of them piece by piece; scores given answers."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines import images as image_functions
from data_pipelines.examples import Example, Image, Text
from data_pipelines.quarantine import BadRecord
from data_pipelines.template import Processor, Rendered
from vlm_jax.batch import Batch
from vlm_jax.errors import UserError
from vlm_jax.generation import decoding
from vlm_jax.generation.batches import Buckets, by_pictures, chunk_size, parts, prompt_batch
from vlm_jax.generation.encoded import Encoded, distinct, encode_pictures
from vlm_jax.generation.requests import Piece, Request, Score
from vlm_jax.generation.running import Row, Running, answer_of
from vlm_jax.generation.samplers import Sampler
from vlm_jax.generation.scoring import score_rows
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.pictures import Pictures

Progress = Callable[[int, int], None]
"""Called with (prompts answered, prompts in all)."""

_STEPS_BETWEEN_STOPS = 8
_SHORT_ROW = 256
_TURN_TOKENS = 4
"""About as many as open and close an answer's turn."""


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
    """A model with what it needs to read prompts and write answers.

    A prompt is an Example without branches whose trunk ends with the user's turn; `question` makes one.

    Every distinct picture is encoded once. Prompts are sorted by length, so that little is padding, and shapes are
    rounded up to buckets (`batches.py`), so that a handful of compilations serves any mix of prompts.
    """

    config: VLMConfig
    params: Any
    """Plain nested dict of parameters."""
    processor: Processor
    rows: int = 64
    """Answers that are decoded together."""
    pictures: int = 1024
    """Image slots of distinct pictures whose features are kept at the same time: P * D numbers of the compute dtype
    each.
    """
    prefill_chunk: int = 512
    """Longer prompts are read so many positions at a time, which bounds the memory of their activations."""
    buckets: Buckets = Buckets()
    """How shapes are rounded up."""

    def __post_init__(self) -> None:
        tokens, vocabulary = self.processor.tokenizer.vocabulary_size, self.config.decoder.embedded_tokens
        if tokens > vocabulary:
            raise UserError(
                f"the tokenizer has {tokens} tokens, but the model embeds {vocabulary}; take both from one checkpoint"
            )
        sizes = (self.processor.image_size, self.processor.prompt_tokens)
        if sizes != (self.config.image_size, self.config.prompt_tokens):
            raise UserError(
                f"the processor makes pictures of {sizes[0]} pixels and {sizes[1]} tokens, the model takes "
                f"{self.config.image_size} and {self.config.prompt_tokens}; take both from one checkpoint"
            )
        if differing := _differing(self.processor.pictures, self.config.pictures):
            raise UserError(
                f"the processor and the model treat pictures differently ({', '.join(differing)}); take both from one "
                "checkpoint"
            )

    def generate(
        self,
        prompts: Sequence[Example],
        *,
        max_new_tokens: int = 64,
        sampler: Sampler = Sampler(),
        seed: int = 0,
        stop: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> list[str]:
        """Answers prompts; the answers stand in the order of the prompts.

        What is drawn for a prompt depends on the seed and its place in `prompts`, not on the prompts batched with it.

        Args:
            prompts: examples that end with the user's turn.
            max_new_tokens: length of an answer in tokens, at most; what the model's context has left if that is less.
            sampler: chooses the tokens.
            seed: of the draws, where the sampler draws.
            stop: an answer ends before the first of these strings.
            progress: called after every batch.

        Raises:
            UserError: if a prompt has a picture and the model has no image encoder, a prompt leaves no room in the
                context, max_new_tokens is not positive, or a stop string is empty.
            BadImage: if a picture cannot be decoded.
        """
        requests = [Request(prompt, max_new_tokens, sampler, seed, tuple(stop)) for prompt in prompts]
        return [answer for (answer,) in self.sample(requests, progress=progress)]

    def sample(self, requests: Sequence[Request], *, progress: Progress | None = None) -> list[list[str]]:
        """Answers requests: for each its samples, which share the reading of the prompt.

        Args:
            requests: any number; what is drawn depends on the request's seed and place and the sample's number.
            progress: called after every batch.

        Raises:
            UserError, BadImage: as `generate`.
        """
        answers = [[""] * request.samples for request in requests]
        done, total = 0, sum(request.samples for request in requests)
        waiting: tuple[Running, Any] | None = None

        def collect(running: Running, found: Any) -> None:
            nonlocal done
            if isinstance(found, list):
                for piece in found:
                    answers[piece.request][piece.sample] += piece.text
            else:
                for row, tokens in zip(running.rows, np.asarray(found), strict=False):
                    answers[row.number][row.sample] = self.text(tokens[: row.room].tolist())
            done += len(running.rows)
            if progress is not None:
                progress(done, total)

        for running in self._batches(requests):
            watched = any(row.request.stop for row in running.rows)
            found = list(running.pieces(_STEPS_BETWEEN_STOPS)) if watched else running.whole()
            # The device works on this batch while the host reads the one before and prepares the next.
            if waiting is not None:
                collect(*waiting)
            waiting = (running, found)
        if waiting is not None:
            collect(*waiting)
        return answers

    def stream(
        self,
        prompt: Example,
        *,
        max_new_tokens: int = 64,
        sampler: Sampler = Sampler(),
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Answers one prompt piece by piece; the pieces joined are what `generate` gives for it alone.

        Pieces are whole characters: bytes of an unfinished character wait for the rest of it. What may be the
        beginning of a stop string waits too.
        """
        request = Request(prompt, max_new_tokens, sampler, seed, tuple(stop))
        return (piece.text for piece in self.stream_many([request]) if piece.text)

    def stream_many(
        self, requests: Sequence[Request], cancelled: Callable[[int], bool] | None = None
    ) -> Iterator[Piece]:
        """Decodes requests together as one batch and gives the pieces of their answers as they come.

        Requests may differ in everything. What is drawn depends on the request's seed and the sample's number only.

        Args:
            requests: at least one; all their samples are decoded at the same time.
            cancelled: asked with a request's number (its place) before each token; once it says True, nothing more
                comes for that request.

        Raises:
            UserError, BadImage: as `generate`; `check` says beforehand whether a request is sound.
        """
        rendered = [self._rendered(request) for request in requests]
        running = self._running(list(range(len(requests))), requests, rendered, self._encode(rendered))
        return dataclasses.replace(running, same_draws=True).pieces(1, cancelled)

    def score(self, prompts: Sequence[Example], answers: Sequence[Sequence[str]]) -> list[list[Score]]:
        """How likely given answers are: for classification, multiple choice, and whether a model knows something.

        The answers to a prompt are branches of one row: they share the reading of the prompt and do not see each other.

        Args:
            prompts: examples that end with the user's turn.
            answers: for every prompt the answers to score, each a whole turn.

        Raises:
            ValueError: if there are not as many entries of answers as prompts.
            UserError: if prompt and answer do not fit into the model's context.
            BadImage: if a picture cannot be decoded.
        """
        if len(answers) != len(prompts):
            raise ValueError(f"score: {len(prompts)} prompts but {len(answers)} entries of answers; give one a prompt")
        found: list[list[Score | None]] = [[None] * len(given) for given in answers]
        owners: list[tuple[int, list[int]]] = []
        rendered: list[Rendered] = []
        for number, (prompt, given) in enumerate(zip(prompts, answers, strict=True)):
            for group in self._answers_of_a_row(prompt, given):
                turns = tuple((Text(given[place], loss=True, role="assistant"),) for place in group)
                rendered.append(self._fitting(self.processor.render(Example(prompt.trunk, turns, id=prompt.id))))
                owners.append((number, group))
        for numbers in by_pictures(rendered, self.pictures):
            table = self._encode([rendered[number] for number in numbers])
            for part in parts(numbers, rendered, self.rows):
                batch = self._batch([rendered[number] for number in part], table)
                size = self.processor.tokenizer.vocabulary_size
                for row, scores in zip(part, score_rows(self.config, self.params, batch, size), strict=False):
                    number, group = owners[row]
                    for place, score in zip(group, scores, strict=True):
                        found[number][place] = score
        return [[score for score in row if score is not None] for row in found]

    def check(self, request: Request) -> None:
        """Whether the request can be answered.

        Raises:
            UserError: if it has a picture and the model takes none, or its prompt leaves no room in the context.
            BadImage: if a picture cannot be decoded.
        """
        for image, cut in distinct([self._rendered(request)]).items():
            self.processor.slots(image, cut)

    def check_picture(self, image: Image) -> None:
        """Whether a picture can be shown to the model.

        Raises:
            BadImage: if it cannot be decoded, or the model cuts pictures and has no grid for it.
        """
        image_functions.decode(image)
        if self.config.encoder is not None:
            self.processor.cut(image)

    def count_tokens(self, prompt: Example) -> int:
        """The prompt's length in tokens, visual ones included."""
        return self.render(prompt).length

    def render(self, prompt: Example) -> Rendered:
        """The prompt's tokens, with the assistant's turn opened at the end.

        Raises:
            UserError: if it has a picture and the model takes none, or the template or the adapter cannot read it.
        """
        if prompt.branches:
            raise ValueError(f"prompt {prompt.id}: it has branches; ask each as a prompt of its own")
        if prompt.images and self.config.encoder is None:
            raise UserError("the prompt has a picture, but this model reads text only; leave the picture out")
        try:
            return self.processor.render(prompt, open_turn="assistant")
        except BadRecord as error:
            raise UserError(f"prompt {prompt.id or '?'}: {error}") from None

    def text(self, tokens: Sequence[int]) -> str:
        """New tokens -> text, up to the end token."""
        return answer_of(tokens, self.processor.tokenizer)

    def _rendered(self, request: Request) -> Rendered:
        rendered = self.render(request.prompt)
        context = self.config.decoder.context
        if context and rendered.length >= context:
            raise UserError(
                f"the prompt has {rendered.length} tokens, but the model's context is {context}, of which the answer "
                "needs at least 1; shorten the prompt"
            )
        return rendered

    def _fitting(self, rendered: Rendered) -> Rendered:
        context, length = self.config.decoder.context, int(np.ptp(rendered.positions)) + 1
        if context and length > context:
            raise UserError(
                f"prompt {rendered.id} and its answer have {length} tokens, but the model's context is {context}; "
                "shorten them"
            )
        return rendered

    def _answers_of_a_row(self, prompt: Example, answers: Sequence[str]) -> Iterator[list[int]]:
        """Places of answers in groups that stand in one row: together no longer than the prompt, or a short row."""
        if not answers:
            return
        room = max(self.render(prompt).length, _SHORT_ROW)
        group: list[int] = []
        used = 0
        for place, answer in enumerate(answers):
            length = len(self.processor.tokenizer.encode(answer)) + _TURN_TOKENS
            if group and used + length > room:
                yield group
                group, used = [], 0
            group.append(place)
            used += length
        yield group

    def _room(self, request: Request, rendered: Rendered) -> int:
        context = self.config.decoder.context
        return min(request.max_new_tokens, context - rendered.length) if context else request.max_new_tokens

    def _batches(self, requests: Sequence[Request]) -> Iterator[Running]:
        """Batches of requests, some pictures' worth of them at a time, sorted by length."""
        rendered = [self._rendered(request) for request in requests]
        most = max((request.samples for request in requests), default=1)
        for numbers in by_pictures(rendered, self.pictures):
            table = self._encode([rendered[number] for number in numbers])
            for part in parts(numbers, rendered, max(1, self.rows // most)):
                yield self._running(part, requests, rendered, table)

    def _running(
        self,
        numbers: Sequence[int],
        requests: Sequence[Request],
        rendered: Sequence[Rendered],
        table: Encoded,
    ) -> Running:
        chosen = [rendered[number] for number in numbers]
        rows = [
            Row(requests[number], number, sample, prompt, self._room(requests[number], rendered[number]))
            for prompt, number in enumerate(numbers)
            for sample in range(requests[number].samples)
        ]
        long = max(prompt.length for prompt in chosen) > self.prefill_chunk
        chunk = chunk_size(chosen, self.prefill_chunk) if long else 0
        batch = self._batch(chosen, table, chunk)
        tokenizer = self.processor.tokenizer
        size = self._padded(len(rows))
        capacity = self.buckets.capacity(max(row.room for row in rows))
        return Running(self.config, self.params, self._unrolled, tokenizer, batch, rows, size, capacity, chunk)

    def _batch(self, prompts: Sequence[Rendered], table: Encoded, chunk: int = 0) -> Batch:
        slots = [table.entries(prompt) for prompt in prompts]
        pad_id, rows = self.processor.tokenizer.pad_id, self._padded(len(prompts))
        sizes = (self.config.prompt_tokens, self.config.pictures, chunk, self.buckets)
        batch, entries = prompt_batch(prompts, slots, rows, pad_id, *sizes)
        if table.features is None or not entries.size:
            return batch
        return dataclasses.replace(batch, features=decoding.gather(table.features, entries))

    @functools.cached_property
    def _unrolled(self) -> Any:
        return decoding.unrolled_params(self.config, self.params)

    def _padded(self, rows: int) -> int:
        return min(self.buckets.rows(rows), max(self.rows, rows))

    def _encode(self, prompts: Sequence[Rendered]) -> Encoded:
        return encode_pictures(self.config, self.params, self.processor, prompts)


def _differing(ours: Pictures, theirs: Pictures) -> list[str]:
    """Fields in which two ways with pictures differ; the grid of visual tokens counts only where rows are joined."""
    names = ["tiling", "prompt_slots", "visible", "instruction", "instruction_vocabulary"]
    names += ["token_grid"] * bool(ours.tiling and ours.tiling.separator)
    return [name for name in names if getattr(ours, name) != getattr(theirs, name)]
