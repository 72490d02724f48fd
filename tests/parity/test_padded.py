"""Pictures of any shape under a mask, against transformers; and Flamingo's perceiver."""

import jax
import numpy as np
import pytest
import torch
import transformers
from cases_padded import CASES
from harness import TOLERANCE, assert_same, run
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler
from weights import value

from vlm_jax.convert import load_hf, run_hf_inputs
from vlm_jax.models.adapters import ResamplerConfig
from vlm_jax.models.layers import Precision
from vlm_jax.models.states import FeatureMap


@pytest.mark.parametrize("name", CASES)
def test_logits_and_hidden_states(name, built):
    case = CASES[name]
    directory, theirs = built(name, case)
    inputs = case.inputs()
    ours = run_hf_inputs(*load_hf(directory), inputs)
    assert_same(ours, run(theirs, inputs), inputs)


def test_the_flamingo_form_is_idefics_1s_perceiver():
    torch.manual_seed(0)
    config = transformers.IdeficsConfig(
        vision_config={"embed_dim": 20}, perceiver_config={"qk_layer_norms_perceiver": False}
    )
    theirs = IdeficsPerceiverResampler(config, embed_dim=20, depth=2, n_heads=3, head_dim=8, n_latents=5).eval()
    weights = {name: value(name, tuple(tensor.shape)) for name, tensor in theirs.state_dict().items()}
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    ours = ResamplerConfig("flamingo", 5, layers=2, heads=3, head_size=8, activation="relu")
    module = ours.build(FeatureMap(3, 4, 20), 20, Precision(), False)
    features = np.random.default_rng(0).standard_normal((2, 12, 20), np.float32)
    found = module.apply({"params": perceiver_params(weights, 2, (3, 8))}, features)
    assert np.abs(found - theirs(torch.from_numpy(features)).numpy()).max() < TOLERANCE


def perceiver_params(weights, layers, heads):
    """Weights of an IdeficsPerceiverResampler as those of ours."""

    def kernel(name):
        return weights[f"{name}.weight"].T

    def norm(name):
        return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    def layer(i):
        attention, mlp = f"blocks.{i}.0", f"blocks.{i}.1"
        inwards = {
            name: kernel(f"{attention}.{name[0]}_proj").reshape(-1, *heads) for name in ("query", "key", "value")
        }
        return {
            **{name: {"kernel": array} for name, array in inwards.items()},
            "out": {"kernel": kernel(f"{attention}.output_proj").reshape(*heads, -1)},
            "features_norm": norm(f"{attention}.context_layer_norm"),
            "latents_norm": norm(f"{attention}.latents_layer_norm"),
            "mlp_norm": norm(f"{mlp}.ln"),
            "mlp": {"up": {"kernel": kernel(f"{mlp}.fc")}, "down": {"kernel": kernel(f"{mlp}.c_proj")}},
        }

    stacked = jax.tree.map(lambda *each: np.stack(each), *map(layer, range(layers)))
    return {"latents": weights["latents"], "layers": stacked, "norm": norm("layer_norm")}
