"""What stands in a program's way: memory of the chip, or of its core."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vlm_jax.errors import UserError
from vlm_jax.rehearsal.compiler import DoesNotFitError, compile_lowered, explained
from vlm_jax.rehearsal.topology import absent_devices, parse_topology


def doubled(x: jax.Array, rows: int) -> jax.Array:
    """Twice x, by a kernel that takes so many rows at a time."""

    def kernel(read: jax.Ref, written: jax.Ref) -> None:
        written[...] = read[...] * 2

    block = pl.BlockSpec((rows, x.shape[1]), lambda i: (i, 0))
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    grid = (x.shape[0] // rows,)
    return pl.pallas_call(kernel, shape, grid=grid, in_specs=[block], out_specs=block, name="doubled")(x)


def counted(x: jax.Array) -> jax.Array:
    """x, by a kernel that wants 4 MiB of scalars."""

    def kernel(read: jax.Ref, written: jax.Ref, scalars: jax.Ref) -> None:
        written[...] = read[...] * scalars[0, 0]

    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(kernel, shape, scratch_shapes=[pltpu.SMEM((1024, 1024), jnp.float32)], name="counted")(x)


@pytest.mark.parametrize(
    ("function", "shape", "said"),
    [
        (lambda x: doubled(x, 2048), (8192, 4096), "kernel doubled needs 128.0 MiB of a core's 16.0 MiB vmem"),
        (counted, (8, 128), "kernel counted needs 4.0 MiB of a core's 1.0 MiB smem"),
    ],
    ids=["vmem", "smem"],
)
def test_a_kernel_that_needs_too_much_of_a_cores_memory_is_named(
    function: Callable[[jax.Array], jax.Array], shape: tuple[int, int], said: str
) -> None:
    mesh = Mesh(np.array(absent_devices(parse_topology("v5e:1x1"))), ("data",))
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P()))
    with pytest.raises(UserError, match=said):
        compile_lowered(jax.jit(function).lower(x))


@pytest.mark.parametrize(
    ("message", "needed", "temporaries_only"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (20.58G) "
            "exceeds available HBM (15.75G).",
            20.58,
            True,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 17.25G "
            "of 15.75G hbm. Exceeded hbm capacity by 1.50G.\n\nTotal hbm usage >= 17.50G:\n    reserved 258.00M",
            17.25,
            False,
        ),
    ],
)
def test_what_does_not_fit_into_hbm(message: str, needed: float, temporaries_only: bool, tmp_path: Path) -> None:
    error = explained(message, tmp_path, 1.0)
    assert isinstance(error, DoesNotFitError)
    assert error.needed == int(needed * 2**30)
    assert error.temporaries_only == temporaries_only


def test_a_kernel_that_holds_more_than_a_core_has_at_all(tmp_path: Path) -> None:
    """In the compiler's words: it takes most of a minute to find them."""
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space vmem. Used 256.00M of "
        "128.00M vmem. Exceeded vmem capacity by 128.00M.\n\n  Largest program allocations in vmem:\n\n  1. Size: 128M"
        '\n     Operator: op_name="jit(f)/doubled/pallas_call"\n     XLA label: doubled.1 = custom-call(a.1)'
    )
    error = explained(message, tmp_path, 1.0)
    assert isinstance(error, UserError)
    assert "kernel doubled needs 256.0 MiB of a core's 128.0 MiB vmem" in str(error)


@pytest.mark.parametrize("message", ["INVALID_ARGUMENT: no", "RESOURCE_EXHAUSTED: Out of threads"])
def test_other_refusals_are_in_the_compilers_words(message: str, tmp_path: Path) -> None:
    error = explained(message, tmp_path, 1.0)
    assert isinstance(error, UserError)
    assert message in str(error)
