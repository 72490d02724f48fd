"""What the families of LLMs share: the name table, and the fields that every config.json of an LLM has."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax.convert.families.common import affine, read_activation, whole_number
from vlm_jax.convert.families.rope import read_rope, write_rope
from vlm_jax.convert.names import Linear, Row, per_layer
from vlm_jax.errors import UserError
from vlm_jax.models.decoder import DecoderConfig, SelfAttentionBlock, shortest_pattern

RENAMED = ((r"^(embed_tokens|layers|norm)\.", r"model.\1."),)
"""A decoder that was saved without its head has no prefix."""

DROPPED = (r"lm_head\.weight$", r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$")
"""A copy of tied embeddings; frequencies that old versions stored."""

SLIDING, FULL = "sliding_attention", "full_attention"


def read_decoder(fields: Mapping[str, Any], *, activation: str, windows: Sequence[int], **own: Any) -> DecoderConfig:
    """The config of a decoder from a config.json.

    Args:
        fields: config.json over the defaults of its architecture.
        activation: the field that names the non-linearity.
        windows: the sliding window of each layer; 0 = none.
        own: fields of DecoderConfig in which this architecture differs from Llama.

    Raises:
        UserError: if it asks for what the decoder cannot do.
    """
    if fields.get("quantization_config"):
        raise UserError(
            "config.json: quantization_config: quantised safetensors are not read; take the original weights or GGUF"
        )
    heads, width = whole_number(fields, "num_attention_heads"), whole_number(fields, "hidden_size")
    base, scaling, context = read_rope(fields)
    shared = {
        "vocabulary_size": whole_number(fields, "vocab_size"),
        "width": width,
        "layers": whole_number(fields, "num_hidden_layers"),
        "heads": heads,
        "key_value_heads": whole_number(fields, "num_key_value_heads") if fields["num_key_value_heads"] else heads,
        "head_size": whole_number(fields, "head_dim") if fields.get("head_dim") else width // heads,
        "mlp_width": whole_number(fields, "intermediate_size"),
        "context": context,
        "rope_base": base,
        "rope_scaling": scaling,
        "norm_epsilon": float(fields["rms_norm_eps"]),
        "activation": read_activation(fields, activation),
        "tied_embeddings": bool(fields["tie_word_embeddings"]),
        "pattern": shortest_pattern([SelfAttentionBlock(window) for window in windows]),
    }
    return DecoderConfig(**{**shared, **own})


def write_decoder(config: DecoderConfig) -> dict[str, Any]:
    """The fields of config.json that all LLMs have."""
    return {
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_width,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied_embeddings,
        **write_rope(config),
    }


def decoder_rows(config: DecoderConfig) -> list[Row]:
    """The name table of a causal LLM: rows of `Decoder` with the tensors of transformers' ...ForCausalLM."""
    width, heads, groups, size = config.width, config.heads, config.key_value_heads, config.head_size
    table = [
        Row("input_layernorm.weight", "attention_norm/scale"),
        *affine("self_attn.q_proj", "attention/query", (width,), (heads, size), bias=config.attention_bias),
        *affine("self_attn.k_proj", "attention/key", (width,), (groups, size), bias=config.attention_bias),
        *affine("self_attn.v_proj", "attention/value", (width,), (groups, size), bias=config.attention_bias),
        *affine("self_attn.o_proj", "attention/out", (heads, size), (width,), bias=config.output_bias),
        *affine("mlp.gate_proj", "mlp/gate", (width,), (config.mlp_width,), bias=config.mlp_bias),
        *affine("mlp.up_proj", "mlp/up", (width,), (config.mlp_width,), bias=config.mlp_bias),
        *affine("mlp.down_proj", "mlp/down", (config.mlp_width,), (width,), bias=config.mlp_bias),
    ]
    if config.query_key_norm:
        table += [
            Row("self_attn.q_norm.weight", "attention/query_norm/scale"),
            Row("self_attn.k_norm.weight", "attention/key_norm/scale"),
        ]
    if config.post_norms:
        table += [
            Row("post_attention_layernorm.weight", "attention_post_norm/scale"),
            Row("pre_feedforward_layernorm.weight", "mlp_norm/scale"),
            Row("post_feedforward_layernorm.weight", "mlp_post_norm/scale"),
        ]
    else:
        table.append(Row("post_attention_layernorm.weight", "mlp_norm/scale"))
    layer = [Row(f"model.layers.{{layer}}.{r.theirs}", f"layers/block_{{block}}/{r.ours}", r.form) for r in table]
    rows = [
        Row("model.embed_tokens.weight", "embedding"),
        *per_layer(layer, config.layers, len(config.pattern)),
        Row("model.norm.weight", "norm/scale"),
    ]
    if not config.tied_embeddings:
        rows.append(Row("lm_head.weight", "head", Linear((width,), (config.vocabulary_size,))))
    return rows


def read_windows(fields: Mapping[str, Any], layer_types: Sequence[str]) -> list[int]:
    """The window of each layer from `layer_types` and `sliding_window`; 0 = none.

    Raises:
        UserError: if they do not fit each other, or a type of layer is not implemented.
    """
    layers = whole_number(fields, "num_hidden_layers")
    if len(layer_types) != layers:
        raise UserError(f"config.json: layer_types has {len(layer_types)} entries for {layers} layers")
    for kind in layer_types:
        if kind not in (SLIDING, FULL):
            raise UserError(f"config.json: layer_types has {kind!r}; supported are {SLIDING} and {FULL}")
    if SLIDING not in layer_types:
        return [0] * layers
    window = whole_number(fields, "sliding_window")
    return [window if kind == SLIDING else 0 for kind in layer_types]


def write_windows(config: DecoderConfig) -> tuple[list[str], int | None]:
    """(layer_types, sliding_window), the inverse of `read_windows`.

    Raises:
        UserError: if there are windows of several sizes.
    """
    windows = [block.window for block in config.pattern] * config.repeats
    sizes = sorted({*windows} - {0})
    if len(sizes) > 1:
        raise UserError(f"windows of several sizes ({', '.join(map(str, sizes))}); one model can have one")
    return [SLIDING if window else FULL for window in windows], (sizes[0] if sizes else None)
