"""Llama 2 and 3, Mistral, Qwen 2 and 3, and the many models that carry one of these types."""

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
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}

_QWEN = {
    **_COMMON,
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        **_COMMON,
        "vocab_size": 32_000,
        "intermediate_size": 11_008,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
    },
    "mistral": {
        **_COMMON,
        "vocab_size": 32_000,
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
    },
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
}
"""What a field that config.json leaves out means to each architecture: older versions wrote differences only."""

MODEL_TYPES = tuple(DEFAULTS)


def read_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> DecoderConfig.

    Raises:
        UserError: if it asks for what the decoder cannot do.
    """
    kind = hf["model_type"]
    fields = {**DEFAULTS[kind], **hf}
    bias = bool(fields["attention_bias"]) and kind in ("llama", "qwen3")
    return read_decoder(
        fields,
        activation="hidden_act",
        windows=_windows(kind, fields),
        attention_bias=bias or kind == "qwen2",
        output_bias=bias,
        mlp_bias=bool(fields["mlp_bias"]) and kind == "llama",
        query_key_norm=kind == "qwen3",
    )


def _windows(kind: str, fields: Mapping[str, Any]) -> list[int]:
    layers = whole_number(fields, "num_hidden_layers")
    given = fields.get("layer_types")
    if kind in ("qwen2", "qwen3"):
        window = fields["sliding_window"] if fields["use_sliding_window"] else None
        first = fields["max_window_layers"] if window is not None else layers
        return read_windows(
            {**fields, "sliding_window": window},
            given or [SLIDING if layer >= first else FULL for layer in range(layers)],
        )
    # Llama knows no windows, and all layers of Mistral have the same.
    sliding = kind == "mistral" and fields["sliding_window"] is not None
    same = [SLIDING if sliding else FULL] * layers
    if given and given != same:
        raise UserError(f"config.json: {kind} with layer_types {sorted({*map(str, given)})} is not supported")
    return read_windows(fields, same)


def rows(config: DecoderConfig) -> list[Row]:
    """The name table."""
    return decoder_rows(config)


def write_config(config: Any) -> dict[str, Any] | None:
    """DecoderConfig -> config.json of the first architecture that has all that the config asks for.

    Raises:
        UserError: if there is none.
    """
    if not isinstance(config, DecoderConfig) or config.norm_offset:
        return None
    kind = _kind(config)
    layer_types, window = write_windows(config)
    refuse(
        f"the architecture {kind!r}",
        {
            f"embedding_scale {config.embedding_scale}": config.embedding_scale != 1,
            "input_only_tokens": config.input_only_tokens,
            "post_norms": config.post_norms,
            f"query_scale {config.query_scale}": config.query_scale,
            "attention_softcap": config.attention_softcap,
            "logit_softcap": config.logit_softcap,
            "mlp_bias": config.mlp_bias and kind != "llama",
            "attention_bias on its own": config.attention_bias > config.output_bias and kind != "qwen2",
            "output_bias on its own": config.output_bias > config.attention_bias,
            "output_bias": config.output_bias and kind == "mistral",
            "windows in some layers only": kind == "mistral" and len({*layer_types}) > 1,
            "biases with a width that does not divide by heads": kind == "llama" and config.width % config.heads,
        },
    )
    fields = {
        "architectures": [f"{kind.title()}ForCausalLM"],
        "model_type": kind,
        **write_decoder(config),
        "hidden_act": write_activation(config.activation),
        "attention_bias": config.attention_bias,
    }
    match kind:
        case "llama":
            return {**fields, "mlp_bias": config.mlp_bias}
        case "mistral":
            return {**fields, "sliding_window": window}
    first = layer_types.index(SLIDING) if window else config.layers
    return {
        **fields,
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": first,
        "layer_types": layer_types,
    }


def _kind(config: DecoderConfig) -> str:
    if config.query_key_norm:
        return "qwen3"
    if config.attention_bias and not config.output_bias:
        return "qwen2"
    biased = config.output_bias or config.mlp_bias
    if any(block.window for block in config.pattern) or (config.width % config.heads and not biased):
        return "mistral"
    return "llama"
