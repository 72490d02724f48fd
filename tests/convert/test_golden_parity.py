"""The same comparisons as in tests/parity, without torch: transformers' answers are kept in tests/golden/parity."""

import json
from pathlib import Path

import numpy as np
import pytest
from weights import write_directory  # tests/parity/weights.py

from vlm_jax.convert import load_hf, run_hf_inputs

GOLDEN = sorted((Path(__file__).resolve().parents[1] / "golden" / "parity").glob("*.npz"))
TOLERANCE = 1e-4


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_outputs_are_those_of_transformers(path, tmp_path):
    with np.load(path) as golden:
        tensors = json.loads(str(golden["tensors"]))
        write_directory(tmp_path, str(golden["config"]), tensors["shapes"], tensors["seed"])
        inputs = {key.removeprefix("inputs/"): golden[key] for key in golden.files if key.startswith("inputs/")}
        expected = {key.removeprefix("outputs/"): golden[key] for key in golden.files if key.startswith("outputs/")}
    config, params = load_hf(tmp_path)
    ours = run_hf_inputs(config, params, inputs)
    mask = inputs.get("attention_mask")
    for name, theirs in expected.items():
        assert ours[name].shape == theirs.shape, name
        difference = np.abs(ours[name] - theirs)
        if mask is not None and theirs.shape[:2] == mask.shape:
            difference = difference[mask != 0]
        assert difference.max() <= TOLERANCE, name


def test_there_are_golden_arrays():
    assert GOLDEN
