"""Pictures of any shape under a mask, against transformers; and the parts that read them."""

import pytest
from cases_padded import CASES
from harness import assert_same, run

from vlm_jax.convert import load_hf, run_hf_inputs


@pytest.mark.parametrize("name", CASES)
def test_logits_and_hidden_states(name, built):
    case = CASES[name]
    directory, theirs = built(name, case)
    inputs = case.inputs()
    ours = run_hf_inputs(*load_hf(directory), inputs)
    assert_same(ours, run(theirs, inputs), inputs)
