"""How likely given answers are: one forward pass over rows whose branches are the answers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.batch import Batch
from vlm_jax.generation.batches import power_bucket
from vlm_jax.generation.requests import Score
from vlm_jax.models.vlm import VLM, VLMConfig

_UNEMBEDDED_TOGETHER = 32


def score_rows(config: VLMConfig, params: Any, batch: Batch, vocabulary_size: int) -> list[list[Score]]:
    """For each row, the scores of its branches, in their order.

    Args:
        config, params: the model.
        batch: one example a row, each branch an answer; its loss weights say which targets are the answer's.
        vocabulary_size: the tokenizer's; other tokens get no probability.
    """
    weights = np.asarray(batch.loss_weights) > 0
    most = power_bucket(max(_UNEMBEDDED_TOGETHER, int(weights.sum(1).max())))
    # The places of targets first, in their order; what comes after them is not read.
    places = np.argsort(~weights, axis=1, kind="stable")[:, :most].astype(np.int32)
    places = np.pad(places, ((0, 0), (0, most - places.shape[1])))
    likelihoods, first = (np.asarray(x) for x in _score(config, params, batch, places, vocabulary_size))
    rows = []
    for row, chosen in enumerate(places):
        count = int(weights[row].sum())
        branches = np.asarray(batch.branch_ids)[row, chosen[:count]]
        scores = []
        for branch in range(1, int(branches.max(initial=0)) + 1):
            own = branches == branch
            total = float(likelihoods[row, :count][own].sum(dtype=np.float64))
            scores.append(Score(total, int(own.sum()), bool(first[row, :count][own].all())))
        rows.append(scores)
    return rows


@functools.partial(jax.jit, static_argnums=0)
def _score(
    config: VLMConfig, params: Any, batch: Batch, places: Int[Array, "B A"], vocabulary_size: int
) -> tuple[Float[Array, "B A"], Bool[Array, "B A"]]:
    """Log-likelihood of the target at each place, and whether it is the likeliest token."""
    model, variables = VLM(config), {"params": params}
    output: Any = model.apply(variables, batch, output="hidden")
    hidden = jnp.take_along_axis(output.hidden, places[:, :, None], axis=1)
    targets = jnp.take_along_axis(jnp.asarray(batch.targets), places, axis=1)

    def split(x: Array) -> Array:
        return x.reshape(x.shape[0], -1, _UNEMBEDDED_TOGETHER, *x.shape[2:]).swapaxes(0, 1)

    def one(part: tuple[Array, Array]) -> tuple[Array, Array]:
        logits: Any = model.apply(variables, part[0], method="unembed")
        logits = jnp.where(jnp.arange(logits.shape[-1]) < vocabulary_size, logits, -jnp.inf)
        likelihoods = jax.nn.log_softmax(logits, -1)
        of_target = jnp.take_along_axis(likelihoods, part[1][..., None], -1)[..., 0]
        return of_target, jnp.argmax(logits, -1) == part[1]

    found = jax.lax.map(one, (split(hidden), split(targets)))
    of_target, first = (x.swapaxes(0, 1).reshape(places.shape) for x in found)
    return of_target, first
