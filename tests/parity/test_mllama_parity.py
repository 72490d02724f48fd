"""Llama 3.2 Vision against transformers: numbers, the way out and back in, and whole prompts."""

import pytest
from cases_mllama import CASES
from harness import assert_same, run
from round_trip import assert_comes_back

from vlm_jax.convert import load_hf, run_hf_inputs


@pytest.fixture(params=CASES)
def model(request, built):
    """(case, transformers' model, our config, our parameters)."""
    case = CASES[request.param]
    directory, theirs = built(request.param, case)
    return case, theirs, *load_hf(directory)


def test_logits_and_hidden_states(model):
    case, theirs, config, params = model
    inputs = case.inputs()
    assert_same(run_hf_inputs(config, params, inputs), run(theirs, inputs), inputs)


def test_out_and_in_again(model, tmp_path):
    case, theirs, config, params = model
    assert_comes_back(config, params, theirs, case.inputs(), tmp_path, type(theirs))
