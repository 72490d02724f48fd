"""Programs whose costs are known beforehand, compiled for TPUs that are not there, and counted."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vlm_jax.errors import UserError
from vlm_jax.parallel.xla_flags import compiler_options
from vlm_jax.rehearsal.analysis import analyse
from vlm_jax.rehearsal.machine import build_machine, slice_numbers
from vlm_jax.rehearsal.program import Machine, ProgramCosts
from vlm_jax.rehearsal.topology import absent_devices, parse_topology

WIDTH, ROWS = 512, 128
"""Of a layer; of a batch on one chip."""
BF16 = 2


def mesh_of(name: str, slices: int = 1, **axes: int) -> Mesh:
    devices = np.array(absent_devices(parse_topology(name, slices)))
    return Mesh(devices.reshape(tuple(axes.values())), tuple(axes))


def spec(mesh: Mesh, shape: tuple[int, ...], *axes: Any, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))


def compiled(function: Callable[..., Any], *arguments: Any, out: Any = None, options: Any = None) -> Any:
    return jax.jit(function, out_shardings=out).lower(*arguments).compile(compiler_options=options)


def costs_of(program: Any, mesh: Mesh, name: str = "v5e:2x2", slices: int = 1) -> ProgramCosts:
    machine = build_machine(parse_topology(name, slices), mesh)
    return analyse(program.as_text(), mesh.shape, machine, slice_numbers(mesh))


def layers(weights: jax.Array, x: jax.Array, unroll: int = 1) -> jax.Array:
    """A scan over layers that are computed again for the gradient."""

    def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(x @ w), None

    x, _ = jax.lax.scan(jax.checkpoint(layer), x, weights, unroll=unroll)
    return x.astype(jnp.float32).sum()


@pytest.fixture(autouse=True, scope="module")
def uncached() -> Iterator[None]:
    """Programs for absent devices can be written to the compilation cache, but not read from it."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", before)


@pytest.fixture(scope="module")
def fsdp() -> Mesh:
    return mesh_of("v5e:2x2", data=1, fsdp=4, tensor=1)


@functools.cache
def fsdp_step(mesh: Mesh, count: int, unroll: int = 1) -> Any:
    weights = spec(mesh, (count, WIDTH, WIDTH), None, "fsdp")
    x = spec(mesh, (4 * ROWS, WIDTH), "fsdp")
    return compiled(lambda w, x: jax.grad(layers)(w, x, unroll), weights, x, out=NamedSharding(mesh, P(None, "fsdp")))


@pytest.mark.parametrize("count", [2, 8])
def test_fsdp_with_rematerialisation(fsdp: Mesh, count: int) -> None:
    costs = costs_of(fsdp_step(fsdp, count), fsdp)
    product = 2 * ROWS * WIDTH * WIDTH
    assert costs.flops == pytest.approx(4 * count * product, rel=1e-6)  # forward, again, and two for gradients
    assert costs.mxu_flops == costs.flops
    # Weights are gathered for the forward and for the backward pass, gradients reduced to shards.
    one_pass = count * WIDTH * WIDTH * BF16 * 3 / 4
    assert costs.collective_bytes == {
        "all-gather": {"fsdp": pytest.approx(2 * one_pass)},
        "reduce-scatter": {"fsdp": pytest.approx(one_pass)},
    }
    assert costs.unknown_calls == {}
    assert costs.unknown_loops == ()
    assert costs.overlapped <= costs.scheduled <= costs.serial + 1e-9
    assert costs.exposed_share == pytest.approx(1 - costs.scheduled_alone / costs.scheduled)
    assert sum(line.exposed_seconds for line in costs.traffic) <= costs.scheduled
    assert costs.largest[0].seconds == max(operation.seconds for operation in costs.largest)


