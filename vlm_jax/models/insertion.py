"""Blocks that do not belong to the decoder, run before some of its layers: where they stand, and the scan over both."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

Hidden = Float[Array, "B S D"]


@dataclasses.dataclass(frozen=True)
class Inserted:
    """C blocks, and the decoder's layers that they stand before."""

    layers: tuple[int, ...]
    """In ascending order; multiples of the decoder's pattern. One that is there twice is two blocks in a row, and the
    number of the decoder's layers is a block after all of them.
    """
    run: Callable[[Hidden, PyTree], Hidden]
    """Runs one block, a pure function of the residual stream and the block's entry of `blocks`."""
    blocks: PyTree
    """Arrays [C, …] that are scanned over: parameters and what else each block has of its own; a tuple of C entries for
    an unrolled decoder."""


class Run(NamedTuple):
    """`groups` in a row, each a block and `length` repeats of the decoder's pattern after it."""

    block: int
    """The first group's; -1 = no block stands before these repeats."""
    repeat: int
    """The first group's first."""
    groups: int
    length: int


def runs(places: tuple[int, ...], repeats: int) -> tuple[Run, ...]:
    """Groups of equal length in a row, so that each run is a scan: blocks before 3, 7, 11 of 13 repeats give

        repeats  0 1 2 | 3 4 5 6  7 8 9 10 | 11 12
        blocks         0          1          2           -> (-1, 0, 1, 3), (0, 3, 2, 4), (2, 11, 1, 2)

    Args:
        places: the repeats that blocks stand before, ascending; R = after all. A group may have no repeats.
        repeats: R.
    """
    found = [Run(-1, 0, 1, places[0])] if places[0] else []
    for block, (place, end) in enumerate(zip(places, [*places[1:], repeats], strict=True)):
        last = found[-1] if found else None
        if last is not None and last.block >= 0 and last.length == end - place:
            found[-1] = last._replace(groups=last.groups + 1)
        else:
            found.append(Run(block, place, 1, end - place))
    return tuple(found)


def scan_with_inserted(
    layer: Callable[[Any, Any], tuple[Any, Any]],
    state: tuple[Hidden, Any],
    layers: PyTree,
    inserted: Inserted,
    places: tuple[int, ...],
    *,
    every: bool,
) -> tuple[tuple[Hidden, Any], PyTree, Float[Array, "C B S D"] | tuple[()]]:
    """A scan over the decoder's repeats with another around it, over groups of a block and its repeats.

    Where groups are of one length, the stacked arrays are only seen otherwise ([R, …] as [C, R/C, …]); else each run
    takes its part of them.

    Args:
        layer: the body of the decoder's scan, (state, its entry of `layers`) -> (state, output).
        state: the residual stream, and what goes with it.
        layers: arrays [R, …].
        inserted: the blocks.
        places: the repeats that they stand before.
        every: whether to give what comes out of each block.

    Returns:
        The state, the outputs of all repeats stacked, and what comes out of each block.
    """

    def group(state: Any, entries: tuple[PyTree, PyTree]) -> tuple[Any, tuple[PyTree, Any]]:
        block, some = entries
        x = inserted.run(state[0], block)
        state, outputs = jax.lax.scan(layer, (x, state[1]), some)
        return state, (outputs, x if every else ())

    def part(stack: PyTree, start: int, count: int) -> PyTree:
        return jax.tree.map(lambda array: jax.lax.slice_in_dim(array, start, start + count), stack)

    repeats = len(jax.tree.leaves(layers)[0])
    outputs, given = [], []
    for run in runs(places, repeats):
        some = part(layers, run.repeat, run.groups * run.length)
        if run.block < 0:
            state, out = jax.lax.scan(layer, state, some)
            outputs.append(out)
            continue
        grouped = jax.tree.map(lambda array, run=run: array.reshape(run.groups, run.length, *array.shape[1:]), some)
        state, (out, each) = jax.lax.scan(group, state, (part(inserted.blocks, run.block, run.groups), grouped))
        outputs.append(jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), out))
        given.append(each)
    return state, _joined(outputs), _joined(given)


def _joined(parts: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)


def unstacked(stack: PyTree, place: int) -> PyTree:
    """Entry `place` of stacked arrays on one device; on a CPU it shares their memory."""
    return jax.tree.map(lambda array: jax.device_put(np.asarray(array)[place], may_alias=True), stack)
