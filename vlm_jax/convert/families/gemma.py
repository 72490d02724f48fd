"""Gemma 1 and 2 (Gemma Team 2024)."""

from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.families.common import refuse, whole_number, write_activation
from vlm_jax.convert.families.decoders import (
    DROPPED,
    FULL,
    RENAMED,
    SLIDING,
    decoder_rows,
    read_decoder,
    read_windows,
    write_decoder,
    write_windows,
)
from vlm_jax.convert.names import Row
from vlm_jax.errors import UserError
from vlm_jax.models.decoder import DecoderConfig

__all__ = ["DROPPED", "MODEL_TYPES", "RENAMED", "read_config", "rows", "write_config"]

_COMMON = {
    "vocab_size": 256_000,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {
        **_COMMON,
        "hidden_size": 3072,
        "intermediate_size": 24_576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "hidden_act": "gelu_pytorch_tanh",
    },
    "gemma2": {
        **_COMMON,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
}
"""What a field that config.json leaves out means to each architecture: older versions wrote differences only."""

MODEL_TYPES = tuple(DEFAULTS)


def read_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> DecoderConfig.

    Raises:
        UserError: if it asks for what the decoder cannot do.
    """
    fields = {**DEFAULTS[hf["model_type"]], **hf}
    if fields.get("use_bidirectional_attention"):
        raise UserError("config.json: use_bidirectional_attention is not supported; the decoder is causal")
    second = hf["model_type"] == "gemma2"
    layers, bias = whole_number(fields, "num_hidden_layers"), bool(fields["attention_bias"])
    if not second and fields["hidden_act"] == "gelu":
        fields["hidden_act"] = "gelu_pytorch_tanh"  # what the first release wrote, and did not mean
    own: dict[str, Any] = {}
    if second:
        scalar = fields["query_pre_attn_scalar"]
        own = {
            "post_norms": True,
            "query_scale": 0.0 if scalar == fields["head_dim"] else float(scalar) ** -0.5,
            "attention_softcap": float(fields["attn_logit_softcapping"] or 0),
            "logit_softcap": float(fields["final_logit_softcapping"] or 0),
        }
    alternating = [FULL if layer % 2 else SLIDING for layer in range(layers)] if second else [FULL] * layers
    return read_decoder(
        fields,
        activation="hidden_activation" if second else "hidden_act",
        windows=read_windows(fields, (fields.get("layer_types") if second else None) or alternating),
        embedding_scale=whole_number(fields, "hidden_size") ** 0.5,
        norm_offset=1.0,
        attention_bias=bias,
        output_bias=bias,
        **own,
    )


def rows(config: DecoderConfig) -> list[Row]:
    """The name table."""
    return decoder_rows(config)


def write_config(config: Any) -> dict[str, Any] | None:
    """DecoderConfig -> config.json; None if its norms are not Gemma's.

    Raises:
        UserError: if it has what Gemma does not have.
    """
    if not isinstance(config, DecoderConfig) or not config.norm_offset:
        return None
    refuse(
        "Gemma",
        {
            f"norm_offset {config.norm_offset}": config.norm_offset != 1,
            f"embedding_scale {config.embedding_scale}, but sqrt(width)": config.embedding_scale != config.width**0.5,
            "query_key_norm": config.query_key_norm,
            "biases on one side of attention only": config.attention_bias != config.output_bias,
            "mlp_bias": config.mlp_bias,
        },
    )
    fields = {**write_decoder(config), "attention_bias": config.attention_bias}
    return _write_second(config, fields) if config.post_norms else _write_first(config, fields)


def _write_first(config: DecoderConfig, fields: dict[str, Any]) -> dict[str, Any]:
    refuse(
        "Gemma 1",
        {
            "sliding windows": any(block.window for block in config.pattern),
            f"query_scale {config.query_scale}": config.query_scale,
            "soft-caps": config.attention_softcap or config.logit_softcap,
            "the exact gelu": config.activation == "gelu",
        },
    )
    return {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        **fields,
        "hidden_act": write_activation(config.activation),
    }


def _write_second(config: DecoderConfig, fields: dict[str, Any]) -> dict[str, Any]:
    layer_types, window = write_windows(config)
    scalar = round(config.query_scale**-2) if config.query_scale else config.head_size
    refuse(
        "Gemma 2",
        {
            f"query_scale {config.query_scale}": config.query_scale and scalar**-0.5 != config.query_scale,
            "a width that does not divide by heads": config.width % config.heads,
        },
    )
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        **fields,
        "hidden_activation": write_activation(config.activation),
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.logit_softcap or None,
        "sliding_window": window,
        "layer_types": layer_types,
    }
