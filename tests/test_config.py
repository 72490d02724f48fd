"""Configs are read back as they were written, and say which field is wrong."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.images import Augmentation
from data_pipelines.kinds import Captions, Instruct
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.sources import EasyVQA
from vlm_jax.config import (
    Checkpoints,
    Evaluation,
    EvaluationTask,
    Experiment,
    NextToken,
    Stage,
    Validation,
    load_experiment,
)
from vlm_jax.errors import UserError
from vlm_jax.models.adapters.mlp import MLPAdapterConfig
from vlm_jax.models.adapters.qformer import QFormerAdapterConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.qformer import QFormerConfig
from vlm_jax.models.vit import ConvStem, PatchStem, ViTConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.optim import OptimizerConfig, Rule, Schedule
from vlm_jax.parallel import MeshConfig
from vlm_jax.serialise import differences, from_plain, to_json, to_plain

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))
TINY = ROOT / "tests" / "training" / "tiny_experiment.py"

names = st.text(min_size=1, max_size=8)
small = st.integers(1, 9)
rates = st.one_of(st.integers(0, 3), st.floats(0, 10))
sources = st.builds(
    EasyVQA,
    split=st.sampled_from(["train", "validation", "test"]),
    languages=st.sampled_from([("en",), ("ru",), ("en", "ru")]),
    name=names,
)
kinds = st.one_of(st.builds(Captions, captions=small), st.builds(Instruct, questions=small))
augmentations = st.none() | st.builds(Augmentation, flip=st.booleans(), shift=small, noise=rates)
entries = st.builds(MixtureEntry, sources, kinds, weight=st.floats(0.1, 9), name=names, augmentation=augmentations)
data = st.builds(
    DataConfig,
    st.lists(entries, min_size=1, max_size=2).map(tuple),
    rows=st.just(4),
    length=st.integers(2, 9),
    images=small,
)
optimizers = st.builds(
    OptimizerConfig,
    name=st.sampled_from(["adam", "lion"]),
    arguments=st.dictionaries(names, rates, max_size=2),
    schedule=st.builds(Schedule, peak=rates, shape=st.sampled_from(["constant", "warmup_stable_decay"])),
    table=st.lists(st.builds(Rule, names, rate=rates, weight_decay=rates), min_size=1, max_size=2).map(tuple),
)
stages = st.builds(
    Stage,
    name=names,
    data=data,
    steps=small,
    optimizer=optimizers,
    objective=st.builds(NextToken, chunk=small),
    accumulation=st.sampled_from([1, 2, 4]),
    validation=st.none() | st.builds(Validation, st.lists(entries, min_size=1, max_size=1).map(tuple), every=small),
)
stems = st.one_of(st.just(PatchStem(8)), st.just(ConvStem((8, 16), (2, 4))))
models = st.one_of(
    st.builds(VLMConfig, decoder=st.just(DecoderConfig(400))),
    st.builds(
        VLMConfig,
        decoder=st.just(DecoderConfig(400)),
        encoder=st.builds(ViTConfig, st.just((32, 32)), stems),
        adapter=st.builds(MLPAdapterConfig, layers=st.integers(1, 3)),
    ),
)
experiments = st.builds(
    Experiment,
    name=names,
    model=models,
    stages=st.lists(stages, min_size=1, max_size=3, unique_by=lambda stage: stage.name).map(tuple),
    evaluation=st.builds(Evaluation, st.lists(st.builds(EvaluationTask, names, sources), max_size=2).map(tuple)),
    checkpoints=st.builds(Checkpoints, every=small, keep_every=small),
    mesh=st.builds(MeshConfig, data=st.sampled_from([-1, 1, 8])),
    seed=st.integers(0, 2**31),
)


@settings(max_examples=30, deadline=None)
@given(experiments)
def test_any_experiment_comes_back_from_json(experiment):
    assert from_plain(Experiment, json.loads(to_json(experiment))) == experiment


@pytest.mark.parametrize("path", [*EXPERIMENTS, TINY], ids=lambda path: path.stem)
def test_every_experiment_file_comes_back_from_json(path):
    experiment = load_experiment(str(path))
    back = from_plain(Experiment, json.loads(to_json(experiment)))
    assert back == experiment
    assert to_json(back) == to_json(experiment)
    assert differences(to_plain(experiment), to_plain(back)) == {}


@pytest.fixture(scope="module")
def plain():
    return to_json(load_experiment(str(TINY)))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("seed",), "0", ("config.seed", "'0'", "int")),
        (("seed",), True, ("config.seed", "int")),
        (("seed",), 1.5, ("config.seed", "int")),
        (("log_every",), None, ("config.log_every",)),
        (("name",), 3, ("config.name", "str")),
        (("stages",), {}, ("config.stages", "a list")),
        (("stages", 1, "steps"), "ten", ("config.stages.1.steps", "'ten'")),
        (("stages", 0, "data", "mixture", 0, "weight"), "much", ("config.stages.0.data.mixture.0.weight", "a number")),
        (("stages", 0, "data", "mixture", 0, "weight"), True, ("mixture.0.weight", "a number")),
        (("stages", 0, "data", "mixture", 0, "kind"), {"type": "Kaptions"}, ("mixture.0.kind", "Captions", "Instruct")),
        (("stages", 0, "optimizer", "schedule", "shape"), "cos", ("schedule.shape", "cosine", "linear")),
        (("stages", 0, "optimizer", "arguments"), [1], ("optimizer.arguments", "a mapping")),
        (("stages", 0, "optimizer", "arguments"), {"b2": "x"}, ("optimizer.arguments.b2", "bool or int or float")),
        (("model", "encoder", "image_size"), [32], ("encoder.image_size", "a list of 2")),
        (("model", "encoder"), 4, ("config.model.encoder", "ViTConfig")),
        (("model", "decoder", "heads"), [2], ("decoder.heads", "int")),
        (("model", "decoder", "hedas"), 2, ("decoder", "hedas", "heads")),
    ],
    ids=lambda x: ".".join(map(str, x)) if isinstance(x, tuple) else "",
)
def test_a_wrong_value_is_named_with_its_field(plain, path, value, words):
    config = json.loads(plain)
    part = config
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(UserError) as caught:
        from_plain(Experiment, config)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_missing_field_is_named(plain):
    config = json.loads(plain)
    del config["stages"][1]["steps"]
    with pytest.raises(UserError, match=r"config\.stages\.1: .*steps"):
        from_plain(Experiment, config)


def test_differences_name_each_field():
    old = load_experiment(str(TINY))
    first, second = old.stages
    encoder = dataclasses.replace(old.model.encoder, stem=ConvStem((8,), (16,)))
    new = dataclasses.replace(
        old,
        seed=7,
        model=dataclasses.replace(old.model, encoder=encoder),
        stages=(dataclasses.replace(first, steps=9), dataclasses.replace(second, validation=None)),
    )
    found = differences(to_plain(old), to_plain(new))
    assert found["seed"] == (0, 7)
    assert found["stages.0.steps"] == (6, 9)
    assert found["stages.1.validation"][1] is None
    assert found["model.encoder.stem.type"] == ("PatchStem", "ConvStem")
    assert not any(name.startswith(("stages.0.data", "model.decoder", "name")) for name in found)
    assert differences(to_plain(new), to_plain(old)) == {name: (b, a) for name, (a, b) in found.items()}
    assert differences([1, 2], [1]) == {"": ([1, 2], [1])}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: dataclasses.replace(e, log_every=0), ("log-every",)),
        (lambda e: dataclasses.replace(e, stages=()), ("no stages",)),
        (lambda e: dataclasses.replace(e, stages=(e.stages[0], e.stages[0])), ("share the name captions",)),
        (lambda e: dataclasses.replace(e.stages[0], steps=0), ("stage captions", "steps")),
        (lambda e: dataclasses.replace(e.stages[0], accumulation=3), ("8 rows", "3 accumulation parts")),
        (lambda e: dataclasses.replace(e.checkpoints, every=0), ("checkpoints", "every")),
        (lambda e: Validation((), every=0), ("validation", "every")),
        (lambda e: dataclasses.replace(e, model=VLMConfig(DecoderConfig(100))), ("336 tokens", "100")),
    ],
)
def test_a_config_that_cannot_run_is_refused_when_it_is_made(change, words):
    with pytest.raises(UserError) as caught:
        change(load_experiment(str(TINY)))
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("no such experiment file",)),
        ("def experiment(:", ("SyntaxError",)),
        ("import nowhere_to_be_found", ("ModuleNotFoundError", "nowhere_to_be_found")),
        ("import os\nos.nothing()\ndef experiment(): pass", ("AttributeError", "nothing")),
        ("def experiment():\n    import os\n    return os.nothing", ("nothing",)),
        ("x = 1", ("no experiment()",)),
        ("def experiment():\n    return 4", ("int", "Experiment")),
        ("def experiment():\n    raise ValueError('two\\nlines')", ("ValueError", "two")),
        ("experiment = 3", ("TypeError",)),
    ],
    ids=range(9),
)
def test_an_experiment_file_that_does_not_give_one_is_named(tmp_path, content, words):
    path = tmp_path / "bad.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        load_experiment(str(path))
    assert all(word in str(caught.value) for word in ("bad.py", *words)), str(caught.value)


def test_a_directory_and_another_kind_of_file_are_no_experiments(tmp_path):
    (tmp_path / "directory.py").mkdir()
    (tmp_path / "notes.txt").write_text("def experiment(): pass")
    for name in ("directory.py", "notes.txt"):
        with pytest.raises(UserError, match="no such experiment file"):
            load_experiment(str(tmp_path / name))


def test_whatever_lies_on_the_host_is_known() -> None:
    plain = load_experiment(str(ROOT / "experiments" / "mu.py"))
    decoder = dataclasses.replace(plain.model.decoder, remat="offload_qkv")
    qformer = QFormerAdapterConfig(qformer=QFormerConfig(remat="offload_products"))
    stages = (plain.stages[0], dataclasses.replace(plain.stages[1], offload_optimizer=True))
    assert not plain.offloads()
    for changed in (
        dataclasses.replace(plain, model=dataclasses.replace(plain.model, decoder=decoder)),
        dataclasses.replace(plain, model=dataclasses.replace(plain.model, adapter=qformer)),
        dataclasses.replace(plain, stages=stages),
    ):
        assert changed.offloads()
