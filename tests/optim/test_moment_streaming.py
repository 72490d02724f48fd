"""Moments on the host: the same numbers as on the device, and the device's memory is free of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vlm_jax.errors import UserError
from vlm_jax.optim import OptimizerConfig, Rule, Schedule, assign_rules, build_optimizer
from vlm_jax.optim.streaming import STREAMED
from vlm_jax.parallel import MeshConfig, build_layout, replicated
from vlm_jax.training.state import abstract_optimizer

AXES = {
    "layers/kernel": ("layers", "embed", "mlp"),
    "layers/scale": ("layers", "norm"),
    "embedding": ("vocab", "embed"),
}
TABLE = (Rule(".*", weight_decay=0.1),)


def draw(seed):
    rng = np.random.default_rng(seed)
    shapes = {"layers": {"kernel": (3, 4, 5), "scale": (3, 4)}, "embedding": (7, 4)}
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=lambda x: type(x) is tuple
    )


def run(name, offload, layout, steps=3):
    """(parameters, state) after some steps; the state as the training keeps it."""
    arguments = {"momentum": 0.9} if name == "sgd" else {}
    config = OptimizerConfig(name, arguments, Schedule(peak=0.1, shape="constant"), clip=0.5, table=TABLE)
    params = jax.device_put(draw(0), replicated(layout))
    optimizer = build_optimizer(config, assign_rules(TABLE, params), 10, AXES, offload=offload)
    abstract = abstract_optimizer(optimizer, params, layout, offload=offload)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    state = jax.jit(optimizer.init, out_shardings=shardings)(params)

    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(replicated(layout), shardings))
    for seed in range(1, steps + 1):
        params, state = jitted(params, state, draw(seed))
    return params, state


@pytest.fixture(scope="module")
def layout():
    return build_layout(MeshConfig())


@pytest.mark.parametrize("name", STREAMED)
def test_where_moments_lie_changes_no_number(name, layout):
    here, there = (run(name, offload, layout) for offload in (False, True))
    assert jax.tree.structure(here) == jax.tree.structure(there)
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(there[1]) if leaf.ndim}
    assert kinds == {"pinned_host"}
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves((here, there[0]))} == {"device"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), here, there)
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)).max(), here[0], draw(0))
    assert all(x > 1e-3 for x in jax.tree.leaves(moved))


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_what_does_not_update_number_by_number_is_refused(name):
    with pytest.raises(UserError, match=f"offload-optimizer: {name} does not update number by number.*adamw"):
        build_optimizer(OptimizerConfig(name), {}, 10, AXES, offload=True)


def test_a_tpu_keeps_moments_out_of_its_memory(monkeypatch):
    """Compiled for four chips that are not here: what is on the host, and how much of it visits the device."""
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    devices = np.array(topologies.get_topology_desc("v5e:2x2", platform="tpu").devices)
    mesh = Mesh(devices.reshape(-1), ("fsdp",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    params = {"layers": {"kernel": jax.ShapeDtypeStruct((16, 512, 1024), jnp.float32, sharding=sharding)}}
    rules, config = assign_rules(TABLE, params), OptimizerConfig("adam", table=TABLE)
    cached = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)

    def memory(offload):
        optimizer = build_optimizer(config, rules, 10, AXES, offload=offload)
        place = sharding.with_memory_kind("pinned_host") if offload else sharding

        def placed(x):
            where = place if x.ndim else NamedSharding(mesh, PartitionSpec())
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

        state = jax.tree.map(placed, jax.eval_shape(optimizer.init, params))
        shardings = jax.tree.map(lambda x: x.sharding, (params, state))

        def step(params, state, gradients):
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=shardings)
        return jitted.lower(params, state, params).compile().memory_analysis()

    try:
        here, there = memory(False), memory(True)
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    moments = 2 * 16 * 512 * 1024 * 4 // 4
    assert here.host_argument_size_in_bytes == 0
    assert there.host_argument_size_in_bytes == there.host_output_size_in_bytes == moments
    assert here.argument_size_in_bytes - there.argument_size_in_bytes == moments
    assert there.temp_size_in_bytes - here.temp_size_in_bytes < moments / 2
