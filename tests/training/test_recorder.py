"""Lines of metrics.jsonl: what they say, how they go on after a resume, and steps that are not finite."""

import json
import re

import numpy as np
import pytest
from etils import epath

from vlm_jax.batch import BatchInfo
from vlm_jax.config import LossPolicy
from vlm_jax.errors import RunError
from vlm_jax.training.loop import Event
from vlm_jax.training.loss_policy import LossGuard
from vlm_jax.training.recorder import Recorder

SOURCES = ("captions", "questions")
TIMINGS = {"seconds", "tokens_per_second", "images_per_second"}


def metrics(step, **changes):
    """Sums that differ from step to step; the second source has no target in odd steps."""
    even = step % 2 == 0
    values = {
        "cross_entropy": np.array([2.0 * step, 6.0 * even]),
        "weight": np.array([2.0, 3.0 * even]),
        "targets": np.array([4.0, 3.0 * even]),
        "correct": np.array([1.0, 3.0 * even]),
        "tokens": np.array([50.0, 30.0]),
        "loss": np.float32(step),
        "gradient_norm": np.float32(0.5 * step),
        "update_norm": np.float32(0.25 * step),
        "learning_rate": np.float32(0.01 * step),
        "positions": np.float32(100),
        "images": np.float32(7),
    }
    return {**values, **changes}


def guard(tmp_path, policy=LossPolicy()):
    return LossGuard(policy, epath.Path(tmp_path), "sft")


def event(step, last=False, extras=None, **changes):
    info = BatchInfo(
        ((f"row0/{step}", "шар"), (f"row1/{step}",)),
        SOURCES,
        {"captions": 10 * step, "questions": 5 * step},
        {"captions": step / 8, "questions": step / 16},
        {"captions": 1},
    )
    return Event(step, last, None, metrics(step, **changes), info, dict, extras or {})


def record(tmp_path, steps, every=(3,), last_line=None, last=None):
    lines = []
    recorder = Recorder(guard(tmp_path), "sft", SOURCES, every, [lines.append], last_line)
    for step in steps:
        recorder(event(step, last=step == last))
    return lines


def test_a_line_holds_the_documented_keys_and_the_right_ratios(tmp_path):
    (line,) = record(tmp_path, (1, 2, 3))
    documented = {"stage", "step", "loss", "accuracy", "sources", "tokens_per_second", "padding_share"}
    assert documented <= set(line)
    assert (line["stage"], line["step"]) == ("sft", 3)
    assert line["loss"] == pytest.approx((2 + 4 + 6 + 6) / (2 + 2 + 2 + 3))
    assert line["accuracy"] == pytest.approx((1 + 1 + 1 + 3) / (4 + 4 + 4 + 3))
    assert line["gradient_norm"] == pytest.approx(1.0)
    assert line["learning_rate"] == pytest.approx(0.03)
    assert line["padding_share"] == pytest.approx(0.2)
    assert (line["tokens_seen"], line["images_seen"]) == (240, 21)
    assert line["quarantined"] == {"captions": 1}
    assert line["sources"] == {
        "captions": {"loss": 2.0, "accuracy": 0.25, "tokens": 150, "examples_seen": 30, "epochs_seen": 0.375},
        "questions": {"loss": 2.0, "accuracy": 1.0, "tokens": 90, "examples_seen": 15, "epochs_seen": 0.1875},
    }
    assert json.loads(json.dumps(line)) == line


def test_rates_are_those_of_the_time_since_the_line_before(tmp_path, monkeypatch):
    now = iter([100.0, 102.0, 106.0])
    monkeypatch.setattr("vlm_jax.training.recorder.time.monotonic", lambda: next(now))
    first, second = record(tmp_path, range(1, 7))
    assert (first["tokens_per_second"], first["images_per_second"], first["seconds"]) == (120.0, 10.5, 2.0)
    assert (second["tokens_per_second"], second["seconds"]) == (60.0, 6.0)


def test_a_line_is_due_at_any_of_the_multiples_at_the_end_and_when_a_hook_left_something(tmp_path):
    lines = []
    recorder = Recorder(guard(tmp_path), "sft", SOURCES, (4, 6), [lines.append])
    for step in range(1, 11):
        extras = {"validation": {"loss": 1.5}} if step == 5 else {}
        recorder(event(step, last=step == 10, extras=extras))
    assert [line["step"] for line in lines] == [4, 5, 6, 8, 10]
    assert [line.get("validation") for line in lines[:3]] == [None, {"loss": 1.5}, None]


def without_timings(lines):
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def test_a_resumed_recorder_leaves_the_lines_of_an_undisturbed_one(tmp_path):
    straight = record(tmp_path, range(1, 10), last=9)
    first = record(tmp_path, range(1, 6))
    kept = first[-1]
    resumed = record(tmp_path, range(4, 10), last_line=kept, last=9)
    assert without_timings([*first, *resumed]) == without_timings(straight)
    assert resumed[0]["seconds"] >= kept["seconds"]


@pytest.mark.parametrize(
    "changes",
    [
        {name: np.float32(value)}
        for name in ("loss", "gradient_norm", "update_norm")
        for value in ("nan", "inf", "-inf")
    ],
    ids=lambda changes: str(changes),
)
def test_a_number_that_is_not_finite_stops_the_run_and_lists_the_examples(tmp_path, changes):
    lines = []
    recorder = Recorder(guard(tmp_path), "sft", SOURCES, (4,), [lines.append])
    recorder(event(1))
    recorder(event(2, **changes))
    recorder(event(3))
    with pytest.raises(RunError, match=rf"stage sft, step 2: .*{re.escape(str(tmp_path))}.*nonfinite.json") as caught:
        recorder(event(4))
    assert "\n" not in str(caught.value)
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (report["stage"], report["step"]) == ("sft", 2)
    assert report["example_ids"] == [["row0/2", "шар"], ["row1/2"]]
    assert lines == []


def test_other_parts_add_figures_to_a_line_from_the_steps_that_it_covers(tmp_path):
    lines = []

    def slots(interval):
        return {"slots": interval.sums["positions"], "steps": interval.steps, "at": interval.event.step}

    figures = [slots, lambda interval: {"rate": interval.steps / interval.seconds}]
    recorder = Recorder(guard(tmp_path), "sft", SOURCES, (3,), [lines.append], figures=figures)
    for step in range(1, 6):
        recorder(event(step, last=step == 5))
    assert [(line["slots"], line["steps"], line["at"]) for line in lines] == [(300, 3, 3), (200, 2, 5)]
    assert all(line["rate"] > 0 for line in lines)
