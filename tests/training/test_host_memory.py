"""What a host cannot hold is refused before anything is read."""

import dataclasses
from pathlib import Path

import jax
import pytest

from vlm_jax.checkpoints import abstract_params
from vlm_jax.config import load_experiment
from vlm_jax.errors import UserError
from vlm_jax.models.vlm import VLM
from vlm_jax.parallel import build_layout
from vlm_jax.training.host_memory import check_host_memory, free_memory
from vlm_jax.training.recipe import train

MU = Path(__file__).parents[2] / "experiments" / "mu.py"


def test_a_model_larger_than_the_hosts_memory_is_one_line(tmp_path: Path) -> None:
    mu = load_experiment(str(MU))
    free = free_memory()
    assert free
    # Three kernels of width x hidden in each of two layers, four bytes a number.
    hidden = free // (2 * 3 * 32 * 4) + 1
    decoder = dataclasses.replace(mu.model.decoder, mlp_width=int(1.5 * hidden))
    large = dataclasses.replace(mu, model=dataclasses.replace(mu.model, decoder=decoder))
    with pytest.raises(UserError, match=r"hold [\d.]+ GB of parameters, but only [\d.]+ GB of its memory are free"):
        train(large, tmp_path / "run")
    layout = build_layout(mu.mesh)
    check_host_memory(abstract_params(VLM(mu.model), layout), layout)


def test_every_device_of_a_cpu_has_its_own_copy() -> None:
    assert jax.default_backend() == "cpu"
    layout = build_layout(load_experiment(str(MU)).mesh)
    leaf = jax.ShapeDtypeStruct((free_memory() or 0,), "int8", sharding=layout.sharding())
    check_host_memory(jax.ShapeDtypeStruct((8,), "int8", sharding=layout.sharding()), layout)
    with pytest.raises(UserError, match="GB of parameters"):
        check_host_memory([leaf, leaf], layout)


def test_where_the_system_does_not_tell_nothing_is_known(tmp_path: Path) -> None:
    assert free_memory(tmp_path / "meminfo") is None
    (tmp_path / "meminfo").write_text("MemTotal:  10 kB\nMemAvailable:  3 kB\n")
    assert free_memory(tmp_path / "meminfo") == 3 * 1024
