"""Q-Formers by themselves, BLIP's encoders, and whole BLIP-2 and InstructBLIP against transformers, in and out."""

import jax
import numpy as np
import pytest
import torch
import transformers
from cases_qformer import CASES
from harness import assert_same, run
from safetensors.numpy import load_file

from vlm_jax.convert import load_hf, run_hf_inputs, save_hf


@pytest.fixture(params=CASES)
def model(request, built):
    """(case, transformers' model, our config, our parameters)."""
    case = CASES[request.param]
    directory, theirs = built(request.param, case)
    return case, theirs, *load_hf(directory)


def test_numbers(model):
    case, theirs, config, params = model
    inputs = case.inputs()
    assert_same(run_hf_inputs(config, params, inputs), run(theirs, inputs), inputs)


def test_out_and_in_again(model, tmp_path):
    case, theirs, config, params = model
    save_hf(config, params, tmp_path / "out")
    again, same = load_hf(tmp_path / "out")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, same, params)
    save_hf(again, same, tmp_path / "twice")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "twice"))
    assert first.keys() == second.keys()
    architecture = transformers.Blip2VisionModel if case.model.endswith("VisionModel") else type(theirs)
    exported, info = architecture.from_pretrained(
        tmp_path / "out", attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not {name: keys for name, keys in info.items() if keys}
    inputs = case.inputs()
    assert_same(run(exported.eval(), inputs), run(theirs, inputs), inputs)
