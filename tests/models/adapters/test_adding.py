"""An adapter is one new file and one name in the union: the one that docs/adapters.md shows is added to a copy of the
packages, and everything that an experiment needs must work with it, though no other file has heard of it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("vlm_jax", "data_pipelines", "experiments")
UNION = Path("vlm_jax/models/adapters/prompt_based.py")
ADDED = Path("vlm_jax/models/adapters/weighted_mean.py")

PROGRAM = """
import contextlib, dataclasses, io, json, sys
import jax
import numpy as np
from PIL import Image

import vlm_jax
from vlm_jax import cli
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.config import Experiment, load_experiment
from vlm_jax.errors import UserError
from vlm_jax.models.flops import encoder_flops, training_flops
from vlm_jax.overrides import apply_overrides
from vlm_jax.serialise import from_plain, to_json

found = {"package": vlm_jax.__file__}
swapped = ["--model.adapter", "WeightedMeanConfig", "--model.adapter.bias", "False"]
few = ["--stages.0.steps", "12", "--stages.1.steps", "2", "--log-every", "1", "--evaluation.controls", "False"]
few += [f"--evaluation.tasks.{task}.source.validation-images=2" for task in (0, 1)]
mu = load_experiment("experiments/mu.py")
experiment = apply_overrides(mu, [*swapped, *few])
found["adapter"] = repr(experiment.model.adapter)
found["back"] = from_plain(Experiment, json.loads(to_json(experiment))) == experiment
found["tokens"] = experiment.model.prompt_tokens
config = experiment.model
without = dataclasses.replace(config, adapter=dataclasses.replace(mu.model.adapter))
found["flops"] = encoder_flops(config) - encoder_flops(without) + without.adapter.flops(
    config.encoder.features, config.decoder.width)
found["own_flops"] = config.adapter.flops(config.encoder.features, config.decoder.width)
found["step_flops"] = training_flops(config, 2, 64, 1)
try:
    apply_overrides(mu, [*swapped, "--model.adapter.queries", "3"])
except UserError as error:
    found["refusal"] = str(error)

Image.fromarray(np.full((40, 30, 3), 128, np.uint8)).save("picture.png")
commands = {
    "train": ["train", "experiments/mu.py", "--workdir", "run", *swapped, *few],
    "eval": ["eval", "experiments/mu.py", "--workdir", "run", *swapped, *few],
    "generate": ["generate", "--model", "run", "--image", "picture.png", "--prompt", "what?", "--max-new-tokens", "3"],
    "to_hf": ["convert", "to-hf", "run", "exported"],
}
for name, command in commands.items():
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        found[name] = [cli.run(command)]
    found[name].append(said.getvalue())
loaded = load_model("run")
found["reloaded"] = repr(loaded.config.adapter)
found["parameters"] = sorted(
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, _ in jax.tree_util.tree_leaves_with_path(loaded.params["adapter"]))
print(json.dumps(found))
"""


def example_of_the_page():
    """The file that docs/adapters.md shows."""
    page = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    (block,) = [text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "PromptAdapter):" in text]
    return block


def files_of(directory):
    return {path.relative_to(directory): path.read_text("utf-8") for path in directory.rglob("*.py")}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The packages with the new adapter: (directory, what it held before, what it holds now)."""
    directory = tmp_path_factory.mktemp("copy")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    before = files_of(directory)
    (directory / ADDED).write_text(example_of_the_page(), encoding="utf-8")
    first = "from vlm_jax.models.adapters.mlp import MLPAdapterConfig\n"
    union = before[UNION].replace(
        first, f"{first}from vlm_jax.models.adapters.weighted_mean import WeightedMeanConfig\n"
    )
    union, count = re.subn(r"(?<==)\s[\s(]*(?=MLPAdapterConfig\b)", r"\g<0>WeightedMeanConfig | ", union)
    assert count == 1
    (directory / UNION).write_text(union, encoding="utf-8")
    return directory, before, files_of(directory)


@pytest.fixture(scope="module")
def found(copy):
    """What a program of its own, that runs in the copy, makes of the adapter."""
    directory, *_ = copy
    environment = {**os.environ, "PYTHONPATH": str(directory), "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["package"]).is_relative_to(directory)
    return found


def test_it_takes_one_new_file_and_one_that_changes(copy):
    _, before, after = copy
    assert {path for path in after if before.get(path) != after[path]} == {ADDED, UNION}
    assert set(after) - set(before) == {ADDED}
    changed = [line for line in after[UNION].splitlines() if line not in before[UNION].splitlines()]
    assert len(changed) == 2, "one line imports it, one is in the union"


def test_it_is_an_adapter_like_others_to_configs_and_the_command_line(found):
    assert found["adapter"] == "WeightedMeanConfig(bias=False)"
    assert found["back"]
    assert found["tokens"] == 1
    assert "queries" in found["refusal"]
    assert "bias" in found["refusal"]


def test_it_trains_and_is_evaluated_and_asked(copy, found):
    directory, *_ = copy
    for command in ("train", "eval", "generate"):
        code, said = found[command]
        assert code == 0, said
    lines = [json.loads(line) for line in (directory / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["stage"] == "captions"]
    assert losses[-1] < losses[0] - 0.3
    tasks = json.loads((directory / "run" / "eval.json").read_text())["tasks"]
    assert set(tasks) == {"easy_vqa_en", "easy_vqa_ru"}


def test_it_is_saved_and_read_again(found):
    assert found["reloaded"] == "WeightedMeanConfig(bias=False)"
    assert found["parameters"] == ["map/kernel", "weights"]


def test_its_flops_count(found):
    assert found["own_flops"] > 0
    assert found["flops"] == found["own_flops"]
    assert found["step_flops"] > 0


def test_its_export_is_refused_in_one_line_that_names_it(found):
    code, said = found["to_hf"]
    assert code == 2
    (line,) = [line for line in said.splitlines() if line.startswith("vlm: ")]
    assert "WeightedMeanConfig" in line
