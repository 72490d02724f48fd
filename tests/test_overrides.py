"""Overrides from the command line: typed, and one line when they are wrong."""

from pathlib import Path

import pytest

from vlm_jax.config import load_experiment
from vlm_jax.errors import UserError
from vlm_jax.overrides import apply_overrides, field_names

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


def test_every_field_that_is_listed_can_be_overridden_with_its_own_value(tiny):
    """What `--overrides` prints is no idle promise; scalars only, written as they are listed."""
    arguments = []
    for name, value in field_names(tiny).items():
        if isinstance(value, (int, float, str)) and value != "":
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    assert len(arguments) > 100
    assert apply_overrides(tiny, arguments) == tiny
