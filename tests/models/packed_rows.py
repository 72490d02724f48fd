"""Rows packed at random, and attention over them by any kernel, against plain attention with the reference mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.batch import Batch
from vlm_jax.models.attention import attention
from vlm_jax.models.masks import reference_mask
from vlm_jax.models.sight import row_sights


def random_rows(rng, rows, length, *, one_path):
    """Rows of examples of random lengths, then padding; unless `one_path`, with blocks and two branches each."""
    planes = {name: np.zeros((rows, length), np.int32) for name in ("segments", "branches", "blocks", "positions")}
    for row in range(rows):
        at = segment = 0
        end = length - 1 - length // 20
        while at < end:
            segment, size = segment + 1, int(min(rng.integers(3, max(4, length // 2)), end - at))
            span, third = slice(at, at + size), size // 3
            planes["segments"][row, span] = segment
            planes["positions"][row, span] = np.arange(size)
            if third and not one_path:
                planes["blocks"][row, at : at + third - 1] = segment
                for branch in (1, 2):
                    stop = at + (branch + 1) * third if branch == 1 else at + size
                    planes["branches"][row, at + branch * third : stop] = branch
                planes["positions"][row, at + 2 * third : at + size] -= third
            at += size
    empty = np.zeros((rows, length), np.int32)
    return Batch(
        tokens=empty,
        targets=empty,
        loss_weights=empty.astype(np.float32),
        segment_ids=planes["segments"],
        branch_ids=planes["branches"],
        block_ids=planes["blocks"],
        positions=planes["positions"],
        example_index=empty,
        source_ids=empty[:, :1],
    )


def random_heads(rng, rows, length, heads, groups, size):
    """Queries, keys, values, and weights for the outputs."""
    shapes = ((rows, length, count, size) for count in (heads, groups, groups, heads))
    return tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)


def outputs_and_gradients(kernel, batch, heads, window=0, softcap=0.0):
    """What a kernel gives where the row has an example (0 elsewhere), and gradients of its weighted sum."""
    (_, y), gradients = _compiled(kernel, window, softcap)(batch, *heads)
    return y, gradients


@functools.lru_cache
def _compiled(kernel, window, softcap):
    def run(batch, queries, keys, values, weights):
        (sight,) = row_sights(batch, (window,), kernel, interpret=True)
        y = attention(queries, keys, values, sight, softcap=softcap)
        y = jnp.where((batch.segment_ids != 0)[:, :, None, None], y, 0)
        return (y * weights).sum(), y

    return jax.jit(jax.value_and_grad(run, (1, 2, 3), has_aux=True))


def plain(batch, heads, window=0, softcap=0.0):
    """The same by a softmax over all pairs, in float64."""
    queries, keys, values, weights = (np.asarray(x, np.float64) for x in heads)
    rows, length, count, size = queries.shape
    copies = count // keys.shape[2]
    keys, values = (np.repeat(x, copies, axis=2) for x in (keys, values))
    sees = np.asarray(reference_mask(batch, window))[:, None]
    scores = np.einsum("bshk,bthk->bhst", queries, keys) / np.sqrt(size)
    capped = softcap * np.tanh(scores / softcap) if softcap else scores
    slope = 1 - (capped / softcap) ** 2 if softcap else 1.0
    exps = np.exp(capped) * sees
    p = exps / np.maximum(exps.sum(-1, keepdims=True), 1e-300)
    y = np.einsum("bhst,bthk->bshk", p, values)
    real = np.asarray(batch.segment_ids != 0)[:, :, None, None]
    dy = weights * real
    dp = np.einsum("bshk,bthk->bhst", dy, values)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * slope / np.sqrt(size)

    def summed(x):
        return x.reshape(rows, length, -1, copies, size).sum(3)

    gradients = (
        np.einsum("bhst,bthk->bshk", ds, keys),
        summed(np.einsum("bhst,bshk->bthk", ds, queries)),
        summed(np.einsum("bhst,bshk->bthk", p, dy)),
    )
    return y * real, gradients


def assert_same(found, expected):
    """Outputs and gradients agree to rounding in float32."""
    np.testing.assert_allclose(found[0], expected[0], atol=2e-5)
    for name, a, b in zip(("queries", "keys", "values"), found[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5, err_msg=f"gradients of {name}")
