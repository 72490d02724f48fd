"""Samplers: from logits to the next token."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from vlm_jax.errors import UserError


class Settings(NamedTuple):
    """A sampler for each row. Traced, so that other settings compile nothing."""

    temperature: Float[Array | np.ndarray, " B"]
    top_k: Int[Array | np.ndarray, " B"]
    top_p: Float[Array | np.ndarray, " B"]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How a token is chosen.

    temperature: 0 = the most likely token (greedy); 1 = as the model says; between, sharper.
    top_k: draw from the k most likely tokens only; 0 = all.
    top_p: draw from the smallest set of most likely tokens with at least this probability mass, taken after temperature
        and top_k (Holtzman et al. 2020, "nucleus sampling", section 3.1); 1 = all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"sampler temperature {self.temperature}: give 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise UserError(f"sampler top_k {self.top_k}: give 0 (all tokens) or a positive number")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampler top_p {self.top_p}: give a probability mass above 0, up to 1")

    def __call__(self, logits: Float[Array, "B V"], keys: PRNGKeyArray) -> Int[Array, " B"]:
        """Chooses one token a row, as `choose` does."""
        return choose(logits, keys, settings_of([self] * logits.shape[0]))


def settings_of(samplers: Sequence[Sampler]) -> Settings:
    """The settings of B samplers, one a row, as host arrays."""
    return Settings(
        temperature=np.array([sampler.temperature for sampler in samplers], np.float32),
        top_k=np.array([min(sampler.top_k, np.iinfo(np.int32).max) for sampler in samplers], np.int32),
        top_p=np.array([sampler.top_p for sampler in samplers], np.float32),
    )


def choose(logits: Float[Array, "B V"], keys: PRNGKeyArray, settings: Settings) -> Int[Array, " B"]:
    """Chooses one token a row.

    Args:
        logits: float32, one row a sequence.
        keys: one random key a row [B], so that what a row draws does not depend on the rows beside it.
        settings: how each row chooses.
    """
    likeliest = _first_largest(logits)

    def draw() -> Array:
        drawn = jax.vmap(jax.random.categorical)(keys, restrict(logits, settings)).astype(jnp.int32)
        return jnp.where(settings.temperature == 0, likeliest, drawn)

    # Where all rows are greedy, no random bits are made and nothing is sorted.
    return jax.lax.cond(jnp.any(settings.temperature > 0), draw, lambda: likeliest)


def _first_largest(logits: Float[Array, "B V"]) -> Int[Array, " B"]:
    """argmax in two passes, each of which XLA for CPUs vectorises: nine times as fast."""
    size = logits.shape[-1]
    largest = jnp.max(logits, -1, keepdims=True)
    places = jnp.where(logits == largest, jnp.arange(size, dtype=jnp.int32), size - 1)
    return jnp.min(places, -1)


def restrict(logits: Float[Array, "B V"], settings: Settings) -> Float[Array, "B V"]:
    """Logits / temperature, -inf for tokens that may not be drawn. Of equally likely tokens, low ids are kept."""
    temperature = settings.temperature[:, None]
    # Subtracting the largest first keeps a tiny temperature from making the best token's logit infinite.
    logits = (logits - jnp.max(logits, -1, keepdims=True)) / jnp.where(temperature == 0, 1, temperature)
    size = logits.shape[-1]
    top_k, top_p = settings.top_k[:, None], settings.top_p[:, None]
    top_k = jnp.where(top_k == 0, size, top_k)

    def limited() -> Array:
        order = jnp.argsort(-logits, axis=-1, stable=True)
        falling = jnp.take_along_axis(logits, order, -1)
        falling = jnp.where(jnp.arange(size) < top_k, falling, -jnp.inf)
        chances = jax.nn.softmax(falling, -1)
        # A token stays while the mass before it falls short of top_p; so the most likely one always stays.
        before = jnp.cumsum(chances, -1) - chances
        kept = (before < top_p) | (top_p == 1) | (jnp.arange(size) == 0)
        return jnp.put_along_axis(logits, order, jnp.where(kept, falling, -jnp.inf), -1, inplace=False)

    return jax.lax.cond(jnp.any((top_k < size) | (top_p < 1)), limited, lambda: logits)
