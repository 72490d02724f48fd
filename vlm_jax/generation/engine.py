"""The engine: answers many prompts in batches, or one prompt as a stream."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data_pipelines.examples import Example, Image
from data_pipelines.template import Processor, Rendered
from vlm_jax.batch import Batch
from vlm_jax.errors import UserError
from vlm_jax.generation import decoding
from vlm_jax.generation.batches import capacity_bucket, length_bucket, power_bucket, prompt_batch
from vlm_jax.generation.samplers import Sampler
from vlm_jax.models.vlm import VLMConfig

Progress = Callable[[int, int], None]
"""Called with (prompts answered, prompts in all)."""

_ENCODED_TOGETHER = 64


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
    """Prompts that are decoded together."""
    pictures: int = 1024
    """Distinct pictures whose features are kept at the same time: P * D numbers of the compute dtype each."""

    def __post_init__(self) -> None:
        tokens, vocabulary = self.processor.tokenizer.vocabulary_size, self.config.decoder.vocabulary_size
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

    def generate(
        self,
        prompts: Sequence[Example],
        *,
        max_new_tokens: int = 64,
        sampler: Sampler = Sampler(),
        seed: int = 0,
        progress: Progress | None = None,
    ) -> list[str]:
        """Answers prompts; the answers stand in the order of the prompts.

        What is drawn for a prompt depends on the seed and its place in `prompts`, not on the prompts batched with it.

        Args:
            prompts: examples that end with the user's turn.
            max_new_tokens: length of an answer in tokens, at most.
            sampler: chooses the tokens.
            seed: of the draws, where the sampler draws.
            progress: called after every batch.

        Raises:
            UserError: if a prompt has a picture and the model has no image encoder, or max_new_tokens is not positive.
            BadImage: if a picture cannot be decoded.
        """
        _check_length(max_new_tokens)
        limits = self._limits(max_new_tokens)
        rendered = [self.render(prompt) for prompt in prompts]
        answers = [""] * len(prompts)
        done = 0
        waiting: tuple[list[int], Array] | None = None

        def collect(numbers: list[int], tokens: Array) -> None:
            nonlocal done
            for number, row in zip(numbers, np.asarray(tokens), strict=False):
                answers[number] = self.text(row[:max_new_tokens].tolist())
            done += len(numbers)
            if progress is not None:
                progress(done, len(prompts))

        for numbers, batch in self._batches(rendered):
            draws, capacity = _draws(seed, numbers, batch), capacity_bucket(max_new_tokens)
            tokens = decoding.decode(self.config, sampler, capacity, self.params, batch, draws, limits)
            # The device works on this batch while the host reads the one before and prepares the next.
            if waiting is not None:
                collect(*waiting)
            waiting = (numbers, tokens)
        if waiting is not None:
            collect(*waiting)
        return answers

    def stream(
        self, prompt: Example, *, max_new_tokens: int = 64, sampler: Sampler = Sampler(), seed: int = 0
    ) -> Iterator[str]:
        """Answers one prompt piece by piece; the pieces joined are what `generate` gives for it alone.

        Pieces are whole characters: bytes of an unfinished character wait for the rest of it.
        """
        _check_length(max_new_tokens)
        ((_, batch),) = self._batches([self.render(prompt)])
        limits, draws = self._limits(max_new_tokens), _draws(seed, [0], batch)
        now = decoding.start(self.config, sampler, capacity_bucket(max_new_tokens), self.params, batch, draws, limits)
        tokens: list[int] = []
        told = ""
        while True:
            tokens.append(int(now.token[0]))
            ended = bool(now.ended[0]) or len(tokens) == max_new_tokens
            text = self.text(tokens)
            if len(text) > len(told) and (ended or not text.endswith("\ufffd")):
                yield text[len(told) :]
                told = text
            if ended:
                return
            now = decoding.advance(self.config, sampler, self.params, now, limits)

    def render(self, prompt: Example) -> Rendered:
        """The prompt's tokens, with the assistant's turn opened at the end."""
        if prompt.branches:
            raise ValueError(f"prompt {prompt.id}: it has branches; ask each as a prompt of its own")
        if prompt.images and not self.config.prompt_tokens:
            raise UserError("the prompt has a picture, but this model reads text only; leave the picture out")
        return self.processor.render(prompt, open_turn="assistant")

    def text(self, tokens: Sequence[int]) -> str:
        """New tokens -> text, up to the end token."""
        tokenizer = self.processor.tokenizer
        tokens = list(tokens)
        if tokenizer.end_id in tokens:
            tokens = tokens[: tokens.index(tokenizer.end_id)]
        return tokenizer.decode(tokens)

    def _limits(self, max_new_tokens: int) -> decoding.Limits:
        tokenizer = self.processor.tokenizer
        return decoding.Limits(tokenizer.end_id, tokenizer.pad_id, tokenizer.vocabulary_size, max_new_tokens)

    def _batches(self, prompts: Sequence[Rendered]) -> Iterator[tuple[list[int], Batch]]:
        """(numbers of the prompts, their batch), some pictures' worth of prompts at a time, sorted by length."""
        for numbers in _by_pictures(prompts, self.pictures):
            table: dict[Image, int] = {}
            for number in numbers:
                for image in prompts[number].images:
                    table.setdefault(image, len(table))
            features = self._encode(list(table))
            # The longest first: if the memory does not suffice, that shows at once.
            numbers.sort(key=lambda n: (power_bucket(len(prompts[n].images)), prompts[n].length), reverse=True)
            for part in _parts(numbers, prompts, self.rows):
                chosen = [prompts[number] for number in part]
                slots = [[table[image] for image in prompt.images] for prompt in chosen]
                rows = min(power_bucket(len(part)), self.rows)
                length = length_bucket(max(prompt.length for prompt in chosen))
                pad_id, prompt_tokens = self.processor.tokenizer.pad_id, self.config.prompt_tokens
                batch, entries = prompt_batch(chosen, slots, rows, length, pad_id, prompt_tokens)
                if features is not None and entries.size:
                    batch = dataclasses.replace(batch, features=decoding.gather(features, entries))
                yield part, batch

    def _encode(self, images: Sequence[Image]) -> Float[Array, "M P D"] | None:
        """Features of pictures, in their order; M is rounded up to a power of two. None where there is no picture."""
        if not images:
            return None
        together = min(power_bucket(len(images)), _ENCODED_TOGETHER)
        parts = []
        for start in range(0, power_bucket(len(images)), together):
            pixels = np.zeros((together, *self.config.image_size, 3), np.uint8)
            for i, image in enumerate(images[start : start + together]):
                pixels[i] = self.processor.pixels(image)
            parts.append(decoding.encode(self.config, self.params, pixels))
        return jnp.concatenate(parts)


