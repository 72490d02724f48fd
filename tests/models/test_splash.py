"""Every kernel of attention against the reference mask; Pallas kernels run in jax's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight_devices_attention import CASES
from packed_rows import assert_same, outputs_and_gradients, plain, random_heads, random_rows

from vlm_jax.models.attention import attention
from vlm_jax.models.masks import reference_mask
from vlm_jax.models.sight import row_sights
from vlm_jax.models.splash import block_sizes, choose_block, mask_blocks

SHAPES = [
    # length, heads, groups, head size, window, softcap
    (130, 4, 2, 64, 0, 0.0),
    (700, 2, 1, 72, 0, 4.0),
    (257, 2, 2, 80, 60, 0.0),
    (128, 3, 1, 96, 20, 2.0),
]


@pytest.mark.parametrize("kernel", ["splash", "splash_dynamic"])
@pytest.mark.parametrize(("length", "heads", "groups", "size", "window", "softcap"), SHAPES)
def test_a_kernel_is_the_reference_forward_and_backward(kernel, length, heads, groups, size, window, softcap):
    rng = np.random.default_rng(length)
    batch = random_rows(rng, 2, length, one_path=kernel == "splash")
    arrays = random_heads(rng, 2, length, heads, groups, size)
    found = outputs_and_gradients(kernel, batch, arrays, window, softcap)
    assert_same(found, plain(batch, arrays, window, softcap))


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (400, 3.0)])
def test_long_rows_by_groups_of_queries_are_the_reference(window, softcap):
    rng = np.random.default_rng(0)
    batch = random_rows(rng, 2, 1030, one_path=False)
    arrays = random_heads(rng, 2, 1030, 4, 2, 8)
    assert_same(outputs_and_gradients("xla", batch, arrays, window, softcap), plain(batch, arrays, window, softcap))


def test_a_dense_mask_over_many_keys_goes_by_groups_too():
    rng = np.random.default_rng(0)
    queries, _, _, _ = random_heads(rng, 1, 700, 2, 1, 8)
    keys, values = (jnp.asarray(rng.standard_normal((1, 2000, 1, 8)), jnp.float32) for _ in range(2))
    sees = jnp.asarray(rng.random((1, 700, 2000)) < 0.1)
    found = jax.jit(attention)(queries, keys, values, sees)
    expected = jax.nn.dot_product_attention(queries, keys, values, mask=sees[:, None])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    largest = max(
        np.prod(variable.aval.shape)
        for equation in jax.make_jaxpr(attention)(queries, keys, values, sees).eqns
        for variable in equation.outvars
        if variable.aval.dtype == jnp.float32
    )
    assert largest < 2 * 700 * 2000  # the scores of two heads were never there together


@pytest.mark.parametrize("kernel", ["splash", "splash_dynamic", "xla"])
def test_nothing_leaks_from_example_to_example(kernel):
    """Whatever stands in one example, and in padding, the others have the same outputs and gradients bit for bit."""
    rng = np.random.default_rng(3)
    batch = random_rows(rng, 1, 200, one_path=kernel == "splash")
    arrays = random_heads(rng, 1, 200, 2, 1, 16)
    segments = np.asarray(batch.segment_ids[0])
    assert {0, 1, 2} <= set(segments)
    elsewhere = np.flatnonzero(segments != 1)
    noise = random_heads(rng, 1, 200, 2, 1, 16)
    changed = tuple(x.at[:, elsewhere].set(7 * y[:, elsewhere]) for x, y in zip(arrays, noise, strict=True))
    before, after = (outputs_and_gradients(kernel, batch, given) for given in (arrays, changed))
    own = segments == 1
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a[:, own], b[:, own])
    assert np.abs(np.asarray(before[0] - after[0])[:, segments == 2]).max() > 0.1


def test_nothing_leaks_from_branch_to_branch():
    rng = np.random.default_rng(4)
    batch = random_rows(rng, 1, 140, one_path=False)
    arrays = random_heads(rng, 1, 140, 2, 2, 16)
    first, second = ((batch.segment_ids[0] == 1) & (batch.branch_ids[0] == branch) for branch in (1, 2))
    changed = tuple(jnp.where(first[None, :, None, None], 5.0, x) for x in arrays)
    before, after = (outputs_and_gradients("splash_dynamic", batch, given) for given in (arrays, changed))
    np.testing.assert_array_equal(before[0][:, second], after[0][:, second])
    assert np.abs(np.asarray(before[0] - after[0])[:, first]).max() > 0.1


@pytest.mark.parametrize("kernel", ["splash", "splash_dynamic", "xla"])
def test_rows_of_nothing_but_padding_are_finite(kernel):
    rng = np.random.default_rng(5)
    batch = random_rows(rng, 1, 40, one_path=True)
    empty = jax.tree.map(np.zeros_like, batch)
    queries, keys, values, _ = random_heads(rng, 1, 40, 2, 2, 8)
    (sight,) = row_sights(empty, (0,), kernel, interpret=True)
    y, gradient = jax.jit(jax.value_and_grad(lambda q: attention(q, keys, values, sight).sum()))(queries)
    assert np.isfinite(y)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("length", [1, 100, 128, 640, 1000, 1300, 2048, 3968, 4096, 4099, 32768])
@pytest.mark.parametrize("shards", [1, 2, 8])
def test_blocks_fill_rows_and_waste_little(length, shards):
    block, padded = choose_block(length, shards)
    assert padded >= length
    assert block % 128 == 0
    assert (padded // shards) % block == 0
    assert padded // shards <= 17 / 16 * (-(-length // shards // 128) * 128 + 128)
    sizes = block_sizes(block)
    assert block <= 1024
    assert block * sizes.block_kv_compute <= 1024 * 512
    assert block % sizes.block_kv_compute == 0


def test_common_rows_have_blocks_of_a_quarter():
    assert [choose_block(length) for length in (512, 1024, 2048, 4096, 8192)] == [
        (512, 512),
        (512, 1024),
        (512, 2048),
        (1024, 4096),
        (1024, 8192),
    ]
    assert choose_block(4096, 16) == (256, 4096)


def test_mask_blocks_are_the_mask():
    batch = random_rows(np.random.default_rng(6), 2, 600, one_path=False)
    mask = np.asarray(reference_mask(batch))
    blocks = mask_blocks(jnp.asarray(mask))
    rows, count, _, size, _ = blocks.forward.shape
    whole = np.asarray(blocks.forward).swapaxes(2, 3).reshape(rows, count * size, count * size)
    np.testing.assert_array_equal(whole[:, :600, :600], mask | np.eye(600, dtype=bool))
    assert not whole[:, :600, 600:].any()
    turned = np.asarray(blocks.backward).transpose(0, 1, 4, 2, 3).reshape(rows, count * size, count * size)
    np.testing.assert_array_equal(turned, whole)
    np.testing.assert_array_equal(blocks.seen, blocks.forward.any((3, 4)))


def test_kernels_are_the_reference_on_eight_devices():
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    program = Path(__file__).with_name("eight_devices_attention.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == len(CASES)
