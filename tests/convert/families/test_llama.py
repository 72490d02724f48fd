import json

import numpy as np
import pytest
from published import LLAMA3, MISTRAL, VICUNA
from safetensors.numpy import save_file

from vlm_jax.convert import load_hf
from vlm_jax.convert.families.llama import read_config, rows
from vlm_jax.errors import UserError
from vlm_jax.models.decoder import SelfAttentionBlock
from vlm_jax.models.rope import Llama3Rope

TINY = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
}


def tensors_of(hf):
    """Every tensor that the name table wants, in their layout."""
    config = read_config(hf)
    sizes = {"embed_tokens": (11, 8), "lm_head": (11, 8), "q_proj": (16, 8), "k_proj": (8, 8), "v_proj": (8, 8)}
    sizes |= {"o_proj": (8, 16), "gate_proj": (6, 8), "up_proj": (6, 8), "down_proj": (8, 6)}
    rng = np.random.default_rng(0)
    names = [row.theirs for row in rows(config)]
    return {name: rng.standard_normal(sizes.get(name.split(".")[-2], (8,)), np.float32) for name in names}


def written(directory, hf, tensors):
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(hf))
    save_file(tensors, directory / "model.safetensors")
    return directory


def test_fields_of_llama_3():
    config = read_config(LLAMA3)
    assert config.rope_scaling == Llama3Rope(8.0, 1.0, 4.0, 8192)
    assert (config.rope_base, config.context, config.head_size) == (500_000.0, 131_072, 128)
    assert not config.tied_embeddings


def test_what_config_leaves_out_is_the_default_of_its_architecture():
    config = read_config(VICUNA)
    assert (config.heads, config.key_value_heads, config.mlp_width, config.context) == (32, 32, 11_008, 4096)
    assert read_config({"model_type": "mistral"}).pattern == (SelfAttentionBlock(4096),)
    assert read_config({**MISTRAL, "sliding_window": None}).pattern == (SelfAttentionBlock(),)


def test_a_matrix_lands_where_it_belongs(tmp_path):
    tensors = tensors_of(TINY)
    _, params = load_hf(written(tmp_path / "a", TINY, tensors))
    x = np.random.default_rng(1).standard_normal(8).astype(np.float32)
    block = params["layers"]["block_0"]
    for layer in range(2):
        theirs = tensors[f"model.layers.{layer}.self_attn.k_proj.weight"] @ x
        ours = np.einsum("d,dhk->hk", x, block["attention"]["key"]["kernel"][layer])
        np.testing.assert_allclose(ours.ravel(), theirs, rtol=1e-5)
        wide = np.random.default_rng(2).standard_normal((4, 4)).astype(np.float32)
        theirs = tensors[f"model.layers.{layer}.self_attn.o_proj.weight"] @ wide.ravel()
        ours = np.einsum("hk,hkd->d", wide, block["attention"]["out"]["kernel"][layer])
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(x @ params["head"], tensors["lm_head.weight"] @ x, rtol=1e-5)


def test_older_layouts_of_the_file_are_read(tmp_path):
    tied = {**TINY, "tie_word_embeddings": True}
    tensors = tensors_of(tied)
    _, expected = load_hf(written(tmp_path / "new", tied, tensors))
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    copies = {
        "lm_head.weight": tensors["model.embed_tokens.weight"].copy(),
        "model.layers.1.self_attn.rotary_emb.inv_freq": np.zeros(2, np.float32),
    }
    for name, layout in {"bare": bare, "copies": {**tensors, **copies}}.items():
        _, params = load_hf(written(tmp_path / name, tied, layout))
        np.testing.assert_array_equal(params["embedding"], expected["embedding"])
        np.testing.assert_array_equal(
            params["layers"]["block_0"]["mlp"]["up"]["kernel"], expected["layers"]["block_0"]["mlp"]["up"]["kernel"]
        )


def test_an_untied_head_is_not_dropped(tmp_path):
    tensors = tensors_of(TINY)
    del tensors["lm_head.weight"]
    with pytest.raises(UserError, match="lm_head"):
        load_hf(written(tmp_path / "a", TINY, tensors))
