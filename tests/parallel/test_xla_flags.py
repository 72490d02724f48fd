import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vlm_jax.parallel.xla_flags import (
    ACROSS_SLICES,
    FLAGS,
    OFFLOAD,
    VARIABLE,
    attached_generation,
    compiler_options,
    flags_for,
    set_flags,
)

TOPOLOGIES = {
    "v4": ("v4:2x2x1", {"chip_config_name": "megacore"}),
    "v5e": ("v5e:2x2", {}),
    "v5p": ("v5p:2x2x1", {}),
    "v6e": ("v6e:2x2", {}),
}


@pytest.fixture(scope="module", autouse=True)
def absent_tpus():
    wanted = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    cached = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", cached)
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def fsdp_step(generation, layers=2, width=256):
    """A gradient whose weights are split over the devices, so that every layer needs an all-gather."""
    name, options = TOPOLOGIES[generation]
    devices = np.array(topologies.get_topology_desc(name, platform="tpu", **options).devices)
    mesh = Mesh(devices.reshape(-1), ("fsdp",), axis_types=(AxisType.Auto,))

    def array(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    weights = array((layers, width, width), None, "fsdp")

    def loss(weights, x):
        y, _ = jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, weights)
        return jnp.sum(y.astype(jnp.float32) ** 2)

    return jax.jit(jax.grad(loss), out_shardings=weights.sharding).lower(
        weights, array((devices.size * width // 2, width), "fsdp")
    )


@pytest.mark.parametrize("generation", FLAGS)
def test_the_compiler_knows_every_flag(generation):
    options = compiler_options(generation, slices=2, offload=True)
    assert {*options} == {*FLAGS[generation], *ACROSS_SLICES, *OFFLOAD}
    assert fsdp_step(generation).compile(compiler_options=options) is not None


def test_a_flag_that_the_compiler_does_not_know_is_refused():
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        fsdp_step("v5e").compile(compiler_options={"xla_tpu_no_such_flag": True})


def test_the_flags_make_v5p_compute_while_it_gathers(tmp_path):
    """On v5e this is so by itself."""
    lowered = fsdp_step("v5p", layers=4, width=1024)

    def gathers_meanwhile(options, directory):
        dump = {"xla_dump_to": str(directory), "xla_dump_hlo_as_text": True}
        lowered.compile(compiler_options={**options, **dump})
        files = sorted(directory.glob("*after_optimizations.txt"), key=lambda file: file.stat().st_size)
        return "async_collective_fusion" in files[-1].read_text()

    assert not gathers_meanwhile({}, tmp_path / "without")
    assert gathers_meanwhile(compiler_options("v5p"), tmp_path / "with")


def test_every_flag_has_a_reason_and_a_known_source():
    for flags in (*FLAGS.values(), ACROSS_SLICES, OFFLOAD):
        for flag in flags.values():
            assert flag.reason
            assert {*flag.source} <= set("MALC")
            assert flag.source


def test_slices_and_the_host_need_flags_of_their_own():
    assert not {*flags_for("v6e")} & {*ACROSS_SLICES, *OFFLOAD}
    assert flags_for("v6e", slices=2).keys() - flags_for("v6e").keys() == ACROSS_SLICES.keys()
    assert flags_for("v6e", offload=True).keys() - flags_for("v6e").keys() == OFFLOAD.keys()
    assert flags_for("v9") == {}


def test_what_the_variable_says_already_wins():
    environment = {VARIABLE: "--xla_tpu_scoped_vmem_limit_kib=1000  --other=x"}
    added = set_flags("v6e", environment=environment)
    assert "xla_tpu_scoped_vmem_limit_kib" not in added
    words = environment[VARIABLE].split()
    assert words[:2] == ["--xla_tpu_scoped_vmem_limit_kib=1000", "--other=x"]
    assert "--xla_enable_async_all_gather=true" in words
    assert len(words) == 1 + len(FLAGS["v6e"])
    assert set_flags("v6e", environment=environment) == {}


def test_an_empty_variable_turns_them_off():
    environment = {VARIABLE: ""}
    assert set_flags("v5p", environment=environment) == {}
    assert environment == {VARIABLE: ""}
    environment = {}
    assert set_flags("", environment=environment) == {}
    assert environment == {}


@pytest.mark.parametrize(("device", "generation"), [("0x0063", "v5e"), ("0x006f", "v6e"), ("0xffff", "")])
def test_the_generation_is_read_off_the_bus(tmp_path, device, generation):
    for name, vendor, number in (("00", "0x8086", "0x0063"), ("01", "0x1ae0", device)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "device").write_text(f"{number}\n")
    assert attached_generation(tmp_path) == generation
    assert attached_generation(tmp_path / "nowhere") == ""
