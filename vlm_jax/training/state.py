"""What training changes: parameters, optimiser state, step."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Int, PyTree

from vlm_jax.optim import Rule, merge, split
from vlm_jax.parallel import Layout, put_same, replicated
from vlm_jax.parallel.together import compiled_together
from vlm_jax.training.loss_watch import LossWatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and writes."""

    step: Int[Array, ""]
    """Steps done in this stage."""
    trained: dict[str, Any]
    """Parameters with a rate; the only ones with gradients and optimiser state."""
    frozen: dict[str, Any]
    """Parameters without a rate, in the compute dtype."""
    optimizer: PyTree
    watch: LossWatch | None = None
    """Where the policy looks for spikes: what the loss was in the steps before."""

    @property
    def params(self) -> dict[str, Any]:
        """All parameters, nested as the model takes them."""
        return merge(self.trained, self.frozen)


def create_state(
    params: PyTree,
    rules: Mapping[str, Rule],
    optimizer: optax.GradientTransformation,
    compute_dtype: str,
    layout: Layout,
    *,
    offload: bool = False,
) -> TrainState:
    """The state before the first step of a stage; `params` are given up.

    Args:
        params: all parameters.
        rules: what trains (`optim.assign_rules`).
        optimizer: of the stage.
        compute_dtype: frozen parameters are cast to it.
        layout: where the state lives; optimiser moments lie as their parameters do.
        offload: moments lie in the hosts' memory.
    """
    trained, frozen = split(params, rules)
    frozen = jax.tree.map(lambda x: x.astype(compute_dtype), frozen)
    shardings = jax.tree.map(lambda x: x.sharding, abstract_optimizer(optimizer, trained, layout, offload=offload))
    return TrainState(
        step=put_same(np.int32(0), replicated(layout)),
        trained=trained,
        frozen=frozen,
        optimizer=compiled_together(jax.jit(optimizer.init, out_shardings=shardings))(trained),
    )


def abstract_optimizer(
    optimizer: optax.GradientTransformation, trained: PyTree, layout: Layout, *, offload: bool = False
) -> PyTree:
    """Shapes, dtypes and shardings of the optimiser's state for given (abstract) parameters.

    A moment has the sharding of the parameter whose path ends its own path and whose shape it has; counters and
    factored moments are replicated. With `offload` those of parameters lie in the memory of each device's host.
    """
    by_path = {
        jax.tree_util.keystr(path): (leaf.shape, leaf.sharding)
        for path, leaf in jax.tree_util.tree_leaves_with_path(trained)
    }

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding: NamedSharding = replicated(layout)
        for start in range(len(path)):
            found = by_path.get(jax.tree_util.keystr(path[start:]))
            if found and found[0] == leaf.shape:
                sharding = found[1].with_memory_kind("pinned_host") if offload and leaf.ndim else found[1]
                break
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, trained))
