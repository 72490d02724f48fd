"""Traces of a few steps, and the efficiency figures of a whole run."""

import dataclasses
import gzip
import json
from pathlib import Path

import jax
import pytest

from vlm_jax import cli
from vlm_jax.config import load_experiment
from vlm_jax.errors import UserError
from vlm_jax.training.efficiency import PARTS
from vlm_jax.training.profile import STEP_NAME, ProfiledSteps, parse_profile, profiled
from vlm_jax.training.recipe import train

TINY = Path(__file__).with_name("tiny_experiment.py")


@pytest.fixture(scope="module")
def tiny():
    experiment = load_experiment(str(TINY))
    captions, instruct = experiment.stages
    stages = (dataclasses.replace(captions, steps=5), dataclasses.replace(instruct, steps=2, validation=None))
    return dataclasses.replace(experiment, stages=stages, log_every=2)


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory):
    jax.config.update("jax_disable_most_optimizations", True)
    workdir = tmp_path_factory.mktemp("profile") / "run"
    train(tiny, workdir, profile="2:4")
    jax.config.update("jax_disable_most_optimizations", False)
    return workdir


def test_the_trace_holds_these_steps(workdir):
    (trace,) = (workdir / "profile").rglob("*.trace.json.gz")
    assert trace.with_name(trace.name.replace(".trace.json.gz", ".xplane.pb")).stat().st_size > 0
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [int(event["args"]["step_num"]) for event in events if event.get("name") == STEP_NAME]
    assert sorted(steps) == [2, 3, 4]


def test_lines_say_how_much_of_the_time_was_of_use(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["captions"] * 3 + ["instruct"]
    for line in lines:
        assert tuple(line["spent"]) == PARTS
        assert line["goodput"] == pytest.approx(line["spent"]["step"] / sum(line["spent"].values()), abs=0.01)
        assert 0 < line["goodput"] < 1
        assert line["model_flops"] > 0
        assert "mfu" not in line  # a CPU's peak is not known
    for part in PARTS:
        each = [line["spent"][part] for line in lines]
        assert each == sorted(each)
    assert lines[-1]["spent"]["compile"] > 0
    assert lines[-1]["spent"]["lost"] == 0
    # Two steps, two, and one.
    assert lines[2]["model_flops"] < 0.8 * lines[1]["model_flops"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3", r"write \[STAGE:\]FIRST:LAST, such as 10:12 or instruct:10:12"),
        ("a:b", r"write \[STAGE:\]FIRST:LAST"),
        ("4:3", "stage captions has steps 1 to 5"),
        ("0:3", "stage captions has steps 1 to 5"),
        ("2:6", "stage captions has steps 1 to 5"),
        ("sft:1:2", "there is no stage sft; there are captions, instruct"),
        ("instruct:1:3", "stage instruct has steps 1 to 2"),
    ],
)
def test_steps_that_there_are_not_are_refused(tiny, text, message):
    with pytest.raises(UserError, match=f"--profile {text}: {message}"):
        parse_profile(text, tiny)


def test_steps_are_of_the_first_stage_unless_one_is_named(tiny):
    assert parse_profile("2:4", tiny) == ProfiledSteps("captions", 2, 4)
    assert parse_profile("instruct:1:2", tiny) == ProfiledSteps("instruct", 1, 2)


def test_steps_that_are_passed_over_keep_their_numbers(tmp_path):
    """Step 2 is left out; so the second call is of step 3, the last one to be traced."""
    calls = []

    def step(state, batch):
        calls.append(batch)
        return state, {"loss": jax.numpy.ones(())}

    with profiled(step, ProfiledSteps("captions", 1, 3), "captions", 0, tmp_path, {2}) as traced:
        traced(None, "first")
        traced(None, "third")
        assert list(tmp_path.rglob("*.trace.json.gz"))
        traced(None, "fourth")
    (trace,) = tmp_path.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert [event["args"]["step_num"] for event in events if event.get("name") == STEP_NAME] == ["1", "3"]
    assert calls == ["first", "third", "fourth"]


def test_bad_steps_are_one_line_on_the_command_line(tmp_path, capsys):
    code = cli.run(["train", str(TINY), "--workdir", str(tmp_path / "run"), "--profile", "9"])
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()
