"""What a host holds: its share of the state, and its rows."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from vlm_jax.config import Experiment, load_experiment
from vlm_jax.parallel import MeshConfig, build_layout
from vlm_jax.rehearsal.host import HostNeeds, host_needs
from vlm_jax.rehearsal.topology import absent_devices, parse_topology
from vlm_jax.training.program import build_program

ROOT = Path(__file__).resolve().parents[2]
MU = str(ROOT / "experiments" / "mu.py")


def needs(experiment: Experiment, index: int, text: str, **mesh: Any) -> tuple[HostNeeds, int, int]:
    """(needs of a host, bytes of the whole state, bytes of the global batch)."""
    topology = parse_topology(text)
    layout = build_layout(MeshConfig(**mesh), absent_devices(topology))
    program = build_program(experiment, index, layout)
    state, batch = program.abstract_state(), program.abstract_batch()
    whole = [
        sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)) for tree in (state, batch)
    ]
    return host_needs(topology, program.stage, state, batch, 0), whole[0], whole[1]


def test_hosts_share_a_sharded_state_and_the_rows_of_a_batch(tiny: str) -> None:
    experiment = load_experiment(tiny)
    host, state, batch = needs(experiment, 0, "v5e:2x4", data=1, fsdp=8)
    assert host.state == pytest.approx(state / 2, rel=0.02), "two hosts; scalars are on both"
    assert host.picture_bytes + host.token_bytes == batch // 2


def test_every_host_holds_a_replicated_state_once_however_many_chips_it_has(tiny: str) -> None:
    host, state, _ = needs(load_experiment(tiny), 0, "v5e:2x4", data=8, fsdp=1)
    assert host.state == state


def test_pictures_are_counted_apart() -> None:
    host, _, _ = needs(load_experiment(MU), 0, "v5e:2x2", data=4)
    assert host.picture_bytes == 4 * 2 * math.prod((32, 32, 3))
    assert host.pictures == 4 * 2
    assert host.batches == 4 * (host.picture_bytes + host.token_bytes)


def test_hosts_that_read_the_same_rows_decode_the_same_pictures() -> None:
    host, _, _ = needs(load_experiment(MU), 0, "v5e:2x4", data=1, fsdp=1, sequence=4, tensor=2)
    assert host.pictures == 4 * 2
    assert host.picture_bytes == host.pictures * math.prod((32, 32, 3))


def test_more_than_the_machine_has_does_not_fit(tiny: str) -> None:
    host, _, _ = needs(load_experiment(tiny), 0, "v5e:2x2", data=4)
    assert host.fits
    assert not dataclasses.replace(host, pictures_kept=host.memory).fits
