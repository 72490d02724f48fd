"""The search: which choices there are, what is compiled next, what is recommended."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from vlm_jax import cli
from vlm_jax.config import Experiment, load_experiment
from vlm_jax.errors import UserError
from vlm_jax.overrides import apply_overrides
from vlm_jax.rehearsal.estimate import Estimate, factorisations
from vlm_jax.rehearsal.program import ProgramCosts
from vlm_jax.rehearsal.search import Budget, Candidate, Choice, Found, choices, common_layout, next_choice, rank
from vlm_jax.rehearsal.stage import StageReport
from vlm_jax.rehearsal.topology import parse_topology


@pytest.fixture
def experiment(tiny: str) -> Experiment:
    return load_experiment(tiny)


def test_factorisations_are_all_of_them() -> None:
    assert sorted(factorisations(4, 2)) == [(1, 4), (2, 2), (4, 1)]
    assert all(math.prod(one) == 64 for one in factorisations(64, 4))
    assert len(factorisations(64, 4)) == len(set(factorisations(64, 4))) == math.comb(9, 3)


def test_every_choice_divides_rows_positions_heads_and_slices(experiment: Experiment) -> None:
    topology = parse_topology("v5e:2x2", 2)
    found = list(choices(experiment, 0, topology))
    assert found
    for choice in found:
        mesh = choice.mesh
        assert math.prod(mesh.values()) == 8
        assert mesh["data"] % 2 == 0, "data goes between the slices"
        assert 8 % (mesh["data"] * mesh["fsdp"] * choice.accumulation) == 0
        assert 2 % mesh["tensor"] == 0


def test_a_choice_applied_is_what_its_overrides_say(experiment: Experiment) -> None:
    choice = Choice({"data": 1, "fsdp": 2, "sequence": 1, "tensor": 2}, "full", 2)
    assert apply_overrides(experiment, choice.overrides(0).split()) == choice.applied(experiment, 0)


def test_what_needs_more_memory_is_expected_to(experiment: Experiment) -> None:
    topology = parse_topology("v5e:2x2")
    expected = {str(choice): one for choice, one in rank(experiment, 0, topology)}

    def of(fsdp: int, remat: str, accumulation: int = 1) -> Estimate:
        mesh = {"data": 4 // fsdp, "fsdp": fsdp, "sequence": 1, "tensor": 1}
        return expected[str(Choice(mesh, remat, accumulation))]

    assert of(4, "full").memory < of(4, "save_qkv").memory < of(4, "none").memory
    assert of(4, "full").memory < of(1, "full").memory
    assert of(4, "full", 2).memory < of(4, "full").memory
    assert of(4, "full").seconds > of(4, "none").seconds


def test_meshes_are_explored_first_and_what_is_larger_than_what_did_not_fit_is_left_out(
    too_large: StageReport,
) -> None:
    def ranked(mesh: int, memory: float, seconds: float) -> tuple[Choice, Estimate]:
        return Choice({"fsdp": mesh}, f"policy {memory}", 1), Estimate(memory, seconds)

    a, b, c, d = ranked(1, 8.0, 1.0), ranked(1, 9.0, 2.0), ranked(1, 4.0, 3.0), ranked(2, 6.0, 4.0)
    all_of_them = [a, b, c, d]
    assert next_choice(all_of_them, [], explore=True) == a
    failed = Candidate(*a, too_large)
    assert next_choice(all_of_them, [failed], explore=True) == d, "another mesh"
    assert next_choice([a, b, c], [failed], explore=True) == c, "of the same mesh only what is smaller"
    assert next_choice([a, b], [failed], explore=False) is None
    refused = Candidate(*a, None, "a kernel's blocks are too large")
    assert next_choice([a, b], [refused], explore=False) == b, "which says nothing of the mesh's memory"


def test_stages_share_a_mesh_so_that_the_one_that_lasts_longest_decides(
    experiment: Experiment, too_large: StageReport
) -> None:
    nothing: dict[str, Any] = {field.name: 0.0 for field in dataclasses.fields(ProgramCosts)}
    nothing |= {"traffic": (), "largest": (), "unknown_calls": {}, "unknown_loops": ()}
    long = dataclasses.replace(experiment.stages[0], name="long", steps=3600)
    two = dataclasses.replace(experiment, stages=(*experiment.stages, long))

    def found(index: int, seconds: float) -> Found:
        costs = ProgramCosts(**{**nothing, "scheduled": seconds})
        report = dataclasses.replace(too_large, fits=True, peak_bytes=0, programs={"step": costs})
        return Found(index, 1, (Candidate(Choice({"fsdp": 4}, "full", 1), Estimate(1.0, 1.0), report),))

    said = common_layout(two, {"text": found(0, 9.0), "long": found(1, 1.0)})
    assert "the same in all stages" in said
    assert f"those of long, which lasts longest ({too_large.calibration.slowdown:.1f} h, calibrated)" in said
    assert common_layout(two, {"text": found(0, 9.0)}) == ""
    assert "Take those" not in common_layout(two, {"text": Found(0, 1, ()), "long": Found(1, 1, ())})


def test_a_search_stays_in_its_budget_and_recommends_overrides_that_fit(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "search.json"
    arguments = ["--topology", "v5e:2x2", "--search", "--budget-compiles", "3", "--json", str(file)]
    assert cli.run(["rehearse", tiny, *arguments]) == 0
    shown = capsys.readouterr().out
    told = json.loads(file.read_text())["search"]["text"]
    assert len(told["candidates"]) == 3
    meshes = [json.dumps(candidate["mesh"]) for candidate in told["candidates"]]
    assert len(set(meshes)) == 2, "half of the budget for other meshes, half for the best one"
    steps = [candidate["report"]["step_seconds_scheduled"] for candidate in told["candidates"]]
    assert steps == sorted(steps)
    best = told["candidates"][0]
    assert told["recommended"] in shown
    changed = apply_overrides(load_experiment(tiny), told["recommended"].split())
    assert {axis: getattr(changed.mesh, axis) for axis in best["mesh"]} == best["mesh"]
    assert (changed.model.decoder.remat, changed.stages[0].accumulation) == (best["remat"], best["accumulation"])


def test_a_search_without_a_budget_or_rows_to_share_out_is_refused(
    tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="--budget-compiles must be at least 1"):
        Budget(compiles=0)
    assert cli.run(["rehearse", tiny, "--topology", "v5p:4x4x4", "--search", "--stages.0.data.rows", "7"]) == 2
    assert "divide over no mesh of 64 chips" in capsys.readouterr().err
