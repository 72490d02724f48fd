"""Training from end to end in this process: where a stage starts, what stays frozen, and what stops a run."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.mixture import KindShare
from vlm_jax import cli
from vlm_jax.checkpoints import initialise_missing
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.config import Validation, load_experiment
from vlm_jax.errors import RunError, UserError
from vlm_jax.models.vlm import VLM
from vlm_jax.optim import OptimizerConfig, Rule, Schedule
from vlm_jax.parallel import MeshConfig, build_layout
from vlm_jax.training import recipe
from vlm_jax.training.recipe import train

TINY = Path(__file__).with_name("tiny_experiment.py")
STILL = OptimizerConfig(schedule=Schedule(peak=0.0, shape="constant"))


@pytest.fixture(scope="module")
def tiny():
    """Two stages of two steps."""
    experiment = load_experiment(str(TINY))
    captions, instruct = experiment.stages
    stages = (dataclasses.replace(captions, steps=2), dataclasses.replace(instruct, steps=2, validation=None))
    return dataclasses.replace(experiment, stages=stages)


def one_stage(experiment, index=1, **changes):
    return dataclasses.replace(experiment, stages=(dataclasses.replace(experiment.stages[index], **changes),))


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    """The workdir of a finished run; not to be changed."""
    jax.config.update("jax_disable_most_optimizations", True)
    workdir = tmp_path_factory.mktemp("recipe") / "run"
    train(tiny, workdir)
    return workdir


def params_at(reference):
    return load_model(str(reference)).params


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_the_second_stage_goes_on_from_the_first_and_leaves_frozen_parameters_alone(tiny, done):
    drawn = initialise_missing(VLM(tiny.model), build_layout(MeshConfig()), tiny.seed)
    first, second = params_at(done / "checkpoints" / "captions" / "2"), params_at(done)
    assert not equal(drawn["encoder"], first["encoder"])
    assert equal(first["encoder"], second["encoder"])
    for part in ("decoder", "adapter"):
        assert not equal(first[part], second[part])
    sums = json.loads((done / "checkpoints" / "instruct" / "2" / "files" / "checksums.json").read_text())
    optimizer = [name for name in sums if name.startswith("optimizer/")]
    assert any("decoder" in name for name in optimizer)
    assert not any("encoder" in name for name in optimizer)


def snapshot_of(workdir):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in (workdir / "checkpoints").rglob("*")
        if path.is_file()
    }


def test_a_finished_run_does_nothing_again(tiny, done):
    before, metrics = snapshot_of(done), (done / "metrics.jsonl").read_bytes()
    train(tiny, done)
    assert snapshot_of(done) == before
    assert (done / "metrics.jsonl").read_bytes() == metrics


def test_a_copied_step_directory_is_a_whole_model(done, tmp_path):
    copy = shutil.copytree(done / "checkpoints" / "instruct" / "2", tmp_path / "elsewhere")
    found, expected = load_model(str(copy)), load_model(str(done))
    assert equal(found.params, expected.params)
    assert found.config == expected.config
    assert found.experiment == expected.experiment
    text = "What color is the shape? Какого цвета фигура?"
    assert found.processor.tokenizer.encode(text) == expected.processor.tokenizer.encode(text)
    assert dataclasses.replace(found.processor, tokenizer=None) == dataclasses.replace(
        expected.processor, tokenizer=None
    )


@pytest.mark.parametrize("place", ["", "checkpoints/captions/2"])
def test_a_stage_may_start_from_another_run_or_one_of_its_steps(tiny, done, tmp_path, place):
    """At rate zero it ends as what it began from, and it reads and writes the same tokens."""
    start = one_stage(tiny, steps=1, optimizer=STILL, start_from=str(done / place))
    train(start, tmp_path / "next")
    assert equal(params_at(tmp_path / "next"), params_at(done / place))
    tokenizers = [(workdir / "processor" / "tokenizer.model").read_bytes() for workdir in (done, tmp_path / "next")]
    assert tokenizers[0] == tokenizers[1]


def test_a_stage_cannot_start_from_another_model_or_from_nowhere(tiny, done, tmp_path):
    decoder = dataclasses.replace(tiny.model.decoder, width=24)
    wider = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, decoder=decoder))
    with pytest.raises(UserError, match="another model"):
        train(one_stage(wider, start_from=str(done)), tmp_path / "wider")
    with pytest.raises(UserError, match=r"nowhere: no checkpoint there"):
        train(one_stage(tiny, start_from=str(tmp_path / "nowhere")), tmp_path / "lost")


def test_what_cannot_be_started_from_is_said_before_the_first_stage_is_trained(tiny, tmp_path):
    captions, instruct = tiny.stages
    stages = (captions, dataclasses.replace(instruct, start_from=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="nowhere"):
        train(dataclasses.replace(tiny, stages=stages), tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/*/*"))


def test_a_loss_that_is_not_finite_stops_the_run_and_nothing_spoilt_is_saved(tiny, tmp_path):
    """A rate far too large ruins the second step; the first one was saved."""
    hot = OptimizerConfig("sgd", schedule=Schedule(peak=1e38, shape="constant"), clip=0.0)
    every = dataclasses.replace(tiny.checkpoints, every=1)
    run = dataclasses.replace(one_stage(tiny, 0, optimizer=hot, steps=6), checkpoints=every, log_every=6)
    with pytest.raises(RunError, match=r"stage captions, step \d: loss"):
        train(run, tmp_path)
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    ids = [name for row in report["example_ids"] for name in row]
    assert len(report["example_ids"]) == run.stages[0].data.rows
    assert all("easy_vqa/train/" in name for name in ids)
    saved = [int(path.name) for path in (tmp_path / "checkpoints" / "captions").iterdir()]
    assert all(step < report["step"] for step in saved)
    for step in saved:
        params = params_at(tmp_path / "checkpoints" / "captions" / str(step))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_parameters_without_a_rule_stop_the_run_before_it_begins(tiny, tmp_path):
    table = OptimizerConfig(table=(Rule("^decoder/"), Rule("kernel")))
    with pytest.raises(UserError, match=r"no rule matches .*encoder/"):
        train(one_stage(tiny, 0, optimizer=table), tmp_path)


def test_a_resumed_stage_compiles_its_step_once(tiny, done, tmp_path, monkeypatch):
    """State and metrics of a restored run have the layout of a new one, so the second step is the first's program."""
    workdir = Path(shutil.copytree(done, tmp_path / "run"))
    longer = one_stage(tiny, 0, steps=4)
    programs, build = [], recipe.build_program

    def keep(*arguments):
        programs.append(build(*arguments))
        return programs[-1]

    monkeypatch.setattr(recipe, "build_program", keep)
    shutil.rmtree(workdir / "checkpoints" / "instruct")
    train(longer, workdir, allow_config_change=True)
    assert [program.step._cache_size() for program in programs] == [1]


def test_a_workdir_that_cannot_be_written_ends_with_code_2(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.run(["train", str(TINY), "--workdir", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert error.startswith("vlm: --workdir")


def test_a_validation_has_shares_of_its_own_and_capped_data_end_the_run(tiny, done, tmp_path):
    """The training mixture's shares by kind name a kind that the validation does not have."""
    captions, instruct = tiny.stages
    held_out = Validation((instruct.data.mixture[0],), every=99, batches=1)
    mixture = tuple(dataclasses.replace(entry, max_epochs=0.5) for entry in captions.data.mixture)
    kinds = (KindShare("captions", 1.0),)
    data = dataclasses.replace(captions.data, mixture=mixture, kinds=kinds, temperature=2.0, length=192)
    with pytest.raises(UserError, match=r"the data are used up after \d+ of 99 steps"):
        train(one_stage(tiny, 0, data=data, validation=held_out, steps=99), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < source["epochs_seen"] < 0.52 for source in lines[-1]["sources"].values())
