"""An optimiser whose moments lie in the host's memory, and come to the device a layer at a time while it updates.

Each parameter is updated by itself. One that is stacked by layers goes through a loop: layer l's moments are copied to
the device, updated there with layer l's gradient, and copied back, so that the device holds no more than one layer of
one parameter at a time. The state is that of the optimiser itself, number for number; only where it lies is different.
"""

from collections.abc import Mapping
from typing import Any

import jax
import optax
from jaxtyping import Array, PyTree

STREAMED = (
    "adabelief",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "amsgrad",
    "lion",
    "nadam",
    "nadamw",
    "radam",
    "rmsprop",
    "sgd",
    "yogi",
)
"""Optimisers of optax that update number by number, so that a layer's share of a parameter can go by itself."""

_DEVICE, _HOST = jax.memory.Space.Device, jax.memory.Space.Host

Key = tuple[Any, ...]
Names = Mapping[Key, str]


def streamed(inner: optax.GradientTransformation, axes: Mapping[str, Any]) -> optax.GradientTransformation:
    """`inner`, whose state may lie on the host; where it does not, it is `inner` itself.

    Args:
        inner: updates number by number.
        axes: logical axes of every parameter by name; those whose first is "layers" go layer by layer.
    """

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        if not any(_on_host(leaf) for leaf in jax.tree.leaves(state)):
            return inner.update(updates, state, params)
        return _update_apart(inner, axes, updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def _on_host(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.typeof(leaf).memory_space == _HOST


def _update_apart(
    inner: optax.GradientTransformation, axes: Mapping[str, Any], updates: PyTree, state: PyTree, params: PyTree
) -> tuple[PyTree, PyTree]:
    """Calls `inner` once a parameter, with its part of the state."""
    gradients, tree = jax.tree_util.tree_flatten_with_path(updates)
    values = [leaf for _, leaf in jax.tree_util.tree_leaves_with_path(params)]
    entries, state_tree = jax.tree_util.tree_flatten_with_path(state)
    places = {path: i for i, (path, _) in enumerate(entries)}
    old, new = [leaf for _, leaf in entries], [leaf for _, leaf in entries]
    done = []
    for (path, gradient), value in zip(gradients, values, strict=True):
        shape = jax.eval_shape(inner.init, {"": value})
        own, own_tree = jax.tree_util.tree_flatten_with_path(shape)
        # A moment of this parameter has its path where the part's own state has the only key there is.
        found = [places[(*at[:-1], *path) if _is_moment(at) else at] for at, _ in own]
        part = jax.tree.unflatten(own_tree, [old[i] for i in found])
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        step = _by_layers if axes[name][0] == "layers" else _whole
        change, part = step(inner, gradient, part, value)
        done.append(change)
        for i, leaf in zip(found, jax.tree.leaves(part), strict=True):
            new[i] = leaf
    return jax.tree.unflatten(tree, done), jax.tree.unflatten(state_tree, new)


def _is_moment(path: Key) -> bool:
    return bool(path) and isinstance(path[-1], jax.tree_util.DictKey) and path[-1].key == ""


def _whole(inner: optax.GradientTransformation, gradient: Array, part: PyTree, value: Array) -> tuple[Array, PyTree]:
    """One parameter: its moments come, are updated, and go."""
    fetched = jax.tree.map(lambda leaf: jax.device_put(leaf, _DEVICE) if _on_host(leaf) else leaf, part)
    change, after = inner.update({"": gradient}, fetched, {"": value})
    return change[""], jax.tree.map(_like, after, part)


def _like(leaf: Array, before: Array) -> Array:
    moved: Array = jax.device_put(leaf, _HOST) if _on_host(before) else leaf
    return moved


def _by_layers(
    inner: optax.GradientTransformation, gradient: Array, part: PyTree, value: Array
) -> tuple[Array, PyTree]:
    """The same, one layer after the other; counters move once."""
    leaves, tree = jax.tree.flatten(part)
    moments = [leaf if _on_host(leaf) else None for leaf in leaves]

    def body(layer: Array, carry: tuple[Array, list[Any], list[Any]]) -> tuple[Array, list[Any], list[Any]]:
        changes, moments, _ = carry

        def cut(stack: Array) -> Array:
            return jax.lax.dynamic_index_in_dim(stack, layer, 0, keepdims=False)

        def put(stack: Array, one: Array) -> Array:
            return jax.lax.dynamic_update_index_in_dim(stack, one, layer, 0)

        fetched = [
            leaf if moment is None else jax.device_put(cut(moment), _DEVICE)
            for leaf, moment in zip(leaves, moments, strict=True)
        ]
        change, after = inner.update({"": cut(changes)}, jax.tree.unflatten(tree, fetched), {"": cut(value)})
        changed = jax.tree.leaves(after)
        moments = [
            None if moment is None else put(moment, jax.device_put(leaf, _HOST))
            for leaf, moment in zip(changed, moments, strict=True)
        ]
        counters = [leaf if moment is None else None for leaf, moment in zip(changed, moments, strict=True)]
        return put(changes, change[""]), moments, counters

    counters = [leaf if moment is None else None for leaf, moment in zip(leaves, moments, strict=True)]
    changes, moments, counters = jax.lax.fori_loop(0, gradient.shape[0], body, (gradient, moments, counters))
    after = [b if a is None else a for a, b in zip(moments, counters, strict=True)]
    return changes, jax.tree.unflatten(tree, after)