def test_what_sparse_cores_move_is_counted_and_hidden() -> None:
    mesh, count, width = mesh_of("v6e:2x4", data=1, fsdp=8, tensor=1), 4, 4096
    weights, x = spec(mesh, (count, width, width), None, "fsdp"), spec(mesh, (8 * 2048, width), "fsdp")
    out = NamedSharding(mesh, P(None, "fsdp"))
    program = compiled(jax.grad(layers), weights, x, out=out, options=compiler_options("v6e"))
    assert 'execution_thread="sparsecore"' in program.as_text()
    costs = costs_of(program, mesh, "v6e:2x4")
    assert costs.flops == pytest.approx(4 * count * 2 * 2048 * width * width, rel=1e-6)
    one_pass = count * width * width * BF16 * 7 / 8
    assert costs.collective_bytes == {
        "all-gather": {"fsdp": pytest.approx(2 * one_pass)},
        "reduce-scatter": {"fsdp": pytest.approx(one_pass)},
    }
    assert costs.unknown_calls == {}
    assert costs.scheduled - costs.scheduled_alone < 0.9 * costs.ici_seconds


def test_without_loops_the_compiler_counts_the_same(fsdp: Mesh) -> None:
    unrolled = fsdp_step(fsdp, 2, unroll=2)
    costs = costs_of(unrolled, fsdp)
    assert costs.flops == pytest.approx(3 * 2 * 2 * ROWS * WIDTH * WIDTH, rel=1e-6)  # it finds what it knows already
    assert costs.flops + costs.elementwise_flops == pytest.approx(unrolled.cost_analysis()["flops"], rel=0.02)


