"""Figures of a study from files made by hand: intervals over seeds and questions, paired differences, remarks."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from vlm_jax.ablation.page import write_page
from vlm_jax.ablation.places import TEXT_FILE, run_of, write_json
from vlm_jax.ablation.study import Study, load_study, with_overrides
from vlm_jax.ablation.summary import Summary, summarise, write_summary
from vlm_jax.ablation.table import lines, remarks
from vlm_jax.errors import UserError
from vlm_jax.evaluation.results import Answer, write_results
from vlm_jax.evaluation.results import summarise as summarise_task
from vlm_jax.serialise import to_json

TINY = str(Path(__file__).parent / "tiny_study.py")
PICTURES, SEEDS = 10, 3
RIGHT = {"linear": (9, 8, 7), "pooled": (4, 5, 6)}
"""Right answers of each seed, of two questions about each of 10 pictures."""
LOSS = {"linear": (2.1, 2.2, 2.3), "pooled": (2.0, 2.0, 2.0)}


def answers(right: int, wrong_right: int) -> list[Answer]:
    found = []
    for number in range(2 * PICTURES):
        score, control = float(number < 2 * right), float(number < 2 * wrong_right)
        found.append(
            Answer(
                id=f"q{number}",
                picture=f"p{number // 2}",
                image="",
                language="en",
                type="color",
                question="?",
                answer="red",
                prediction="red" if score else "blue",
                score=score,
                controls={"shuffled_image": ("red", control)},
            )
        )
    return found


@pytest.fixture
def study() -> Study:
    return with_overrides(load_study(TINY), (), seeds=SEEDS)


@pytest.fixture
def workdir(study: Study, tmp_path: Path) -> Path:
    for arm in study.arms:
        for seed in range(SEEDS):
            run = run_of(study, tmp_path, arm, seed)
            run.directory.mkdir(parents=True)
            (run.directory / "config.json").write_text(to_json(run.experiment))
            given = answers(RIGHT[arm.name][seed], 3 if arm.name == "linear" else 5)
            write_results(run.directory, "m", [summarise_task("vqa", "exact_match", given)])
            texts = {"texts_validation": {"loss": LOSS[arm.name][seed], "targets": 50.0}}
            write_json(run.directory / TEXT_FILE, {"texts": texts, "seconds": 60.0 + seed})
    write_json(tmp_path / "decoder" / TEXT_FILE, {"texts": {"texts_validation": {"loss": 2.0, "targets": 50.0}}})
    return tmp_path


@pytest.fixture
def summary(study: Study, workdir: Path) -> Summary:
    return summarise(study, workdir)


def interval(values: list[float]) -> tuple[float, float]:
    return stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))


def test_the_score_has_an_interval_over_seeds_and_one_over_questions(summary: Summary) -> None:
    score = summary.arms[0].score
    assert score is not None
    assert score.by_seed == {0: 0.9, 1: 0.8, 2: 0.7}
    assert score.mean == pytest.approx(0.8)
    low, high = interval([0.9, 0.8, 0.7])
    assert score.over_seeds is not None
    assert (score.over_seeds.low, score.over_seeds.high) == pytest.approx((low, min(high, 1.0)))
    # Over questions: the mean of each picture over seeds and its two questions is one observation.
    pictures = np.mean([[float(p < right) for p in range(PICTURES)] for right in RIGHT["linear"]], axis=0)
    low, high = interval(list(pictures))
    assert (score.over_questions.low, score.over_questions.high) == pytest.approx((low, min(high, 1.0)))
    assert score.over_questions.n == 2 * PICTURES * SEEDS


def test_the_control_is_subtracted_question_by_question(summary: Summary) -> None:
    linear, pooled = (arm.score for arm in summary.arms)
    assert linear is not None and linear.above_shuffled is not None  # noqa: PT018
    assert pooled is not None and pooled.above_shuffled is not None  # noqa: PT018
    assert linear.shuffled == pytest.approx(0.3)
    assert linear.above_shuffled.score == pytest.approx(0.5)
    assert linear.says_something
    assert pooled.above_shuffled.score == pytest.approx(0.0)
    assert not pooled.says_something
    assert "pooled: not better than with wrong pictures: its score says nothing." in remarks(summary)
    assert not any(line.startswith("linear: not better") for line in remarks(summary))


def test_arms_are_compared_seed_by_seed(summary: Summary) -> None:
    assert summary.arms[0].difference is None
    difference = summary.arms[1].difference
    assert difference is not None
    assert difference.mean == pytest.approx(np.mean([-0.5, -0.3, -0.1]))
    assert difference.over_seeds is not None
    assert (difference.over_seeds.low, difference.over_seeds.high) == pytest.approx(interval([-0.5, -0.3, -0.1]))


def test_text_loss_is_a_change_from_the_decoder(summary: Summary) -> None:
    linear, pooled = (arm.texts["texts_validation"] for arm in summary.arms)
    assert linear.before == 2.0
    assert linear.change is not None
    assert linear.change.score == pytest.approx(0.2)
    assert (linear.change.low, linear.change.high) == pytest.approx(interval([0.1, 0.2, 0.3]))
    assert pooled.change is None  # no spread to judge by
    table = {line.title.strip(): line.cells for line in lines(summary)}
    assert table["text loss, texts_validation"][0].startswith("+0.200 (")
    assert table["text loss, texts_validation"][1] == "+0.000"


def test_without_costs_the_table_has_dashes_and_the_page_is_whole(summary: Summary, workdir: Path) -> None:
    table = {line.title.strip(): line.cells for line in lines(summary)}
    assert table["step, ms"] == ("–", "–")
    page = write_page(summary, workdir).read_text()
    assert "Quality" in page
    assert "Quality and compute" not in page
    assert summary.same_examples is None


def test_what_is_missing_is_said(study: Study, workdir: Path) -> None:
    (workdir / "pooled" / "2" / TEXT_FILE).unlink()
    write_json(workdir / "pooled" / "2" / "failure.json", {"title": "pooled, seed 2", "message": "no room"})
    summary = summarise(study, workdir)
    assert summary.arms[1].score is not None
    assert set(summary.arms[1].score.by_seed) == {0, 1}
    said = remarks(summary)
    assert "pooled: 2 of 3 seeds are done." in said
    assert "pooled, seed 2: failed: no room." in said


def test_the_json_has_numbers_only(summary: Summary, workdir: Path) -> None:
    def walk(value: object) -> None:
        if isinstance(value, dict):
            for entry in value.values():
                walk(entry)
        elif isinstance(value, list):
            for entry in value:
                walk(entry)
        else:
            assert not isinstance(value, float) or math.isfinite(value)

    plain = json.loads(write_summary(summary, workdir).read_text())
    walk(plain)
    assert plain["arms"]["linear"]["score"]["says_something"] is True
    assert plain["first_arm"] == "linear"


def test_a_damaged_file_is_named(study: Study, workdir: Path) -> None:
    (workdir / "linear" / "0" / TEXT_FILE).write_text('{"texts": ')
    with pytest.raises(UserError, match=r"linear/0/text.json: damaged"):
        summarise(study, workdir)
