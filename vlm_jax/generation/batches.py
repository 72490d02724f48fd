"""From rendered prompts to padded batches whose shapes are few, so that compilations are few too."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines.examples import Image
from data_pipelines.packing import Planes
from data_pipelines.template import Rendered
from vlm_jax.batch import Batch


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


def prompt_batch(
    prompts: Sequence[Rendered], slots: Sequence[Sequence[int]], rows: int, length: int, pad_id: int, prompt_tokens: int
) -> tuple[Batch, np.ndarray]:
    """One prompt a row, padded at the end; the rows that are left over are padding throughout.

    Args:
        prompts: at most `rows` of them, none longer than `length`.
        slots: for each prompt, the numbers of its pictures in a table of encoded pictures.
        rows, length: B and S.
        pad_id: the tokenizer's.
        prompt_tokens: N, visual tokens a picture.

    Returns:
        The batch without its pictures; and int32[B, I], which entry of the table each image slot shows (0 where it is
        unused, which image_ids says too). I is 0 for text only.
    """
    planes = Planes.empty(rows, length, pad_id)
    for row, prompt in enumerate(prompts):
        planes.write(row, [prompt], prompt_tokens)
    count = power_bucket(max((len(row) for row in slots), default=0))
    entries, image_ids = np.zeros((rows, count), np.int32), np.zeros((rows, count), np.int32)
    for row, numbers in enumerate(slots):
        entries[row, : len(numbers)] = numbers
        image_ids[row, : len(numbers)] = np.arange(1, len(numbers) + 1)
    fields: dict[str, Any] = {
        "tokens": planes.tokens,
        "targets": np.zeros_like(planes.tokens),
        "loss_weights": np.zeros_like(planes.loss),
        "segment_ids": planes.segment_ids,
        "branch_ids": planes.branch_ids,
        "block_ids": planes.block_ids,
        "positions": planes.positions,
        "example_index": planes.example_index,
        "source_ids": np.zeros((rows, 1), np.int32),
    }
    if count:
        fields |= {
            "image_ids": image_ids,
            "tile_index": np.zeros((rows, count, 3), np.int32),
            "visual_index": planes.visual_index,
        }
    return Batch(**fields), entries


def by_pictures(prompts: Sequence[Rendered], limit: int) -> Iterator[list[int]]:
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


def parts(numbers: Sequence[int], prompts: Sequence[Rendered], size: int) -> Iterator[list[int]]:
    """Sorts prompts by length and cuts them into batches of at most `size`, none of which mixes buckets of pictures."""

    def slots(number: int) -> int:
        return power_bucket(len(prompts[number].images))

    part: list[int] = []
    # The longest first: if the memory does not suffice, that shows at once.
    for number in sorted(numbers, key=lambda n: (slots(n), prompts[n].length), reverse=True):
        if part and (len(part) == size or slots(part[0]) != slots(number)):
            yield part
            part = []
        part.append(number)
    if part:
        yield part
