"""Samplers: from logits to the next token."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from vlm_jax.errors import UserError


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
        """Chooses one token a row.

        Args:
            logits: float32, one row a sequence.
            keys: one random key a row [B], so that what a row draws does not depend on the rows beside it.
        """
        if self.temperature == 0:
            return jnp.argmax(logits, -1).astype(jnp.int32)
        return jax.vmap(jax.random.categorical)(keys, self.restrict(logits)).astype(jnp.int32)

    def restrict(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        """Logits / temperature, -inf for tokens that may not be drawn. Of equally likely tokens, low ids are kept."""
        # Subtracting the largest first keeps a tiny temperature from making the best token's logit infinite.
        logits = (logits - jnp.max(logits, -1, keepdims=True)) / self.temperature
        size = logits.shape[-1]
        if not 0 < self.top_k < size and self.top_p == 1:
            return logits
        order = jnp.argsort(-logits, axis=-1, stable=True)
        falling = jnp.take_along_axis(logits, order, -1)
        if 0 < self.top_k < size:
            falling = jnp.where(jnp.arange(size) < self.top_k, falling, -jnp.inf)
        if self.top_p < 1:
            chances = jax.nn.softmax(falling, -1)
            # A token stays while the mass before it falls short of top_p; so the most likely one always stays.
            before = jnp.cumsum(chances, -1) - chances
            falling = jnp.where((before < self.top_p) | (jnp.arange(size) == 0), falling, -jnp.inf)
        return jnp.put_along_axis(logits, order, falling, -1, inplace=False)