def _by_pictures(prompts: Sequence[Rendered], limit: int) -> Iterator[list[int]]:
    """Numbers of prompts in groups that share at most `limit` pictures (more only if one prompt alone has more)."""
    first: dict[Image, int] = {}
    for prompt in prompts:
        for image in prompt.images:
            first.setdefault(image, len(first))
    order = sorted(range(len(prompts)), key=lambda n: min((first[image] for image in prompts[n].images), default=-1))
    group: list[int] = []
    seen: set[Image] = set()
    for number in order:
        images = set(prompts[number].images)
        if group and len(seen | images) > limit:
            yield group
            group, seen = [], set()
        group.append(number)
        seen |= images
    if group:
        yield group


def _parts(numbers: Sequence[int], prompts: Sequence[Rendered], rows: int) -> Iterator[list[int]]:
    """Cuts sorted numbers into batches of at most `rows`, none of which mixes buckets of image slots."""
    part: list[int] = []
    for number in numbers:
        count = power_bucket(len(prompts[number].images))
        if part and (len(part) == rows or power_bucket(len(prompts[part[0]].images)) != count):
            yield part
            part = []
        part.append(number)
    if part:
        yield part


def _draws(seed: int, numbers: Sequence[int], batch: Batch) -> decoding.Draws:
    padded = np.zeros(batch.tokens.shape[0], np.int32)
    padded[: len(numbers)] = numbers
    return decoding.Draws(seed, padded)


def _check_length(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}: give at least 1")
