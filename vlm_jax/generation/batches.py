"""From rendered prompts to padded batches whose shapes are few, so that compilations are few too."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from data_pipelines.examples import Image
from data_pipelines.instructions import slot_instructions
from data_pipelines.packing import Planes
from data_pipelines.template import Rendered
from vlm_jax.batch import Batch
from vlm_jax.pictures import Pictures


def length_bucket(length: int) -> int:
    """The padded length of a prompt: a multiple of 8, with eight steps an octave from 64 on (at most 1/8 is padding).

    1..8 -> 8, 33 -> 40, 64 -> 64, 65 -> 72, 129 -> 144, 1000 -> 1024
    """
    octave = 1 << max(length - 1, 1).bit_length()
    step = max(8, octave // 16)
    return -(-length // step) * step


def power_bucket(count: int) -> int:
    """The next power of two: for rows and image slots. 0 -> 0, 1 -> 1, 5 -> 8."""
    return 1 << (count - 1).bit_length() if count else 0


def capacity_bucket(max_new_tokens: int) -> int:
    """Room for new tokens in the cache: a power of two, at least 8, so that tasks with short answers share programs."""
    return max(8, power_bucket(max_new_tokens))


@dataclasses.dataclass(frozen=True)
class Buckets:
    """How shapes are rounded up.

    coarse: fewer, rougher shapes, for a server: who asks while a program is compiled waits, and so do all others.

        length      64, 128, 256, …     in place of eight steps an octave
        rows        1, 4, 16, 64, …     in place of powers of two
        capacity    64, 512, 4096, …    in place of powers of two
    """

    coarse: bool = False

    def length(self, length: int) -> int:
        """The padded length of a prompt."""
        return max(64, power_bucket(length)) if self.coarse else length_bucket(length)

    def rows(self, count: int) -> int:
        """Rows with padding."""
        return 4 ** (((count - 1).bit_length() + 1) // 2) if self.coarse else power_bucket(count)

    def capacity(self, max_new_tokens: int) -> int:
        """Room for new tokens."""
        if not self.coarse:
            return capacity_bucket(max_new_tokens)
        return max(64, 8 ** -(-(max_new_tokens - 1).bit_length() // 3))


def chunk_size(prompts: Sequence[Rendered], chunk: int) -> int:
    """Positions to read at a time: `chunk`, or more where a block (tokens that see each other) is longer."""
    return max(chunk, *(length_bucket(int(np.bincount(prompt.block_ids)[1:].max(initial=0))) for prompt in prompts))


def chunk_slots(prompt: Rendered, chunk: int) -> Int32[np.ndarray, " L"]:
    """The slot of each position, so that no block goes past the end of a chunk: some slots stay empty before it.

    With chunk = 4, for a prompt t v v v v t (v a block): slots 0 4 5 6 7 8.
    """
    blocks = prompt.block_ids
    begins = np.flatnonzero(np.diff(blocks, prepend=-1))
    shifts = np.zeros(prompt.length, np.int32)
    shift = 0
    for begin, end in zip(begins.tolist(), [*begins.tolist()[1:], prompt.length], strict=True):
        place = (begin + shift) % chunk
        if blocks[begin] and place + end - begin > chunk:
            shift += chunk - place
        shifts[begin:end] = shift
    return np.arange(prompt.length, dtype=np.int32) + shifts


def prompt_batch(
    prompts: Sequence[Rendered],
    slots: Sequence[Sequence[int]],
    rows: int,
    pad_id: int,
    prompt_tokens: int,
    pictures: Pictures = Pictures(),
    chunk: int = 0,
    buckets: Buckets = Buckets(),
) -> tuple[Batch, np.ndarray]:
    """One prompt a row, padded at the end; the rows that are left over are padding throughout.

    Args:
        prompts: at most `rows` of them.
        slots: for each prompt, the numbers of its image slots in a table of encoded ones.
        rows: B.
        pad_id: the tokenizer's.
        prompt_tokens: N, visual tokens a slot.
        pictures: `VLMConfig.pictures`: whether image slots are seen through cross-attention.
        chunk: if positive, prompts are laid out as `chunk_slots` says, and S is a multiple of it.
        buckets: round S up.

    Returns:
        The batch without its pictures, S being a bucket of the longest prompt; and int32[B, I], which entry of the
        table each image slot shows (0 where it is unused, which image_ids says too). I is 0 for text only.
    """
    places = [chunk_slots(prompt, chunk) if chunk else np.arange(prompt.length) for prompt in prompts]
    length = buckets.length(max(int(place[-1]) + 1 for place in places))
    length = -(-length // chunk) * chunk if chunk else length
    planes = Planes.empty(rows, length, pad_id)
    for row, (prompt, place) in enumerate(zip(prompts, places, strict=True)):
        together = Planes.empty(1, prompt.length, pad_id)
        together.write(0, [prompt], prompt_tokens, pictures)
        for field in dataclasses.fields(Planes):
            getattr(planes, field.name)[row, place] = getattr(together, field.name)[0]
    count = power_bucket(max((len(row) for row in slots), default=0))
    entries, image_ids = np.zeros((rows, count), np.int32), np.zeros((rows, count), np.int32)
    tile_index = np.zeros((rows, count, 3), np.int32)
    for row, (prompt, numbers) in enumerate(zip(prompts, slots, strict=True)):
        entries[row, : len(numbers)] = numbers
        used = 0
        for picture, cut in enumerate(prompt.cuts, 1):
            image_ids[row, used : used + cut.slots] = picture
            tile_index[row, used : used + cut.slots] = cut.tile_index
            used += cut.slots
    targets, loss_weights = planes.shifted()
    fields: dict[str, Any] = {
        "tokens": planes.tokens,
        "targets": targets,
        "loss_weights": loss_weights,
        "segment_ids": planes.segment_ids,
        "branch_ids": planes.branch_ids,
        "block_ids": planes.block_ids,
        "positions": planes.positions,
        "example_index": planes.example_index,
        "source_ids": np.zeros((rows, 1), np.int32),
    }
    if count:
        fields |= {"image_ids": image_ids, "tile_index": tile_index}
        if prompt_tokens:
            fields["visual_index"] = planes.visual_index
        if pictures.visible is not None:
            fields["visible_images"] = planes.visible_images
        if pictures.instruction:
            padded = [*([prompt] for prompt in prompts), *([[]] * (rows - len(prompts)))]
            fields["instructions"] = slot_instructions(padded, count, pictures.instruction)
    return Batch(**fields), entries


def by_pictures(prompts: Sequence[Rendered], limit: int) -> Iterator[list[int]]:
    """Numbers of prompts in groups whose pictures take at most `limit` image slots, shared ones counted once (more only
    if one prompt alone has more).
    """
    first: dict[Image, int] = {}
    for prompt in prompts:
        for image in prompt.images:
            first.setdefault(image, len(first))
    order = sorted(range(len(prompts)), key=lambda n: min((first[image] for image in prompts[n].images), default=-1))
    group: list[int] = []
    seen: dict[Image, int] = {}
    for number in order:
        prompt = prompts[number]
        own = {image: cut.slots for image, cut in zip(prompt.images, prompt.cuts, strict=True)}
        if group and sum((seen | own).values()) > limit:
            yield group
            group, seen = [], {}
        group.append(number)
        seen |= own
    if group:
        yield group


def parts(numbers: Sequence[int], prompts: Sequence[Rendered], size: int) -> Iterator[list[int]]:
    """Sorts prompts by length and cuts them into batches of at most `size`, none of which mixes buckets of slots."""

    def slots(number: int) -> int:
        return power_bucket(prompts[number].slots)

    part: list[int] = []
    # The longest first: if the memory does not suffice, that shows at once.
    for number in sorted(numbers, key=lambda n: (slots(n), prompts[n].length), reverse=True):
        if part and (len(part) == size or slots(part[0]) != slots(number)):
            yield part
            part = []
        part.append(number)
    if part:
        yield part
