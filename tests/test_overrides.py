"""Overrides from the command line: typed, and one line when they are wrong."""

from pathlib import Path

import pytest

from data_pipelines.kinds import Instruct
from vlm_jax.config import load_experiment
from vlm_jax.errors import UserError
from vlm_jax.models.adapters import MLPAdapterConfig
from vlm_jax.models.vit import ConvStem, ViTConfig
from vlm_jax.overrides import apply_overrides, field_names
from vlm_jax.pictures import Tiling

TINY = Path(__file__).parent / "training" / "tiny_experiment.py"


@pytest.fixture(scope="module")
def tiny():
    return load_experiment(str(TINY))


def value_of(experiment, path):
    for part in path.split("."):
        experiment = experiment[int(part)] if part.isdigit() else getattr(experiment, part)
    return experiment


@pytest.mark.parametrize(
    ("arguments", "path", "expected"),
    [
        (["--stages.0.steps", "10"], "stages.0.steps", 10),
        (["--stages.1.steps=3"], "stages.1.steps", 3),
        (["--log-every", "7"], "log_every", 7),
        (["--log_every", "7"], "log_every", 7),
        (["--mesh.data", "-1"], "mesh.data", -1),
        (["--stages.0.optimizer.schedule.peak", "1e-4"], "stages.0.optimizer.schedule.peak", 1e-4),
        (["--stages.0.optimizer.schedule.peak", "1"], "stages.0.optimizer.schedule.peak", 1.0),
        (["--stages.0.optimizer.schedule.shape", "linear"], "stages.0.optimizer.schedule.shape", "linear"),
        (["--stages.1.optimizer.table.0.rate", "0.5"], "stages.1.optimizer.table.0.rate", 0.5),
        (["--stages.0.optimizer.arguments", "b2", "0.95"], "stages.0.optimizer.arguments", {"b2": 0.95}),
        (["--stages.0.data.mixture.1.weight", "3"], "stages.0.data.mixture.1.weight", 3.0),
        (["--model.encoder.image-size", "64", "64"], "model.encoder.image_size", (64, 64)),
        (["--model.decoder.tied-embeddings", "False"], "model.decoder.tied_embeddings", False),
        (["--stages.1.validation", "None"], "stages.1.validation", None),
        (["--stages.0.data.mixture.0.augmentation", "None"], "stages.0.data.mixture.0.augmentation", None),
        (["--name", "имя"], "name", "имя"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_an_override_changes_its_field_and_no_other(tiny, arguments, path, expected):
    changed = apply_overrides(tiny, arguments)
    found = value_of(changed, path)
    assert found == expected
    assert type(found) is type(expected)
    before, after = field_names(tiny), field_names(changed)
    moved = {name for name in before if before[name] != after.get(name)}
    assert all(name.startswith(path) for name in moved)


def test_several_overrides_and_none(tiny):
    assert apply_overrides(tiny, []) is tiny
    changed = apply_overrides(tiny, ["--seed", "4", "--stages.0.steps", "2", "--stages.1.data.rows", "16"])
    assert (changed.seed, changed.stages[0].steps, changed.stages[1].data.rows) == (4, 2, 16)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stages.0.stepps", "10"], ("--stages.0.stepps", "did you mean --stages.0.steps")),
        (["--learning-rate", "10"], ("--learning-rate",)),
        (["--zzzz", "1"], ("--zzzz", "--overrides")),
        (["--stages.5.steps", "10"], ("--stages.5.steps", "did you mean --stages.")),
        (["--stages.0.steps", "ten"], ("--stages.0.steps", "ten")),
        (["--stages.0.steps", "1.5"], ("--stages.0.steps", "1.5")),
        (["--stages.0.steps"], ("--stages.0.steps",)),
        (["--seed", "1", "stray"], ("stray",)),
        (["stray"], ("stray",)),
        (["--stages.0.optimizer.schedule.shape", "cos"], ("cos", "cosine")),
        (["--stages.0.steps", "0"], ("steps",)),
        (["--stages.0.accumulation", "3"], ("3 accumulation parts",)),
        (["--model.decoder.vocabulary-size", "3"], ("3",)),
        (["--model.encoder.image-size", "64"], ("image-size",)),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_a_wrong_override_is_one_line(tiny, arguments, words):
    with pytest.raises(UserError) as caught:
        apply_overrides(tiny, arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("arguments", "path", "expected"),
    [
        (["--model.adapter", "MLPAdapterConfig"], "model.adapter", MLPAdapterConfig()),
        (["--model.adapter=MLPAdapterConfig", "--model.adapter.bias=False"], "model.adapter.bias", False),
        (["--model.adapter.layers", "3", "--model.adapter", "MLPAdapterConfig"], "model.adapter.layers", 3),
        (["--model.encoder.stem", "ConvStem"], "model.encoder.stem", ConvStem()),
        (["--stages.0.data.mixture.1.kind", "Instruct"], "stages.0.data.mixture.1.kind", Instruct()),
        (["--model.tiling", "Tiling", "--model.tiling.choose", "area"], "model.tiling", Tiling(choose="area")),
        (["--model.tiling", "None"], "model.tiling", None),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_another_config_takes_the_place_of_a_part(tiny, arguments, path, expected):
    assert value_of(apply_overrides(tiny, arguments), path) == expected


def test_parts_of_a_new_part_can_be_chosen_too(tiny):
    whole = ["--model.encoder", "ViTConfig", "--model.encoder.image-size", "48", "48"]
    stem = ["--model.encoder.stem", "ConvStem", "--model.encoder.stem.channels", "8", "16"]
    encoder = apply_overrides(
        tiny, [*whole, "--seed", "3", *stem, "--model.encoder.stem.strides", "4", "4"]
    ).model.encoder
    assert encoder == ViTConfig((48, 48), ConvStem((8, 16), (4, 4)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.encoder", "Conv"], ("--model.encoder takes the name of a config", "ConvNeXtConfig")),
        (["--model.encoder.depths", "1"], ("model.encoder is ViTConfig; --model.encoder ConvNeXtConfig",)),
        (["--model.tiling.choose", "area"], ("model.tiling is None; --model.tiling Tiling",)),
        (
            ["--model.encoder", "ConvNeXtConfig", "--model.encoder.zzz=1"],
            ("--model.encoder.zzz", "fields are image_size"),
        ),
        (["--model.encoder", "ConvNeXtConfig", "--model.encoder.depth=1"], ("did you mean --model.encoder.depths?",)),
        (["--model.encoder", "ConvNeXtConfig", "--model.encoder.patch=x"], ("--model.encoder.patch", "x")),
        (["--stages.0.data.mixture.0.source", "JSONLines"], ("JSONLines", "'path'", "experiment file")),
        (["--model.adapter", "None"], ("both encoder and adapter",)),
        (["--model.adapter", "CrossAttentionConfig", "--model.adapter.layers", "0", "9"], ("before layer 9", "0 to 1")),
        (["--model.adapter", "QFormerAdapterConfig", "--model.adapter.memory", "3"], ("model.adapter is", "queries")),
        (["--model.adapter", "MLPAdapterConfig", "--model.adapter.layers", "9"], ("layers is 9",)),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_a_wrong_choice_of_a_part_is_one_line(tiny, arguments, words):
    with pytest.raises(UserError) as caught:
        apply_overrides(tiny, arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_every_field_that_is_listed_can_be_overridden_with_its_own_value(tiny):
    """What `--overrides` prints is no idle promise; scalars only, written as they are listed."""
    arguments = []
    for name, value in field_names(tiny).items():
        if isinstance(value, (int, float, str)) and value != "":
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    assert len(arguments) > 100
    assert apply_overrides(tiny, arguments) == tiny
