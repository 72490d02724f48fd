"""Runs whose checkpoints were damaged go on from the newest that is whole, and end as if nothing had happened."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import pytest

from vlm_jax import cli
from vlm_jax.config import Checkpoints, load_experiment
from vlm_jax.errors import UserError
from vlm_jax.training.recipe import train

TEXT = Path(__file__).with_name("text_experiment.py")
OVERRIDES = ["--stages.0.steps", "6", "--stages.1.steps", "4", "--checkpoints.every", "2", "--log-every", "2"]


@pytest.fixture(scope="module")
def experiment():
    """Two stages of six and four steps, with a save and a line of figures at every second."""
    whole = load_experiment(str(TEXT))
    first, second = whole.stages
    stages = (dataclasses.replace(first, steps=6), dataclasses.replace(second, steps=4))
    return dataclasses.replace(whole, stages=stages, checkpoints=Checkpoints(every=2), log_every=2)


@pytest.fixture(scope="module")
def undisturbed(experiment, tmp_path_factory):
    """The workdir of a finished run; not to be changed."""
    jax.config.update("jax_disable_most_optimizations", True)
    workdir = tmp_path_factory.mktemp("damaged") / "run"
    train(experiment, workdir)
    return workdir


@pytest.fixture
def run(undisturbed, tmp_path):
    """A copy that may be harmed."""
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


def harm(*steps):
    for step in steps:
        file = max((step / "optimizer").rglob("d/*"), key=lambda path: path.stat().st_size)
        file.write_bytes(file.read_bytes()[:100])


def steps(run, stage):
    return sorted(path.name for path in (run / "checkpoints" / stage).iterdir())


def end(run):
    return (run / "checkpoints" / "second" / "4" / "files" / "checksums.json").read_bytes()


def lines(run):
    return [
        (x["stage"], x["step"], x["loss"]) for x in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    ]


def test_the_steps_since_the_one_before_are_done_again_and_their_figures_too(experiment, undisturbed, run, caplog):
    harm(run / "checkpoints" / "second" / "4")
    train(experiment, run)
    assert steps(run, "second") == ["2", "4", "4.damaged"]
    assert end(run) == end(undisturbed)
    assert lines(run) == lines(undisturbed)
    assert "4.damaged" in caplog.text


def test_a_stage_of_which_nothing_is_whole_begins_anew_from_the_one_before(experiment, undisturbed, run, caplog):
    harm(*(run / "checkpoints" / "second" / step for step in ("2", "4")), run / "checkpoints" / "first" / "6")
    train(experiment, run)
    assert steps(run, "second") == ["2", "2.damaged", "4", "4.damaged"]
    assert steps(run, "first") == ["4", "6", "6.damaged"]
    assert end(run) == end(undisturbed)
    assert lines(run) == lines(undisturbed)
    assert "stage second begins anew" in caplog.text
    reasons = [record.getMessage() for record in caplog.records if "begins anew" in record.getMessage()]
    assert len(reasons) == 2
    for step, reason in zip(("4", "2"), reasons, strict=True):
        assert f"{run / 'checkpoints' / 'second' / step}: damaged" in reason
        assert f"{step}.damaged" in reason


def test_a_stage_is_left_alone_if_the_one_before_cannot_be_used(experiment, run):
    harm(*(run / "checkpoints" / "second" / step for step in ("2", "4")))
    harm(*(run / "checkpoints" / "first" / step for step in ("4", "6")))
    with pytest.raises(UserError, match=f"{run / 'checkpoints' / 'first' / '6'}: damaged checkpoint"):
        train(experiment, run)
    assert steps(run, "second") == ["2", "4"]
    assert steps(run, "first") == ["4", "6"]


def test_a_run_of_which_nothing_is_whole_ends_with_one_line_and_is_left_alone(run, capsys):
    shutil.rmtree(run / "checkpoints" / "second")
    harm(*(run / "checkpoints" / "first" / step for step in ("4", "6")))
    before = sorted(run.rglob("checkpoints/**/*"))
    assert cli.run(["train", str(TEXT), "--workdir", str(run), *OVERRIDES]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vlm: ")]
    assert f"{run / 'checkpoints' / 'first' / '6'}: damaged checkpoint" in line
    assert sorted(run.rglob("checkpoints/**/*")) == before


def test_a_checkpoint_of_another_model_is_no_damage(experiment, run):
    decoder = dataclasses.replace(experiment.model.decoder, width=24)
    wider = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, decoder=decoder))
    precision = dataclasses.replace(experiment.model.precision, parameters="bfloat16")
    narrower = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, precision=precision))
    for other in (wider, narrower):
        with pytest.raises(UserError, match="a checkpoint of another model"):
            train(other, run, allow_config_change=True)
        assert steps(run, "second") == ["2", "4"]
