"""The contract between the host and the device: what one batch of packed rows is.

A row holds several examples; an example is a trunk and zero or more branches that continue the trunk and do not see
each other. Two questions about one picture (visual tokens are v), then a text-only example, then padding (.):

    tokens         B v v v  U q A a E  U q A a E   B t t t E  .  .     B opening, U/A turn tokens, E end of turn
    segment_ids    1 1 1 1  1 1 1 1 1  1 1 1 1 1   2 2 2 2 2  0  0     which example of the row
    branch_ids     0 0 0 0  1 1 1 1 1  2 2 2 2 2   0 0 0 0 0  0  0     0 = trunk
    block_ids      0 1 1 1  0 0 0 0 0  0 0 0 0 0   0 0 0 0 0  0  0     equal and non-zero: see each other both ways
    positions      0 1 2 3  4 5 6 7 8  4 5 6 7 8   0 1 2 3 4  0  0     a branch continues from its trunk
    visual_index  -1 0 1 2 -1 …                                -1     which visual token of the row fills the position
    loss_weights   0 0 0 0  0 0 1 1 0  0 0 1 1 0   0 0 0 0 0  0  0     weight of the *target*, which is the next token

Position i attends to position j iff segment(i) = segment(j) != 0 and
((j <= i and branch(j) in {0, branch(i)}) or block(i) = block(j) != 0).

Sizes: B rows, S positions a row, I image slots a row, N visual tokens an image, E example entries a row.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from vlm_jax.pictures import Pictures


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Packed rows, as NumPy arrays on the host or jax arrays on the device. See the module's docstring for a drawing.

    Optional fields are None where a stage has no use for them (a text-only stage has no images); None is part of the
    pytree's structure, so one stage always yields one structure and compiles once.
    """

    tokens: Int[Array, "B S"]
    """Input ids; positions that a visual token fills hold the tokenizer's image token; padding holds the pad token."""
    targets: Int[Array, "B S"]
    """The next token of the same example and branch; 0 where there is none (its loss weight is then 0)."""
    loss_weights: Float[Array, "B S"]
    """Weight of the target's cross-entropy; 0 = no loss."""
    segment_ids: Int[Array, "B S"]
    """Which example of the row, from 1; 0 = padding."""
    branch_ids: Int[Array, "B S"]
    """0 = trunk; branches are counted from 1 within their example."""
    block_ids: Int[Array, "B S"]
    """Positions with equal, non-zero numbers see each other in both directions."""
    positions: Int[Array, "B S"]
    """Distance from the example's start; a branch continues from the end of its trunk."""
    example_index: Int[Array, "B S"]
    """Which entry of the per-example arrays the position belongs to. An example is one entry, or, where its branches
    are labelled, each branch is one, and the trunk belongs to the first."""
    source_ids: Int[Array, "B E"]
    """Which source of the stage's mixture an entry came from; -1 = unused entry."""

    images: UInt8[Array, "B I H W 3"] | None = None
    """Pictures, RGB 0..255; normalised on the device."""
    features: Float[Array, "B I P D"] | None = None
    """Output of a frozen encoder, in place of `images`."""
    image_ids: Int[Array, "B I"] | None = None
    """Which picture of the row an image slot shows, from 1; 0 = unused slot. Tiles of one picture share a number."""
    tile_index: Int[Array, "B I 3"] | None = None
    """(tile, rows, columns): 0 = thumbnail or whole picture, else 1 + its place in the grid, row by row."""
    visual_index: Int[Array, "B S"] | None = None
    """Prompt-based adapters: which of the row's I*N visual tokens (slot-major) fills this position; -1 = none."""
    visible_images: Int[Array, "B S 2"] | None = None
    """Cross-attention adapters: half-open range of image slots that the position may see; empty = none."""

    instructions: Int[Array, "B I Q"] | None = None
    """Adapters that read the instruction (InstructBLIP): its token ids beside each image slot; 0 = padding."""

    pair_ids: Int[Array, "B E"] | None = None
    """Preference data: entries of a row with the same non-negative number continue one trunk; -1 = none."""
    labels: Float[Array, "B E"] | None = None
    """Preference data: 1 = chosen or good, 0 = rejected or bad; -1 = an entry without a label."""
    reference_logps: Float[Array, "B E"] | None = None
    """Cached summed log-probability of the entry's answer under the reference model."""

    @staticmethod
    def spec(
        rows: int,
        length: int,
        *,
        images: int = 0,
        image_size: tuple[int, int] = (0, 0),
        examples: int = 1,
        preference: bool = False,
        in_sequence: bool = True,
        pictures: Pictures = Pictures(),
    ) -> "Batch":
        """Abstract shapes of a batch.

        Args:
            rows: B, rows a batch.
            length: S, positions a row.
            images: I, image slots a row; 0 leaves every image field None.
            image_size: (height, width) in pixels.
            examples: E, entries of the per-example arrays.
            preference: Whether the stage's mixture has preference data, so that entries are paired and labelled.
            in_sequence: Whether pictures become visual tokens of the sequence (`VLMConfig.prompt_tokens` is not 0).
            pictures: `VLMConfig.pictures`: whether image slots are seen otherwise, and read with an instruction.
        """

        def ints(*shape: int) -> Any:
            return jax.ShapeDtypeStruct(shape, jnp.int32)

        plane = ints(rows, length)
        weights: Any = jax.ShapeDtypeStruct((rows, length), jnp.float32)
        optional: dict[str, Any] = {}
        if images:
            optional = {
                "images": jax.ShapeDtypeStruct((rows, images, *image_size, 3), jnp.uint8),
                "image_ids": ints(rows, images),
                "tile_index": ints(rows, images, 3),
            }
            if in_sequence:
                optional["visual_index"] = plane
            if pictures.visible is not None:
                optional["visible_images"] = ints(rows, length, 2)
            if pictures.instruction:
                optional["instructions"] = ints(rows, images, pictures.instruction)
        if preference:
            optional["pair_ids"] = ints(rows, examples)
            optional["labels"] = jax.ShapeDtypeStruct((rows, examples), jnp.float32)
        return Batch(
            tokens=plane,
            targets=plane,
            loss_weights=weights,
            segment_ids=plane,
            branch_ids=plane,
            block_ids=plane,
            positions=plane,
            example_index=plane,
            source_ids=ints(rows, examples),
            **optional,
        )


@dataclasses.dataclass(frozen=True)
class BatchInfo:
    """What travels beside a Batch on the host: strings and counts, never part of the pytree."""

    example_ids: tuple[tuple[str, ...], ...]
    """For each row, the ids of its examples in the order of their segment numbers (segment 1 first). Further pieces of
    one that was split are ID#2, ID#3, …"""
    sources: tuple[str, ...]
    """Names that `Batch.source_ids` index."""
    examples_seen: Mapping[str, int]
    """Examples drawn from each source since the stage began, over all hosts' rows that this loader emits."""
    epochs_seen: Mapping[str, float]
    """Records used up since the stage began, as a share of the source's size; a record that was split counts once."""
    quarantined: Mapping[str, int]
    """Unusable records met so far in this process, by source."""
    cut: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Positions cut off examples too long for a row since the stage began, by source; sources without any left out."""


def concatenate(batches: list[Batch]) -> Batch:
    """Joins batches of one structure along the rows, on the host."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
