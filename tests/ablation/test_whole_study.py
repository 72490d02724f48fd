"""A study from end to end: killed, gone on with, evaluated, measured; and one with an arm that fails."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from vlm_jax.ablation.conduct import conduct
from vlm_jax.ablation.places import is_done, runs
from vlm_jax.ablation.study import load_study
from vlm_jax.ablation.summary import summarise
from vlm_jax.ablation.table import lines, remarks
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.cli import run as vlm
from vlm_jax.errors import UserError
from vlm_jax.evaluation.results import read_predictions
from vlm_jax.training.recipe import train

TINY = str(Path(__file__).parent / "tiny_study.py")
ARMS, SEEDS = ("linear", "pooled"), (0, 1)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation() -> Iterator[None]:
    """Most of the time of these tests is XLA's, which they do not measure; a second seed needs not compile again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        before = jax.config.jax_persistent_cache_min_compile_time_secs
        jax.config.update("jax_disable_most_optimizations", True)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        yield
        jax.config.update("jax_disable_most_optimizations", False)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, quick_compilation: None) -> Path:
    """A study that was killed in the middle of a run, and gone on with."""
    workdir = tmp_path_factory.mktemp("study") / "tiny"
    command = [sys.executable, "-m", "vlm_jax.cli", "ablate", TINY, "--workdir", str(workdir)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        saved = workdir / "linear" / "0" / "checkpoints" / "align" / "2" / "files"
        while process.poll() is None and not saved.exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (workdir / "linear" / "0" / "text.json").exists()
    assert vlm(["ablate", TINY, "--workdir", str(workdir)]) == 0
    return workdir


@pytest.fixture(scope="module")
def found(done: Path) -> dict:
    return json.loads((done / "ablation.json").read_text())


def test_a_run_that_was_killed_ends_as_one_that_was_not(done: Path, tmp_path: Path) -> None:
    (run,) = [run for run in runs(load_study(TINY), done) if (run.arm.name, run.seed) == ("linear", 0)]
    train(run.experiment, tmp_path / "whole")
    a, b = (load_model(str(path)).params for path in (run.directory, tmp_path / "whole"))
    assert jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def test_every_run_is_a_workdir_of_its_own(done: Path) -> None:
    every = runs(load_study(TINY), done)
    assert [run.directory for run in every] == [done / arm / str(seed) for seed in SEEDS for arm in ARMS]
    for run in every:
        assert is_done(run)
        for name in ("config.json", "metrics.jsonl", "eval.json", "predictions/vqa.jsonl", "report.html"):
            assert (run.directory / name).exists()


def test_figures_can_be_computed_again_from_the_runs(done: Path, found: dict) -> None:
    for arm in ARMS:
        answers = {seed: read_predictions(done / arm / str(seed), "vqa") for seed in SEEDS}
        scores = {seed: np.mean([answer.score for answer in given]) for seed, given in answers.items()}
        score = found["arms"][arm]["score"]
        assert score["by_seed"] == pytest.approx({str(seed): value for seed, value in scores.items()})
        assert score["mean"] == pytest.approx(np.mean(list(scores.values())))
        pooled = [answer for given in answers.values() for answer in given]
        gains = [answer.score - answer.controls["shuffled_image"][1] for answer in pooled]
        assert score["above_shuffled"]["score"] == pytest.approx(np.mean(gains))
        before = json.loads((done / "decoder" / "text.json").read_text())["texts"]["texts_validation"]["loss"]
        after = [json.loads((done / arm / str(s) / "text.json").read_text())["texts"] for s in SEEDS]
        text = found["arms"][arm]["texts"]["texts_validation"]
        assert text["before"] == before
        assert text["mean"] == pytest.approx(np.mean([entry["texts_validation"]["loss"] for entry in after]))


def test_decoders_of_a_seed_begin_alike_and_the_text_is_the_same(done: Path) -> None:
    targets = {
        json.loads(path.read_text())["texts"]["texts_validation"]["targets"]
        for path in [done / "decoder" / "text.json", *done.glob("*/[01]/text.json")]
    }
    assert len(targets) == 1


def test_costs_are_measured_for_all_arms(done: Path, found: dict) -> None:
    costs = json.loads((done / "costs.json").read_text())
    for arm in ARMS:
        assert len(costs[arm]["step_seconds"]) == 2
        assert min(costs[arm]["step_seconds"] + costs[arm]["tokens_per_second"]) > 0
        assert costs[arm]["peak_bytes"] > costs[arm]["temporary_bytes"] > 0
        assert "error" not in costs[arm]
    linear, pooled = (found["arms"][arm]["costs"] for arm in ARMS)
    assert linear["step_seconds"] == pytest.approx(np.median(costs["linear"]["step_seconds"]))
    assert linear["parameters"] > pooled["parameters"]
    assert linear["flops_per_example"] > pooled["flops_per_example"]
    assert found["same_examples"] is True
    # Three visual tokens more in each example with a picture.
    more = costs["linear"]["positions_per_example"] - costs["pooled"]["positions_per_example"]
    assert more == pytest.approx(3 * costs["linear"]["pictures_per_example"])


def test_the_table_has_every_figure_of_every_arm(done: Path) -> None:
    summary = summarise(load_study(TINY), done)
    table = {line.title.strip(): line.cells for line in lines(summary)}
    assert list(table) == [
        "vqa, %",
        "over seeds",
        "over questions",
        "wrong picture, %",
        "above that",
        "against linear",
        "context tokens",
        "parameters added",
        "MFLOP an example",
        "step, ms",
        "step memory, MB",
        "decode, tokens/s",
        "first token, ms",
        "text loss, texts_validation",
    ]
    assert table["context tokens"] == ("4", "1 (not matched)")
    assert table["against linear"][0] == "–"
    for title in ("parameters added", "MFLOP an example", "step, ms", "decode, tokens/s"):
        assert all(float(re.sub("[,kM]", "", cell)) > 0 for cell in table[title])
    said = remarks(summary)
    assert any(
        line.startswith("pooled: a picture takes 1 of the context") and "One token a picture." in line for line in said
    )
    assert "With one seed, the arms' batches hold the very same examples." in said


def test_the_page_stands_alone(done: Path) -> None:
    page = (done / "report.html").read_text()
    assert not re.search(r"(src|href)=[\"'](?!linear/|pooled/|#)", page)
    for text in ("study tiny", "Made for tests.", "pooled/1/report.html", "Quality and compute", "<svg", "MFLOP"):
        assert text in page
    assert "nan" not in page.lower().replace("significan", "")


def test_what_is_done_is_not_done_again(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in [*done.glob("*/*/*.json"), done / "costs.json"]}
    assert vlm(["ablate", TINY, "--workdir", str(done)]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "0 of 4 runs are to be done" in capsys.readouterr().err


def test_another_config_is_refused_before_anything_runs(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vlm(["ablate", TINY, "--workdir", str(done), "--stages.0.steps", "9"]) == 2
    said = capsys.readouterr().err
    assert "linear/0: it was done with another config (stages.0.steps: 4 -> 9)" in said
    assert "Traceback" not in said


def test_an_arm_that_fails_is_reported_and_the_others_go_on(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path(TINY).read_text(encoding="utf-8")
    # An encoder that trains cannot have cached features, which is found out when the run begins.
    broken = text.replace("def study(", "def sound(") + (
        "\n\ndef study():\n"
        "    whole = sound()\n"
        "    first = whole.arms[0].experiment\n"
        "    stage = dataclasses.replace(first.stages[0], optimizer=OptimizerConfig())\n"
        "    bad = Arm('bad', dataclasses.replace(first, stages=(stage,)))\n"
        "    return dataclasses.replace(whole, arms=(bad, whole.arms[1]), seeds=1)\n"
    )
    (tmp_path / "broken.py").write_text(broken, encoding="utf-8")
    workdir = tmp_path / "work"
    workdir.mkdir()
    # The decoder and the second arm's run are taken from the study that is done.
    for name in ("decoder", "features"):
        (workdir / name).symlink_to(done / name)
    assert vlm(["ablate", str(tmp_path / "broken.py"), "--workdir", str(workdir)]) == 1
    out, error = capsys.readouterr()
    assert "1 of 2 runs failed, first bad, seed 0: stage align: features of" in error
    assert "bad, seed 0: failed: stage align: features of" in out
    found = json.loads((workdir / "ablation.json").read_text())["arms"]
    assert found["bad"]["score"] is None
    assert found["bad"]["failures"]["0"].startswith("stage align")
    assert found["pooled"]["score"]["mean"] >= 0


def test_a_workdir_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert vlm(["ablate", TINY]) == 2
    assert "--workdir is missing" in capsys.readouterr().err


def test_an_unknown_arm_stops_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no arm cube"):
        conduct(load_study(TINY).only(["cube"]), tmp_path / "none")
    assert not (tmp_path / "none").exists()
