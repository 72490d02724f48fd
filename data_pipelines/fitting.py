"""Examples that are too long for a row, or have too many pictures: cut off at the end, or split into pieces.

A piece opens as the example does (with its <bos>) and its positions start anew:

    tokens        <bos> t t v v v t t t t v v v t t <end>       a row of 9 positions, 3 tokens a picture
    pieces        <bos> t t v v v t t t
                  <bos> t v v v t t <end>
"""

import dataclasses

import numpy as np
from jaxtyping import Bool

from data_pipelines.examples import WhenLong
from data_pipelines.packing import Budget, Size
from data_pipelines.quarantine import BadRecord
from data_pipelines.rendered import Rendered
from data_pipelines.tokenizers import Tokenizer


def size_of(example: Rendered) -> Size:
    """What an example takes of a row."""
    return Size(example.length, example.slots, example.entries)


def fit(
    example: Rendered, budget: Budget, when_long: WhenLong, tokenizer: Tokenizer, prompt_tokens: int
) -> tuple[list[Rendered], int]:
    """An example as one or several that fit into a row, and how many positions were cut off.

    It is never parted within a picture's place, within a block, or beside a control token (the end of the text belongs
    to the text, the marks around a picture to the picture). Text is taken in order and once; pictures go with their
    places.

    Args:
        example: As rendered; only a trunk without branches can be cut or split.
        budget: What a row holds.
        when_long: 'cut' keeps the longest beginning that fits; 'split' makes examples ID, ID#2, ID#3, … of it.
        tokenizer: Tells control tokens.
        prompt_tokens: N, visual tokens a slot.

    Raises:
        BadRecord: if it does not fit and must or can not be parted.
    """
    misfit = _misfit(example, budget)
    if misfit is None:
        return [example], 0
    if when_long == "refuse" or example.branch_ids.any():
        raise BadRecord(misfit, example.id)
    opening = int(example.tokens[0] == tokenizer.bos_id)
    places = _Places(example, tokenizer)
    pieces: list[Rendered] = []
    start = opening
    while start < example.length:
        end = places.last(start, budget.length - opening, budget.images)
        if end is None:
            raise BadRecord(f"{misfit}; from position {start} on there is no place to part it at", example.id)
        pieces.append(_piece(example, opening, start, end, prompt_tokens, len(pieces) + 1))
        if when_long == "cut":
            return pieces, example.length - end
        start = end
    return pieces, 0


def _misfit(example: Rendered, budget: Budget) -> str | None:
    """As the budget says; where pictures are cut, with the picture that is too much for any row, if one is."""
    found = budget.misfit(size_of(example))
    if example.length > budget.length or example.slots <= budget.images or example.slots == len(example.cuts):
        return found
    mend = "raise the stage's data.images, or choose smaller grids in the model's tiling"
    for number, (cut, image) in enumerate(zip(example.cuts, example.images, strict=True), 1):
        if cut.slots > budget.images:
            name = f" ('{image.path}')" if image.path is not None else ""
            return (
                f"{cut.slots} image slots for picture {number}{name} of {cut.size[0]} x {cut.size[1]} pixels (height x "
                f"width), but a row has {budget.images}: {mend}"
            )
    return f"{example.slots} image slots for {len(example.cuts)} pictures, but a row has {budget.images}: {mend}"


class _Places:
    """Where an example may be parted, and how many image slots stand before each position."""

    def __init__(self, example: Rendered, tokenizer: Tokenizer) -> None:
        length, picture = example.length, example.pictures
        control = np.isin(example.tokens, list(tokenizer.control_ids)) & (example.visual_index < 0)

        def joined(groups: np.ndarray, none: int) -> Bool[np.ndarray, " between"]:
            return (groups[1:] == groups[:-1]) & (groups[1:] != none)

        inside = joined(picture, -1) | joined(example.block_ids, 0) | control[1:] | control[:-1]
        self._allowed = np.concatenate([[False], ~inside, [True]])
        borders = np.cumsum([0, *(cut.slots for cut in example.cuts)])
        self._slots = borders[np.concatenate([[0], np.maximum.accumulate(picture) + 1])]
        self._length = length

    def last(self, start: int, positions: int, images: int) -> int | None:
        """The last end of a piece from `start` on within so many positions and image slots; None if there is none."""
        ends = np.arange(start + 1, min(start + positions, self._length) + 1)
        held = self._slots[ends] - self._slots[start]
        ends = ends[self._allowed[ends] & (held <= images)]
        return int(ends[-1]) if len(ends) else None


def _piece(example: Rendered, opening: int, start: int, end: int, prompt_tokens: int, number: int) -> Rendered:
    """Positions start .. end of an example behind a copy of its opening, as an example of its own."""
    keep = np.r_[0:opening, start:end]
    visual, pictures = example.visual_index[keep], example.pictures[keep]
    shown = pictures[pictures >= 0]
    first, behind = (int(shown[0]), int(shown[-1]) + 1) if len(shown) else (0, 0)
    skipped = sum(cut.slots for cut in example.cuts[:first])
    blocks = example.block_ids[keep]
    _, renumbered = np.unique(np.concatenate([[0], blocks]), return_inverse=True)
    return dataclasses.replace(
        example,
        tokens=example.tokens[keep],
        loss=example.loss[keep],
        branch_ids=example.branch_ids[keep],
        block_ids=renumbered[1:].astype(np.int32),
        positions=example.positions[0] + np.arange(len(keep), dtype=np.int32),
        visual_index=np.where(visual >= 0, visual - np.int32(skipped * prompt_tokens), np.int32(-1)),
        pictures=np.where(pictures >= 0, pictures - np.int32(first), np.int32(-1)),
        images=example.images[first:behind],
        cuts=example.cuts[first:behind],
        id=example.id if number == 1 else f"{example.id}#{number}",
    )