def test_products_convolutions_and_loops_in_loops(fsdp: Mesh) -> None:
    def program(images: jax.Array, patches: jax.Array, heads: jax.Array, w: jax.Array) -> tuple[jax.Array, ...]:
        dimensions = ("NHWC", "HWIO", "NHWC")
        convolved = jax.lax.conv_general_dilated(images, patches, (2, 2), "SAME", dimension_numbers=dimensions)
        scores = jnp.einsum("bqhd,bkhd->bhqk", heads, heads)

        def outer(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jax.lax.fori_loop(2, 9, lambda _, x: jnp.tanh(x @ w), x), None

        return convolved, scores, jax.lax.scan(outer, w, None, length=5)[0]

    program_ = compiled(
        program,
        spec(fsdp, (8, 32, 32, 16)),
        spec(fsdp, (3, 3, 16, 64)),
        spec(fsdp, (4, 81, 8, 72)),
        spec(fsdp, (256, 256)),
    )
    # Of 16 outputs along a side with 3 taps each, the last tap of the last falls on padding.
    convolution = 2 * 8 * (16 * 3 - 1) ** 2 * 16 * 64
    scores = 2 * 4 * 8 * 81 * 81 * 72
    loops = 5 * 7 * 2 * 256**3
    costs = costs_of(program_, fsdp)
    assert costs.flops == pytest.approx(convolution + scores + loops, rel=1e-6)
    assert costs.mxu_flops > costs.flops  # 81 and 72 fill no tiles
    assert costs.traffic == ()


def test_tensor_parallel_products_sum_their_parts() -> None:
    mesh = mesh_of("v5e:4x4", fsdp=4, tensor=4)

    def mlp(up: jax.Array, down: jax.Array, x: jax.Array) -> jax.Array:
        hidden = jax.lax.with_sharding_constraint(jnp.tanh(x @ up), NamedSharding(mesh, P("fsdp", "tensor")))
        return hidden @ down

    program = compiled(
        mlp,
        spec(mesh, (WIDTH, 4 * WIDTH), None, "tensor"),
        spec(mesh, (4 * WIDTH, WIDTH), "tensor"),
        spec(mesh, (4 * ROWS, WIDTH), "fsdp"),
        out=NamedSharding(mesh, P("fsdp")),
    )
    costs = costs_of(program, mesh, "v5e:4x4")
    assert costs.flops == pytest.approx(2 * 2 * ROWS * WIDTH * WIDTH, rel=1e-6)
    assert costs.collective_bytes == {"all-reduce": {"tensor": pytest.approx(2 * 3 / 4 * ROWS * WIDTH * BF16)}}


def test_splash_attention_in_a_loop(fsdp: Mesh) -> None:
    length, heads, size, block = 1024, 2, 128, 256
    sizes = kernels.BlockSizes(block, block, block, block, block, block, use_fused_bwd_kernel=True)

    def attend(x: jax.Array) -> jax.Array:
        mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
        kernel = kernels.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)

        def layer(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jax.vmap(kernel)(x, x, x), None

        return jax.lax.scan(layer, x, None, length=3)[0].astype(jnp.float32).sum()

    rows = P("fsdp")
    step = jax.shard_map(jax.grad(attend), mesh=fsdp, in_specs=rows, out_specs=rows, check_vma=False)
    program = compiled(step, spec(fsdp, (8, heads, length, size), "fsdp"))
    costs = costs_of(program, fsdp)
    everywhere = 3 * (2 + 5) * 2 * (2 * heads) * length**2 * size  # forward 2 products, backward 5
    assert costs.kernel_flops == pytest.approx(everywhere * 10 / 16)  # 4 x 4 blocks, 10 not above the diagonal
    assert costs.flops == 0
    assert costs.unknown_calls == {}
    whole = analyse(program.as_text(), fsdp.shape, build_machine(parse_topology("v5e:2x2"), fsdp), attended_share=1.0)
    assert whole.kernel_flops == pytest.approx(everywhere)


def test_data_parallel_over_two_slices() -> None:
    mesh = mesh_of("v5e:2x2", 2, data=2, fsdp=4)
    weights = spec(mesh, (4, WIDTH, WIDTH), None, "fsdp")
    x = spec(mesh, (8 * ROWS, WIDTH), ("data", "fsdp"))
    program = compiled(jax.grad(layers), weights, x, out=NamedSharding(mesh, P(None, "fsdp")))
    costs = costs_of(program, mesh, slices=2)
    assert costs.flops == pytest.approx(4 * 4 * 2 * ROWS * WIDTH * WIDTH, rel=1e-6)
    shard = 4 * WIDTH * WIDTH * BF16 / 4
    between = costs.collective_bytes["all-reduce"]["data@dcn"]
    assert between == pytest.approx(shard)  # 2 · (n - 1) / n of a chip's share of the gradients, n = 2
    assert costs.dcn_seconds > between / build_machine(parse_topology("v5e:2x2", 2), mesh).dcn_bandwidth
    assert costs.collective_bytes["all-gather"] == {"fsdp": pytest.approx(2 * 3 * shard)}
    with pytest.raises(UserError, match="between slices"):
        analyse(program.as_text(), mesh.shape, Machine(1.0, 1.0, ici_default=1.0), slice_numbers(mesh))


def test_a_loop_without_a_known_end_is_reported(fsdp: Mesh) -> None:
    def until(n: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, jnp.tanh(c[1] @ w)), (0, w))[1]

    costs = costs_of(compiled(until, spec(fsdp, (), dtype=jnp.int32), spec(fsdp, (256, 256))), fsdp)
    assert len(costs.unknown_loops) == 1
    assert costs.flops == pytest.approx(2 * 256**3)


def test_faster_wires_expose_less(fsdp: Mesh) -> None:
    program = fsdp_step(fsdp, 8).as_text()
    machine = build_machine(parse_topology("v5e:2x2"), fsdp)
    rings = {
        axes: [dataclasses.replace(ring, bandwidth=10 * ring.bandwidth) for ring in some]
        for axes, some in machine.ici.items()
    }
    wider = dataclasses.replace(machine, ici=rings, ici_hop_seconds=0.0)
    slow, fast = (analyse(program, fsdp.shape, wires) for wires in (machine, wider))
    assert fast.exposed_share < slow.exposed_share
    assert fast.scheduled_alone == slow.scheduled_alone
    assert fast.flops == slow.flops
