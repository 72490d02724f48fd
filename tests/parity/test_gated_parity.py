"""Gated cross-attention of Flamingo's form against that of Idefics 1, with random weights and open gates."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import IdeficsConfig
from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer

from vlm_jax.models.gated import GatedBlock, GatedBlockConfig
from vlm_jax.models.layers import Precision

WIDTH, MEMORY, HEADS, HIDDEN, EPSILON = 24, 20, 3, 40, 1e-5
SIZES = GatedBlockConfig(
    WIDTH, MEMORY, HEADS, HEADS, WIDTH // HEADS, HIDDEN, norm_epsilon=EPSILON, blind="feed_forward"
)
ROWS, LENGTH, TOKENS = 2, 7, 6


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "query_key_norm"])
def layers(request):
    """(theirs, ours, our parameters)."""
    torch.manual_seed(0)
    config = IdeficsConfig(
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_attention_heads=HEADS,
        rms_norm_eps=EPSILON,
        qk_layer_norms=request.param,
        vision_config={"embed_dim": MEMORY},
        attn_implementation="eager",
    )
    theirs = IdeficsGatedCrossAttentionLayer(config, layer_idx=0).eval()
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, 0.4 if weight.ndim < 2 else 0.0, 0.3)
    given = {name: weight.detach().numpy() for name, weight in theirs.named_parameters()}
    params = ours_of(given, request.param)
    return theirs, GatedBlock(dataclasses.replace(SIZES, query_key_norm=request.param), Precision()), params


def ours_of(given, normed):
    size = WIDTH // HEADS

    def inwards(name):
        return {"kernel": given[f"cross_attn.{name}_proj.weight"].T.reshape(-1, HEADS, size)}

    attention = {
        "query": inwards("q"),
        "key": inwards("k"),
        "value": inwards("v"),
        "out": {"kernel": given["cross_attn.o_proj.weight"].T.reshape(HEADS, size, WIDTH)},
    }
    if normed:
        for ours, theirs in (("query", "q"), ("key", "k")):
            attention[f"{ours}_norm"] = {"scale": given[f"cross_attn.{theirs}_layer_norm.weight"]}
    return {
        "attention": attention,
        "attention_norm": {"scale": given["input_layernorm.weight"]},
        "mlp_norm": {"scale": given["post_attention_layernorm.weight"]},
        "mlp": {name: {"kernel": given[f"mlp.{name}_proj.weight"].T} for name in ("up", "gate", "down")},
        "attention_gate": given["alpha_cross_attn"],
        "mlp_gate": given["alpha_dense"],
    }


def test_a_block_is_that_of_idefics(layers):
    theirs, ours, params = layers
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, LENGTH, WIDTH)).astype(np.float32)
    memory = rng.standard_normal((ROWS, TOKENS, MEMORY)).astype(np.float32)
    mask = rng.random((ROWS, LENGTH, TOKENS)) < 0.5
    mask[0, :2] = False
    sees = mask.any(-1)
    assert sees.any()
    with torch.no_grad():
        expected = theirs(
            torch.tensor(x),
            image_hidden_states=torch.tensor(memory),
            image_attention_mask=torch.tensor(
                np.where(mask, 0.0, np.finfo(np.float32).min)[:, None], dtype=torch.float32
            ),
            cross_attention_gate=torch.tensor(sees.astype(np.float32)),
        ).numpy()
    found = ours.apply({"params": params}, x, jnp.asarray(memory), None, jnp.asarray(mask), jnp.asarray(sees))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    # What generation keeps of the memory gives the same.
    kept = ours.apply({"params": params}, jnp.asarray(memory), method="keys_and_values")
    again = ours.apply({"params": params}, x, None, kept, jnp.asarray(mask), jnp.asarray(sees))
    np.testing.assert_allclose(again, expected, atol=2e-6)
    # By the other rule positions that see nothing go past the block; it changes those alone.
    skipping = GatedBlock(dataclasses.replace(ours.config, blind="skip"), Precision())
    past = np.asarray(skipping.apply({"params": params}, x, jnp.asarray(memory), None, mask, jnp.asarray(sees)))
    np.testing.assert_array_equal(past[~sees], x[~sees])
    np.testing.assert_allclose(past[sees], expected[sees], atol=2e-6)
