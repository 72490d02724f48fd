"""The published runs, and what calibrated figures make of them."""

import dataclasses

import jax
import pytest

from vlm_jax.models.abstract import boxed_params
from vlm_jax.models.flops import stage_flops
from vlm_jax.models.vlm import VLM
from vlm_jax.parallel import without_axes
from vlm_jax.rehearsal.calibration import RUNS, calibration_json
from vlm_jax.rehearsal.calibration_table import CALIBRATIONS, Calibration, calibration_of
from vlm_jax.rehearsal.chips import CHIPS
from vlm_jax.rehearsal.report import remarks, stage_json
from vlm_jax.rehearsal.stage import StageReport
from vlm_jax.rehearsal.topology import parse_topology


@pytest.mark.parametrize(
    ("name", "billions", "tokens_a_second"), [("llama2-70b-v5p", 68.98, 692), ("llama3.1-8b-v6e", 8.03, 7207)]
)
def test_a_run_has_the_published_size_and_pace(name: str, billions: float, tokens_a_second: float) -> None:
    run = RUNS[name]
    config = run.experiment.model
    sizes = [leaf.size for leaf in jax.tree.leaves(without_axes(boxed_params(VLM(config))))]
    assert sum(sizes) == pytest.approx(billions * 1e9, rel=2e-3)
    assert run.rows_per_chip * run.length / run.seconds == pytest.approx(tokens_a_second, rel=2e-3)


@pytest.mark.parametrize("name", RUNS)
def test_a_measured_step_is_as_efficient_as_published_but_for_how_attention_is_counted(name: str) -> None:
    """The publications count attention without a mask, so that their share is up to a few points higher."""
    run = RUNS[name]
    topology = parse_topology(run.topology)
    rows = run.rows_per_chip * topology.chips
    flops = stage_flops(run.experiment.model, None, rows, run.length, 0).total
    ours = flops / (run.seconds * topology.chips * topology.chip.peak_flops)
    assert run.utilisation - 0.08 < ours < run.utilisation + 0.01


def test_every_generation_has_a_calibration_by_a_published_run() -> None:
    for chip in CHIPS.values():
        calibration = calibration_of(chip)
        run = RUNS[calibration.run]
        assert calibration.measured_seconds == pytest.approx(run.seconds, abs=1e-3)
        assert parse_topology(run.topology).chip.torus_axes == chip.torus_axes
        assert 1.0 <= calibration.slowdown < 2.5, "a real step is slower than its roofline, though not by much"
    assert {RUNS[calibration.run].topology.split(":")[0] for calibration in CALIBRATIONS.values()} == set(CALIBRATIONS)


def test_the_json_of_a_calibration_has_what_was_measured_beside_what_is_predicted(too_large: StageReport) -> None:
    run = RUNS["llama3.1-8b-v6e"]
    told = calibration_json(run, too_large)
    assert told["measured_seconds"] == run.seconds
    assert told["measured_mfu"] == too_large.mfu(run.seconds)
    assert told["fits"] is False


def test_a_report_says_where_its_factor_is_borrowed(too_large: StageReport) -> None:
    assert "borrowed from v6e" in " ".join(remarks([too_large]))
    assert stage_json(too_large)["calibration"]["generation"] == "v6e"
    at_home = dataclasses.replace(too_large, topology=parse_topology("v6e:2x2"))
    assert "borrowed" not in " ".join(remarks([at_home]))


def test_the_slowdown_is_what_was_measured_over_what_was_predicted() -> None:
    assert Calibration("", 3.0, 2.0, "").slowdown == 1.5
