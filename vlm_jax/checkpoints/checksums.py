"""Checksums of arrays that do not depend on how they are laid out over devices.

Orbax restores flipped bytes without an error. A checksum here is a sum of integers modulo 2³² over all elements, so it
is the same in any order of summation, on any mesh and any number of hosts, and it is computed where the array lives.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, Shaped, UInt32

from vlm_jax.parallel.together import compiled_together

_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def checksum(array: Shaped[Array, "..."]) -> UInt32[Array, "2"]:
    """Two sums of bits(x_i) * odd(i), modulo 2³², with different odd multipliers of the element's index i.

    A change of any one element changes both sums, since an odd multiplier has an inverse.

    Args:
        array: of a dtype of one, two or four bytes.
    """
    if jax.typeof(array).memory_space == jax.memory.Space.Host:
        array = jax.device_put(array, jax.memory.Space.Device)
    bits = _BITS[array.dtype.itemsize]
    flat = array.astype(jnp.uint8) if array.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(array, bits)
    index = jnp.zeros(array.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(array.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= array.shape[axis]

    def total(multiplier: int) -> Array:
        odd = (index * jnp.uint32(multiplier)) ^ (index >> 15)
        return jnp.sum(flat.astype(jnp.uint32) * (odd | jnp.uint32(1)), dtype=jnp.uint32)

    return jnp.stack([total(0x9E3779B1), total(0x85EBCA6B)])


@functools.cache
def _checksums(whole: NamedSharding | None) -> Callable[[PyTree], PyTree]:
    """The program; of arrays over several processes each gets all sums."""
    program = jax.jit(lambda tree: jax.tree.map(checksum, tree), out_shardings=whole)
    return program if whole is None else compiled_together(program)


def tree_checksums(tree: PyTree) -> dict[str, str]:
    """{leaf's path: "dtype:16 hexadecimal digits"} of every array of a tree.

    Arrays may lie on devices of several processes, which then must all ask.
    """
    places = {leaf.sharding for leaf in jax.tree.leaves(tree) if not getattr(leaf, "is_fully_addressable", True)}
    whole = next((NamedSharding(place.mesh, PartitionSpec()) for place in places), None)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    program, arrays = _checksums(whole), [leaf for _, leaf in leaves]
    here = [None if _lies_on_host(array) else array for array in arrays]
    found = iter(jax.device_get(jax.tree.leaves(program(here))))
    # What lies on the host is there for want of room on the devices: it goes through them array by array.
    sums = [
        jax.device_get(program(array)) if on_device is None else next(found)
        for array, on_device in zip(arrays, here, strict=True)
    ]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}:{a:08x}{b:08x}"
        for (path, leaf), (a, b) in zip(leaves, sums, strict=True)
    }


def _lies_on_host(array: Any) -> bool:
    kind = getattr(getattr(array, "sharding", None), "memory_kind", None)
    return kind is not None and str(kind).endswith("_host")


def damaged_leaves(tree: PyTree, expected: Mapping[str, Any]) -> list[str]:
    """Paths whose checksum is not the expected one; a path without an expectation counts as damaged."""
    return [path for path, value in tree_checksums(tree).items() if expected.get(path) != value]


def file_checksum(content: bytes) -> str:
    """16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def seal(sums: Mapping[str, str]) -> bytes:
    """The content of checksums.json: the sums, and under the empty name one over themselves."""
    return _json({**sums, "": file_checksum(_json(sums))})


def unseal(content: bytes) -> dict[str, str]:
    """The sums that `seal` wrote.

    Raises:
        ValueError: if they were changed since.
    """
    sums = json.loads(content)
    if not isinstance(sums, dict) or sums.pop("", file_checksum(_json(sums))) != file_checksum(_json(sums)):
        raise ValueError("it is not what was saved")
    return sums


def _json(sums: Mapping[str, str]) -> bytes:
    return (json.dumps(sums, indent=1, ensure_ascii=False) + "\n").encode()
