"""Checksums notice any single change, do not depend on layout, and seal the list they stand in."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.checkpoints.checksums import checksum, damaged_leaves, file_checksum, seal, tree_checksums, unseal

DTYPES = {"float32": np.uint32, "int32": np.uint32, "bfloat16": np.uint16, "float16": np.uint16, "uint8": np.uint8}
SHAPE = (3, 5, 7)

summed = jax.jit(checksum)


def array_of(bits, dtype):
    return jax.lax.bitcast_convert_type(jnp.asarray(bits), dtype)


def in_numpy(bits):
    """The definition, element after element, with Python's integers."""
    sums = [0, 0]
    for i, x in enumerate(bits.ravel().tolist()):
        for k, multiplier in enumerate((0x9E3779B1, 0x85EBCA6B)):
            sums[k] += x * (((i * multiplier) % 2**32 ^ (i >> 15)) | 1)
    return [s % 2**32 for s in sums]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(sorted(DTYPES)), seed=st.integers(0, 2**32 - 1))
def test_any_change_of_one_element_changes_both_sums(data, dtype, seed):
    unsigned = DTYPES[dtype]
    bits = np.random.default_rng(seed).integers(0, np.iinfo(unsigned).max, SHAPE, unsigned, endpoint=True)
    before = np.asarray(summed(array_of(bits, dtype)))
    assert before.tolist() == in_numpy(bits)
    place = data.draw(st.tuples(*(st.integers(0, n - 1) for n in SHAPE)), "place")
    change = data.draw(st.integers(1, np.iinfo(unsigned).max), "change")
    bits[place] ^= unsigned(change)
    assert (np.asarray(summed(array_of(bits, dtype))) != before).all()


@pytest.mark.parametrize("value", [jnp.zeros(()), jnp.array([True, False]), jnp.float32(-0.0), jnp.zeros((0, 3))])
def test_scalars_flags_and_empty_arrays_have_one(value):
    assert summed(value).shape == (2,)


def test_minus_zero_and_kinds_of_nan_differ():
    assert (summed(jnp.float32(-0.0)) != summed(jnp.float32(0.0))).all()
    nans = [array_of(np.uint32(bits), "float32") for bits in (0x7FC00000, 0x7FC00001)]
    assert (summed(nans[0]) != summed(nans[1])).all()


def test_order_matters():
    x = jnp.arange(1.0, 13.0).reshape(3, 4)
    sums = {tuple(summed(y).tolist()) for y in (x, x[::-1], x[:, ::-1], x.T.reshape(3, 4))}
    assert len(sums) == 4


def test_damaged_leaves_are_named():
    tree = {"a": {"b": jnp.ones(3)}, "c": jnp.arange(4)}
    sums = tree_checksums(tree)
    assert set(sums) == {"a/b", "c"}
    assert damaged_leaves(tree, sums) == []
    assert damaged_leaves({**tree, "c": jnp.arange(4).at[2].set(9)}, sums) == ["c"]
    assert damaged_leaves({**tree, "c": jnp.arange(4).astype(jnp.uint32)}, sums) == ["c"]
    assert damaged_leaves({**tree, "d": jnp.ones(1)}, sums) == ["d"]


def test_a_sealed_list_comes_back_and_a_changed_one_does_not():
    sums = {"params/шар": "float32:0011223344556677", "files/config.json": file_checksum(b"{}")}
    content = seal(sums)
    assert unseal(content) == sums
    for old, new in ((b"float32", b"float16"), (b"0011", b"0010"), (b"config", b"confiG")):
        with pytest.raises(ValueError, match="not what was saved"):
            unseal(content.replace(old, new))
    for content in (b"", b"[]", b"\xff", json.dumps(None).encode()):
        with pytest.raises(ValueError, match=r"Expecting|not what was saved|decode"):
            unseal(content)
