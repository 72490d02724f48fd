"""Small LLMs with odd sizes: head size is not width / heads, six heads share two, windows are shorter than prompts."""

import functools
from typing import Any

import numpy as np
import transformers
from harness import Arrays, Case

SIZES = {
    "vocab_size": 97,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def padded(length: int = 23) -> Arrays:
    """Three rows: whole, padded at the end, padded at the start."""
    tokens = np.random.default_rng(length).integers(3, 97, (3, length))
    mask = np.ones_like(tokens)
    mask[1, -7:] = 0
    mask[2, :5] = 0
    return {"input_ids": np.where(mask, tokens, 0), "attention_mask": mask}


def whole(length: int = 48) -> Arrays:
    """Two rows without padding."""
    return {"input_ids": np.random.default_rng(length).integers(3, 97, (2, length))}


def case(kind: str, inputs=padded, seed: int = 0, **fields: Any) -> Case:
    """`kind` as in LlamaForCausalLM; `fields` differ from SIZES or are added."""
    config = functools.partial(getattr(transformers, f"{kind}Config"), **{**SIZES, **fields})
    return Case(f"{kind}ForCausalLM", config, inputs, seed)


def rope(kind: str, **fields: Any) -> dict[str, Any]:
    """rope_parameters."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **fields}}


SLIDING, FULL = "sliding_attention", "full_attention"

CASES: dict[str, Case] = {
    "llama": case("Llama", tie_word_embeddings=False),
    "llama_biases": case("Llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True, hidden_act="relu"),
    "llama_linear": case("Llama", whole, **rope("linear", factor=3.0)),
    "llama_dynamic": case("Llama", whole, **rope("dynamic", factor=4.0), max_position_embeddings=16),
    "llama_llama3": case(
        "Llama",
        whole,
        **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=24),
    ),
    "llama_yarn": case("Llama", whole, **rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama_yarn_tuned": case(
        "Llama",
        whole,
        **rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=16,
            beta_fast=3.0,
            beta_slow=0.5,
            mscale=0.8,
            mscale_all_dim=1.4,
            truncate=False,
        ),
    ),
    "mistral": case("Mistral", sliding_window=5),
    "qwen2": case("Qwen2", tie_word_embeddings=True),
    "qwen2_sliding": case("Qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1, num_hidden_layers=3),
    "qwen3": case("Qwen3", seed=1, attention_bias=True, tie_word_embeddings=True),
    "qwen3_sliding": case(
        "Qwen3", use_sliding_window=True, sliding_window=4, layer_types=[FULL, SLIDING] * 2, num_hidden_layers=4
    ),
    "gemma": case("Gemma"),
    "gemma2": case(
        "Gemma2",
        num_hidden_layers=4,
        sliding_window=6,
        query_pre_attn_scalar=13,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=1.5,
    ),
    "gemma2_uncapped": case(
        "Gemma2",
        sliding_window=6,
        query_pre_attn_scalar=10,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        attention_bias=True,
        hidden_activation="gelu",
    ),
}
