"""A cross-attention model over an epoch of every kind of row: one program, and text stays what it was."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from test_every_kind import sets_of

from data_pipelines.loader import make_loader
from data_pipelines.mixture import DataConfig
from vlm_jax.checkpoints import initialise_missing
from vlm_jax.config import load_experiment
from vlm_jax.generation.compilations import compilations
from vlm_jax.losses.next_token import next_token_objective
from vlm_jax.models.adapters import CrossAttentionConfig
from vlm_jax.models.vlm import VLM
from vlm_jax.optim import OptimizerConfig, Rule, Schedule, assign_rules, build_optimizer
from vlm_jax.parallel import MeshConfig, build_layout, put_batch, use_layout
from vlm_jax.training.state import create_state
from vlm_jax.training.step import compile_step, train_step
from vlm_jax.training.workdir import build_processor

TINY = Path(__file__).with_name("tiny_experiment.py")
ADAPTER_ALONE = (Rule("^(encoder|decoder)/", rate=0), Rule(".*"))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    tiny = load_experiment(str(TINY))
    mixture = tuple(
        dataclasses.replace(entry, schedule=(), max_epochs=1) for entry in sets_of(tmp_path_factory.mktemp("sets"))
    )
    data = DataConfig(mixture, rows=8, length=160, images=3, examples=8, virtual_shards=2)
    stage = dataclasses.replace(tiny.stages[0], name="pretrain", data=data)
    model = dataclasses.replace(tiny.model, adapter=CrossAttentionConfig(every=1, visible="group"))
    return dataclasses.replace(tiny, model=model, stages=(stage,))


def kinds_of_rows(batch):
    """What stands in each row, as a set of names."""
    for row in range(len(batch.tokens)):
        segments, seen = batch.segment_ids[row], batch.visible_images[row]
        pictured = [bool((seen[segments == s, 1] > 0).any()) for s in range(1, int(segments.max()) + 1)]
        yield {
            "text alone": pictured and not any(pictured),
            "several pictures": (batch.image_ids[row] > 0).sum() > 1,
            "text beside pictures": any(pictured) and not all(pictured),
            "branches": bool(batch.branch_ids[row].any()),
        }


def test_an_epoch_of_mixed_rows_is_one_program_and_text_is_untouched(experiment):
    jax.config.update("jax_disable_most_optimizations", True)
    config, layout = experiment.model, build_layout(MeshConfig())
    model = VLM(config)
    optimizer_config = OptimizerConfig(schedule=Schedule(peak=3e-3, shape="constant"), table=ADAPTER_ALONE)
    met: set[str] = set()
    with use_layout(layout):
        params = initialise_missing(model, layout, seed=0)
        rules = assign_rules(ADAPTER_ALONE, params)
        optimizer = build_optimizer(optimizer_config, rules, 100)
        state = create_state(params, rules, optimizer, "float32", layout)
        step = compile_step(
            functools.partial(
                train_step,
                objective=lambda p, part: next_token_objective(model.apply, p, part, 4),
                optimizer=optimizer,
                rate=optimizer_config.schedule.build(100),
                accumulation=1,
            ),
            state,
        )
        loader = make_loader(experiment.stages[0], build_processor(experiment), seed=0)
        losses, before, mixed = [], None, None
        for batch, _ in loader:
            assert batch.visual_index is None
            for kinds in kinds_of_rows(batch):
                met |= {name for name, there in kinds.items() if there}
                mixed = batch if kinds["text beside pictures"] else mixed
            state, metrics = step(state, put_batch(batch, layout))
            before = before or compilations().compiled
            losses.append(float(metrics["loss"]))
        loader.close()
        assert len(losses) > 4
        assert np.isfinite(losses).all()
        assert step._cache_size() == 1
        assert compilations().compiled == before, "something was compiled after the first step"
    assert met == {"text alone", "several pictures", "text beside pictures", "branches"}
    gates = state.params["adapter"]["blocks"]["attention_gate"]
    assert (np.abs(np.asarray(gates)) > 1e-3).all(), "the gates have opened"
    text = dataclasses.replace(mixed, images=None, visible_images=None, image_ids=None, tile_index=None)
    llm = VLM(dataclasses.replace(config, encoder=None, adapter=None))
    expected = np.asarray(
        jax.jit(lambda p: llm.apply({"params": {"decoder": p["decoder"]}}, text).logits)(state.params)
    )
    found = np.asarray(jax.jit(lambda p: model.apply({"params": p}, mixed).logits)(state.params))
    sees = mixed.visible_images[:, :, 1] > 0
    beside = (mixed.segment_ids > 0) & ~sees & mixed.visible_images.any((1, 2))[:, None]
    assert beside.any()
    np.testing.assert_allclose(found[beside], expected[beside], atol=1e-5)
    assert np.abs(found - expected)[sees].max() > 1e-3
