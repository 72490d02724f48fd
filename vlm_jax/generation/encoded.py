"""Pictures of prompts, encoded once each: a table of the features of their image slots."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8

from data_pipelines.examples import Image
from data_pipelines.template import Processor, Rendered
from data_pipelines.tiles import Cut
from vlm_jax.generation import decoding
from vlm_jax.generation.batches import power_bucket
from vlm_jax.models.encoders import slots_together
from vlm_jax.models.vlm import VLMConfig

_ENCODED_TOGETHER = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """A table of features, and where in it the slots of each picture stand."""

    first: dict[Image, int]
    """The entry of a picture's first slot; its others follow."""
    features: Float[Array, "M P D"] | None
    """None without pictures."""

    def entries(self, prompt: Rendered) -> list[int]:
        """The entry of every image slot of a prompt, in order."""
        pairs = zip(prompt.images, prompt.cuts, strict=True)
        return [self.first[image] + slot for image, cut in pairs for slot in range(cut.slots)]


def distinct(prompts: Sequence[Rendered]) -> dict[Image, Cut]:
    """The distinct pictures, in the order of their first appearance, and how each is cut."""
    return {image: cut for prompt in prompts for image, cut in zip(prompt.images, prompt.cuts, strict=True)}


def encode_pictures(config: VLMConfig, params: Any, processor: Processor, prompts: Sequence[Rendered]) -> Encoded:
    """Encodes the pictures of prompts, some dozens of slots at a time.

    M, entries of the table, is a power of two (of as many slots as the encoder wants together), so that few programs
    serve any number of pictures. What is left over is black.

    Args:
        config, params: of the model.
        processor: fills the slots.
        prompts: rendered by it.

    Raises:
        BadImage: if a picture cannot be decoded.
    """
    cuts = distinct(prompts)
    sizes = [cut.slots for cut in cuts.values()]
    first = dict(zip(cuts, np.cumsum([0, *sizes])[:-1].tolist(), strict=True)) if cuts else {}
    if not cuts or config.encoder is None:
        return Encoded(first, None)
    unit = slots_together(config.encoder)
    units = power_bucket(math.ceil(sum(sizes) / unit))
    together = unit * min(units, power_bucket(max(1, _ENCODED_TOGETHER // unit)))
    slots = _slots(processor, cuts)
    encoded = []
    for _ in range(unit * units // together):
        pixels = np.zeros((together, *config.image_size, 3), np.uint8)
        tiles = np.ones((together, 3), np.int32)
        tiles[:, 0] = 1 + np.arange(together) % unit
        for place, (shown, tile) in zip(range(together), slots, strict=False):
            pixels[place], tiles[place] = shown, tile
        encoded.append(decoding.encode(config, params, pixels, tiles))
    return Encoded(first, jnp.concatenate(encoded))


def _slots(
    processor: Processor, cuts: dict[Image, Cut]
) -> Iterator[tuple[UInt8[np.ndarray, "H W 3"], Int32[np.ndarray, " 3"]]]:
    """The image slots of all pictures, decoded one picture at a time."""
    for image, cut in cuts.items():
        yield from zip(processor.slots(image, cut), cut.tile_index, strict=True)
