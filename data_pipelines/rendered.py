"""An example laid out as arrays of token ids, and what collects them."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int32

from data_pipelines.examples import Example, Image


@dataclasses.dataclass(frozen=True, eq=False)
class Rendered:
    """One example as arrays of equal length L, trunk first, then branch after branch."""

    tokens: Int32[np.ndarray, "L"]
    loss: Float32[np.ndarray, "L"]
    """Weight of *this* token as a target (the packer moves it to the position that predicts it)."""
    branch_ids: Int32[np.ndarray, "L"]
    """0 = trunk; branches are counted from 1."""
    block_ids: Int32[np.ndarray, "L"]
    """1.. = the picture it belongs to, by order in the example; 0 = no block."""
    positions: Int32[np.ndarray, "L"]
    """From 0; every branch continues from the end of the trunk."""
    visual_index: Int32[np.ndarray, "L"]
    """Which of the example's I*N visual tokens (picture by picture) fills this position; -1 = none."""
    images: tuple[Image, ...]
    id: str
    source: str
    labels: tuple[float, ...] = ()
    """Preference data: a label for each branch, which makes every branch an entry of its own in the batch."""

    @property
    def entries(self) -> int:
        """How many entries of the batch's per-example arrays it takes."""
        return max(1, len(self.labels))

    @property
    def length(self) -> int:
        """L, positions."""
        return len(self.tokens)


class Writer:
    """Collects runs of tokens that share weight, branch and block, and spreads them over positions at the end."""

    def __init__(self, position: int = 0) -> None:
        self.tokens: list[int] = []
        self.runs: list[tuple[int, float, int, int, int, int]] = []
        self.branch = 0
        self.position = position

    def add(self, tokens: Sequence[int], weight: float = 0.0, block: int = 0, visual: int = -1) -> None:
        """Appends tokens; `visual` is the index of the first one's visual token."""
        self.runs.append((len(tokens), weight, self.branch, block, self.position, visual))
        self.tokens += tokens
        self.position += len(tokens)

    def finish(self, example: Example) -> Rendered:
        """Turns the runs into arrays."""
        columns = np.array(self.runs, np.float64)
        count, weight, branch, block, start, visual = (columns[:, number] for number in range(6))
        lengths = count.astype(np.int64)

        def spread(column: np.ndarray) -> np.ndarray:
            return np.repeat(column.astype(np.int32), lengths)

        within = np.arange(len(self.tokens), dtype=np.int32) - spread(np.cumsum(count) - count)
        first_visual = spread(visual)
        return Rendered(
            tokens=np.array(self.tokens, np.int32),
            loss=np.repeat(weight.astype(np.float32), lengths),
            branch_ids=spread(branch),
            block_ids=spread(block),
            positions=spread(start) + within,
            visual_index=np.where(first_visual < 0, np.int32(-1), first_visual + within),
            images=example.images,
            id=example.id,
            source=example.source,
            labels=example.labels,
        )
