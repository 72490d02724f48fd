"""What a study is: names, seeds, sizes, overrides; and that the adapters' one is what it says."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.loader import make_loader
from vlm_jax.ablation.costs import by_formula, context_tokens
from vlm_jax.ablation.places import runs
from vlm_jax.ablation.study import Study, load_study, with_overrides
from vlm_jax.batch import Batch
from vlm_jax.checkpoints import abstract_params
from vlm_jax.errors import UserError
from vlm_jax.losses.next_token import next_token_objective
from vlm_jax.models.vlm import VLM
from vlm_jax.optim import assign_rules, build_optimizer, split
from vlm_jax.training.state import TrainState
from vlm_jax.training.step import train_step
from vlm_jax.training.workdir import build_processor

ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = str(ROOT / "experiments" / "ablate_adapter.py")
TINY = str(Path(__file__).parent / "tiny_study.py")


@pytest.fixture(scope="module")
def tiny() -> Study:
    return load_study(TINY)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"arms": ()}, "no arms"),
        ({"seeds": 0}, "seeds is 0"),
        ({"quality": "ocr"}, "no evaluation task ocr"),
        ({"name": "x", "arms": "doubled"}, "'linear'"),
        ({"arms": "features"}, "'features'"),
        ({"arms": "../up"}, "'../up'"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused(tiny: Study, change: dict, named: str) -> None:
    if change.get("arms") == "doubled":
        change = change | {"arms": (tiny.arms[0], tiny.arms[0])}
    elif isinstance(change.get("arms"), str):
        change = {"arms": (dataclasses.replace(tiny.arms[0], name=change["arms"]),)}
    with pytest.raises(UserError, match=named):
        dataclasses.replace(tiny, **change)


def test_only_keeps_the_order_of_the_study(tiny: Study) -> None:
    assert [arm.name for arm in tiny.only(["pooled", "linear"]).arms] == ["linear", "pooled"]
    with pytest.raises(UserError, match="no arm cube; its arms are linear, pooled"):
        tiny.only(["cube"])


@pytest.mark.parametrize(
    ("text", "size", "named"),
    [
        ("x = 1", None, "defines no study"),
        ("def study(): return 3", None, "gave int"),
        ("def study(): return 3", "8b", "takes no size"),
        ("def study(): raise RuntimeError('no')", None, "RuntimeError: no"),
    ],
)
def test_a_file_that_is_no_study(tmp_path: Path, text: str, size: str | None, named: str) -> None:
    (tmp_path / "study.py").write_text(text)
    with pytest.raises(UserError, match=named):
        load_study(str(tmp_path / "study.py"), size)


def test_overrides_reach_every_arm_and_a_wrong_one_is_named(tiny: Study) -> None:
    changed = with_overrides(tiny, ["--stages.0.steps", "7"], seeds=5)
    assert [arm.experiment.stages[0].steps for arm in changed.arms] == [7, 7]
    assert changed.seeds == 5
    with pytest.raises(UserError, match="unknown override"):
        with_overrides(tiny, ["--stages.0.stepz", "7"])


def test_runs_go_seed_by_seed_from_the_same_decoder(tiny: Study, tmp_path: Path) -> None:
    every = runs(tiny, tmp_path)
    assert [(run.arm.name, run.seed) for run in every] == [("linear", 0), ("pooled", 0), ("linear", 1), ("pooled", 1)]
    assert [run.experiment.seed for run in every] == [0, 0, 1, 1]
    assert {run.experiment.parts.decoder for run in every} == {str(tmp_path / "decoder")}
    assert {run.experiment.feature_cache.directory for run in every} == {str(tmp_path / "features")}


def test_an_unknown_size_is_named() -> None:
    with pytest.raises(UserError, match="--size 3b: choose small, 2b or 8b"):
        load_study(ADAPTERS, "3b")


@pytest.mark.parametrize("size", ["small", "2b", "8b"])
def test_adapters_are_matched_at_the_budget_but_for_cross_attention(size: str) -> None:
    study = load_study(ADAPTERS, size)
    spent = {arm.name: context_tokens(arm.experiment.model) for arm in study.arms}
    assert {name for name, tokens in spent.items() if tokens != study.budget} == {"cross_attention"}
    assert spent["cross_attention"] == 1
    assert "cannot be matched" in study.arms[-1].note
    for field in ("encoder", "decoder", "precision"):
        assert len({repr(getattr(arm.experiment.model, field)) for arm in study.arms}) == 1
    for arm in study.arms:
        first = study.arms[0].experiment
        assert [stage.optimizer for stage in arm.experiment.stages] == [stage.optimizer for stage in first.stages]
        assert [stage.steps for stage in arm.experiment.stages] == [stage.steps for stage in first.stages]


@pytest.mark.parametrize("size", ["2b", "8b"])
def test_every_arm_traces_at_size(size: str) -> None:
    for arm in load_study(ADAPTERS, size).arms:
        stage, config = arm.experiment.stages[-1], arm.experiment.model
        model = VLM(config)
        params = abstract_params(model)
        rules = assign_rules(stage.optimizer.table, params)
        optimizer = build_optimizer(stage.optimizer, rules, stage.steps)
        trained, frozen = split(params, rules)
        frozen = jax.tree.map(lambda x, to=config.precision.compute: jax.ShapeDtypeStruct(x.shape, to), frozen)
        moments = jax.eval_shape(optimizer.init, trained)
        state = TrainState(jax.ShapeDtypeStruct((), "int32"), trained, frozen, moments)  # type: ignore[arg-type]
        batch = Batch.spec(
            stage.data.rows,
            stage.data.length,
            images=stage.data.images,
            image_size=config.image_size,
            examples=stage.data.budget.entries,
            in_sequence=config.prompt_tokens > 0,
            pictures=config.pictures,
        )
        sources = len(stage.data.mixture)
        step = functools.partial(
            train_step,
            objective=lambda p, part, apply=model.apply, n=sources: next_token_objective(apply, p, part, n),
            optimizer=optimizer,
            rate=stage.optimizer.schedule.build(stage.steps),
        )
        after, metrics = jax.eval_shape(step, state, batch)
        assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
        assert metrics["loss"].shape == ()


def test_arms_of_one_seed_see_the_same_examples_in_the_same_order(tmp_path: Path) -> None:
    study = load_study(ADAPTERS)
    processor = build_processor(study.arms[0].experiment)
    seen = {}
    for arm in study.arms:
        model = arm.experiment.model
        own = dataclasses.replace(processor, prompt_tokens=model.prompt_tokens, pictures=model.pictures)
        with contextlib.closing(make_loader(arm.experiment.stages[-1], own, seed=1)) as loader:
            drawn = list(itertools.islice(loader, 2))
        learned = [[row[weights > 0].tolist() for row, weights in _learned(batch)] for batch, _ in drawn]
        seen[arm.name] = ([info.example_ids for _, info in drawn], learned)
        assert not drawn[-1][1].quarantined
    assert len(seen) == 5
    assert all(examples == seen["mlp"] for examples in seen.values())


def _learned(batch: Batch) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return zip(np.asarray(batch.targets), np.asarray(batch.loss_weights), strict=True)


def test_formulas_know_what_an_adapter_adds(tiny: Study) -> None:
    figures = {arm.name: by_formula(arm.experiment.model, 20.0, 1.0, 1) for arm in tiny.arms}
    # 4 x 16 features of a 2 x 2 square to width 16, and a bias; 16 to 16.
    assert figures["linear"]["parameters"] == 64 * 16 + 16
    assert figures["pooled"]["parameters"] == 16 * 16 + 16
    assert figures["linear"]["flops_per_example"] > figures["pooled"]["flops_per_example"]
    more = by_formula(tiny.arms[0].experiment.model, 40.0, 1.0, 1)
    assert more["flops_per_example"] > 1.9 * figures["linear"]["flops_per_example"] - 2 * 64 * 16 * 4
