"""An example laid out as arrays of token ids, and what collects them."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int32

from data_pipelines.examples import Example, Image
from data_pipelines.tiles import Cut, Place
from data_pipelines.tokenizers import Tokenizer


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
    """Which of the example's I*N visual tokens (slot by slot) fills this position; -1 = none."""
    pictures: Int32[np.ndarray, "L"]
    """Number, from 0, of the picture whose place this is: its visual tokens, the marks of its tiles and its
    separators, or the one marker of a picture that is seen through cross-attention only; -1 = text."""
    images: tuple[Image, ...]
    cuts: tuple[Cut, ...]
    """How each of the pictures fills its image slots."""
    id: str
    source: str
    labels: tuple[float, ...] = ()
    """Preference data: a label for each branch, which makes every branch an entry of its own in the batch."""
    instruction: Int32[np.ndarray, "Q"] | None = None
    """Ids of what the user asks, for adapters that read it with the pictures; None = there are no pictures, or it is
    not read."""

    @property
    def entries(self) -> int:
        """How many entries of the batch's per-example arrays it takes."""
        return max(1, len(self.labels))

    @property
    def length(self) -> int:
        """L, positions."""
        return len(self.tokens)

    @property
    def slots(self) -> int:
        """Image slots that its pictures take."""
        return sum(cut.slots for cut in self.cuts)


class Writer:
    """Collects runs of tokens that share weight, branch and block, and spreads them over positions at the end."""

    def __init__(self, position: int = 0) -> None:
        self.tokens: list[int] = []
        self.runs: list[tuple[int, float, int, int, int]] = []
        self.branch = 0
        self.position = position
        self._visual: list[tuple[int, np.ndarray]] = []
        self._places: list[tuple[int, int, int]] = []
        self._shown = self._visual_tokens = 0

    def add(self, tokens: Sequence[int], weight: float = 0.0, block: int = 0) -> None:
        """Appends tokens."""
        self.runs.append((len(tokens), weight, self.branch, block, self.position))
        self.tokens += tokens
        self.position += len(tokens)

    def add_picture(self, place: Place, tokenizer: Tokenizer, block: int = 0) -> None:
        """Appends the place of the next picture; all of it is one block, if it is one."""
        start = len(self.tokens)
        for mark, visual in place.runs:
            if mark:
                self.add(template_ids(mark, tokenizer), block=block)
            self._visual.append((len(self.tokens), visual + np.int32(self._visual_tokens)))
            self.add([tokenizer.image_id or 0] * len(visual), block=block)
        if place.after:
            self.add(template_ids(place.after, tokenizer), block=block)
        self._places.append((start, len(self.tokens), self._shown))
        self._shown += 1
        self._visual_tokens += place.visual_tokens

    def start_over(self) -> None:
        """The next picture is the first one again, shown a second time."""
        self._shown = self._visual_tokens = 0

    def finish(self, example: Example, places: Sequence[Place]) -> Rendered:
        """Turns the runs into arrays.

        Args:
            example: what was laid out.
            places: of its pictures.
        """
        columns = np.array(self.runs, np.float64)
        count, weight, branch, block, start = (columns[:, number] for number in range(5))
        lengths = count.astype(np.int64)

        def spread(column: np.ndarray) -> np.ndarray:
            return np.repeat(column.astype(np.int32), lengths)

        within = np.arange(len(self.tokens), dtype=np.int32) - spread(np.cumsum(count) - count)
        visual_index, pictures = np.full((2, len(self.tokens)), -1, np.int32)
        for at, visual in self._visual:
            visual_index[at : at + len(visual)] = visual
        for first, end, number in self._places:
            pictures[first:end] = number
        return Rendered(
            tokens=np.array(self.tokens, np.int32),
            loss=np.repeat(weight.astype(np.float32), lengths),
            branch_ids=spread(branch),
            block_ids=spread(block),
            positions=spread(start) + within,
            visual_index=visual_index,
            pictures=pictures,
            images=example.images,
            cuts=tuple(place.cut for place in places),
            id=example.id,
            source=example.source,
            labels=example.labels,
        )


@functools.lru_cache(maxsize=4096)
def template_ids(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of the template's own text, control tokens among it."""
    ids: list[int] = []
    at = 0
    for start, end, id in tokenizer.find_control(text):
        ids += [*tokenizer.encode_run(text[at:start], first=False)[0], id]
        at = end
    return (*ids, *tokenizer.encode_run(text[at:], first=False)[0])
