"""What transformers gives today is what tests/golden/parity holds; `pytest tests/parity --update-golden` writes it."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from harness import TOLERANCE, Case, run, saved_shapes

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden" / "parity"

CASES: dict[str, Case] = {
    name: case
    for file in sorted(HERE.glob("cases_*.py"))
    for name, case in importlib.import_module(file.stem).CASES.items()
}


@pytest.mark.parametrize("name", CASES)
def test_golden_arrays_are_what_transformers_gives(name, built, request):
    case = CASES[name]
    directory, model = built(name, case)
    inputs = case.inputs()
    outputs = run(model, inputs)
    path = GOLDEN / f"{name}.npz"
    if request.config.getoption("--update-golden"):
        tensors = json.dumps({"seed": case.seed, "shapes": saved_shapes(directory)})
        np.savez_compressed(
            path,
            config=np.array((directory / "config.json").read_text()),
            tensors=np.array(tensors),
            **{f"inputs/{key}": array for key, array in inputs.items()},
            **{f"outputs/{key}": array for key, array in outputs.items()},
        )
    with np.load(path) as golden:
        kept = {key.removeprefix("outputs/"): golden[key] for key in golden.files if key.startswith("outputs/")}
        assert json.loads(str(golden["tensors"]))["shapes"] == json.loads(json.dumps(saved_shapes(directory)))
        for key in inputs:
            np.testing.assert_array_equal(golden[f"inputs/{key}"], inputs[key])
    assert kept.keys() == outputs.keys()
    for key, array in outputs.items():
        assert np.abs(array - kept[key]).max() <= TOLERANCE / 10, key


def test_every_golden_file_has_a_case():
    assert {path.stem for path in GOLDEN.glob("*.npz")} == CASES.keys()
