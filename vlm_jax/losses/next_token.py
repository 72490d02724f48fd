"""Next-token prediction: the loss of pre-training and of supervised fine-tuning."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from vlm_jax.batch import Batch

Unembed = Callable[[Float[Array, "B C D"]], Float[Array, "B C V"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenScores:
    """What the model made of each target."""

    cross_entropy: Float[Array, "B S"]
    """-log p(target), in nats."""
    correct: Bool[Array, "B S"]
    """Whether the target is the most likely token."""


def score_tokens(
    unembed: Unembed, hidden: Float[Array, "B S D"], targets: Int[Array, "B S"], chunk: int = 0
) -> TokenScores:
    """Cross-entropy of every target, without holding float32 logits of the whole [B, S, V] at once.

    Args:
        unembed: hidden states -> float32 logits.
        hidden: the decoder's output.
        targets: token ids.
        chunk: positions of a row whose logits exist at the same time, forward and backward (B * chunk * V floats);
            0 = all. S need not be a multiple of it.
    """
    length = hidden.shape[1]
    if chunk <= 0 or chunk >= length:
        return _score(unembed, hidden, targets)
    count = -(-length // chunk)
    pad = ((0, 0), (0, count * chunk - length))

    # Part i takes positions i, i + count, …: where devices share a row's positions, each has its share of every part.
    def split(x: Array) -> Array:
        x = jnp.pad(x, pad + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], chunk, count, *x.shape[2:]), 2, 0)

    def body(_: None, part: tuple[Array, Array]) -> tuple[None, TokenScores]:
        return None, _score(unembed, *part)

    _, scores = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), None, (split(hidden), split(targets)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2).reshape(x.shape[1], -1)[:, :length], scores)


def _score(unembed: Unembed, hidden: Array, targets: Array) -> TokenScores:
    logits = unembed(hidden)
    largest = jnp.max(logits, -1)
    # A token that is only read has no logit; it is never a target with a weight.
    target = jnp.take_along_axis(logits, targets[..., None], -1, mode="clip")[..., 0]
    log_normaliser = jax.nn.logsumexp(logits, -1)
    return TokenScores(log_normaliser - target, target >= largest)


def weighted_sums(scores: TokenScores, batch: Batch, sources: int) -> dict[str, Float[Array, " sources"]]:
    """Per source: sum of weighted cross-entropy, of weights, of targets, of right targets, of real tokens.

    The loss is Σ w·ce / Σ w over the global batch; callers add these sums over accumulation steps, and the mesh adds
    them over devices, before anything is divided.

    Args:
        scores: of every position.
        batch: gives the weights and each position's source.
        sources: how many sources the stage's mixture has.
    """
    entry = jnp.take_along_axis(batch.source_ids, batch.example_index, axis=1)
    real = (batch.segment_ids != 0).astype(jnp.float32)
    weights = batch.loss_weights
    target = (weights > 0).astype(jnp.float32)
    member = (entry[..., None] == jnp.arange(sources)).astype(jnp.float32) * real[..., None]

    def total(x: Array) -> Array:
        return jnp.einsum("bs,bsn->n", x, member)

    return {
        "cross_entropy": total(weights * scores.cross_entropy),
        "weight": total(weights),
        "targets": total(target),
        "correct": total(target * scores.correct),
        "tokens": total(real),
    }


Forward = Callable[..., Any]
"""A model's `apply`: (variables, batch, …) -> Output, and with method="unembed" hidden states -> logits."""


def next_token_objective(
    forward: Forward, params: PyTree, batch: Batch, sources: int, chunk: int = 0
) -> tuple[Float[Array, ""], dict[str, Float[Array, " sources"]]]:
    """(Σ w·ce, its parts by source) of one part of a batch; the caller divides by Σ w of the whole batch.

    Args:
        forward: `VLM.apply`.
        params: all parameters.
        batch: packed rows.
        sources: how many sources the stage's mixture has.
        chunk: see `score_tokens`.
    """
    hidden = forward({"params": params}, batch, output="hidden").hidden
    scores = score_tokens(lambda x: forward({"params": params}, x, method="unembed"), hidden, batch.targets, chunk)
    sums = weighted_sums(scores, batch, sources)
    return sums["cross_entropy"].sum(), sums
