"""What may be asked of an engine, and what it gives back piece by piece."""

import dataclasses
from typing import Literal

from data_pipelines.examples import Example
from vlm_jax.errors import UserError
from vlm_jax.generation.samplers import Sampler

Finish = Literal["stop", "length"]
"""stop: the model ended its turn, or wrote a stop string; length: as many tokens as were allowed."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt, with how it is to be answered.

    Raises:
        UserError: if a number is not positive, or a stop string is empty.
    """

    prompt: Example
    """Ends with the user's turn; without branches."""
    max_new_tokens: int = 64
    sampler: Sampler = Sampler()
    seed: int = 0
    """Of the draws, where the sampler draws: what is drawn depends on it and the sample's number, on nothing else."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these; they may span tokens."""
    samples: int = 1
    """How many answers; the prompt is read once for all of them."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}: give at least 1")
        if self.samples < 1:
            raise UserError(f"samples is {self.samples}: give at least 1")
        if not all(self.stop):
            raise UserError("a stop string is empty: give at least one character, or no stop string")


@dataclasses.dataclass(frozen=True)
class Piece:
    """The next piece of an answer: whole characters. Every answer's last piece, and only that one, says `finish`."""

    request: int
    """Which request, by its place among those asked together."""
    sample: int
    """Which of its samples."""
    text: str
    """May be empty in the last piece."""
    finish: Finish | None
    tokens: int
    """Tokens chosen for this answer so far, the one that ended it included."""


@dataclasses.dataclass(frozen=True)
class Score:
    """How likely a given answer is."""

    log_likelihood: float
    """Sum of the natural logarithms of its tokens' probabilities, the token that ends the turn included."""
    tokens: int
    """How many tokens that sum is over."""
    greedy: bool
    """Whether each of them is the model's first choice, so that greedy generation would give this answer."""
