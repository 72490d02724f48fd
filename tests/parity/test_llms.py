"""Every LLM family against transformers: numbers, greedy tokens, and the way out and back in."""

import jax
import numpy as np
import pytest
import torch
from cases_llms import CASES
from harness import assert_same, greedy, load, run
from ours import as_vlm, greedy_cached, greedy_whole, text_batch
from safetensors.numpy import load_file

from vlm_jax.convert import load_hf, run_hf_inputs, save_hf

NEW_TOKENS = 64


@pytest.fixture(autouse=True)
def quick_compilation():
    """Most of the time of these tests is XLA's; they do not measure how well it optimises."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(params=CASES)
def model(request, built):
    """(case, transformers' model, directory, our config, our parameters)."""
    case = CASES[request.param]
    directory, _ = built(request.param, case)
    return case, Forgetful(load(directory, case.model)), directory, *load_hf(directory)


class Forgetful:
    """Transformers' dynamic RoPE remembers the longest sequence of earlier calls; a short one makes it forget."""

    def __init__(self, model):
        self.model = model

    def forget(self):
        self.model(input_ids=torch.zeros((1, 2), dtype=torch.long))

    def __call__(self, **inputs):
        self.forget()
        return self.model(**inputs)

    def generate(self, **inputs):
        self.forget()
        return self.model.generate(**inputs)


def rows_of(inputs):
    """The tokens of each row without padding."""
    mask = inputs.get("attention_mask", np.ones_like(inputs["input_ids"]))
    return [tokens[real != 0] for tokens, real in zip(inputs["input_ids"], mask, strict=True)]


def test_logits_and_hidden_states(model):
    case, theirs, _, config, params = model
    inputs = case.inputs()
    assert_same(run_hf_inputs(config, params, inputs), run(theirs, inputs), inputs)
    for row in rows_of(inputs)[:2]:
        alone = {"input_ids": row[None]}
        assert_same(run_hf_inputs(config, params, alone), run(theirs, alone), alone)


def test_greedy_tokens(model):
    case, theirs, _, config, params = model
    rows = rows_of(case.inputs())
    config, params = as_vlm(config, params)
    length = max(map(len, rows))
    ids = np.stack([np.pad(row, (length - len(row), 0)) for row in rows])
    mask = np.stack([np.arange(length) >= length - len(row) for row in rows]).astype(int)
    left_padded = {"input_ids": ids, "attention_mask": mask}
    # Padded with two more places: the cache has slots that are never valid.
    cached = greedy_cached(config, params, text_batch(rows, length + 2), NEW_TOKENS)
    whole = greedy_whole(config, params, rows, NEW_TOKENS)
    np.testing.assert_array_equal(cached, greedy(theirs, left_padded, NEW_TOKENS))
    np.testing.assert_array_equal(whole, greedy(theirs, left_padded, NEW_TOKENS, use_cache=False))
    alone = {"input_ids": rows[0][None]}
    np.testing.assert_array_equal(cached[:1], greedy(theirs, alone, NEW_TOKENS))
    assert len(np.unique(cached)) > 6


def test_out_and_in_again(model, tmp_path):
    case, theirs, directory, config, params = model
    save_hf(config, params, tmp_path / "out")
    again, same = load_hf(tmp_path / "out")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, same, params)
    before, after = (load_file(path / "model.safetensors") for path in (directory, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)
    inputs = case.inputs()
    exported = run(load(tmp_path / "out", "AutoModelForCausalLM"), inputs)
    assert_same(exported, run(theirs, inputs), inputs)
