"""Llama 3.2 Vision (Mllama): an encoder whose tiles see each other, a linear map, and Llama 3.1 with gated blocks.

Its files number the decoder's layers and the gated blocks between them in one list: with blocks at 1 and 4 of 6,

    theirs   0   1   2   3   4   5
    ours     0  [0]  1   2  [1]  3        blocks stand before our layers 1 and 3
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.families import llama, mllama_vision, parts
from vlm_jax.convert.families.common import affine, read_activation, refuse, whole_number, write_activation
from vlm_jax.convert.families.llava import image_token
from vlm_jax.convert.names import Row, prefixed
from vlm_jax.errors import UserError
from vlm_jax.models.adapters import CrossAttentionConfig, MLPAdapterConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.tile_vit import TileViTConfig
from vlm_jax.models.vlm import PromptLayout, VLMConfig
from vlm_jax.pictures import Tiling

MODEL_TYPES = ("mllama", "mllama_text_model")

RENAMED = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.(vision_model|multi_modal_projector)\.", r"\1."),
)
"""All layouts become the one of the published checkpoints."""

DROPPED = (r"language_model\.model\.(?:layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq$",)

ADDED_TOKENS = 8
"""Rows that its embedding table has past the vocabulary; the first is the image token's."""

TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "hidden_act": "silu",
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14_336,
    "rope_theta": 500_000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131_072,
    "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
}
"""What transformers takes for a field that config.json leaves out."""


def read_config(hf: Mapping[str, Any]) -> VLMConfig:
    """config.json of an MllamaForConditionalGeneration.

    Raises:
        UserError: if it asks for what our models cannot do.
    """
    if hf["model_type"] == "mllama_text_model":
        raise UserError(
            "config.json: mllama_text_model is the text model of Llama 3.2 Vision, whose cross-attention layers read "
            "pictures that it cannot encode; give the directory of the whole model (model_type mllama)"
        )
    given = hf.get("text_config") or {}
    text = {**TEXT_DEFAULTS, **{name: value for name, value in given.items() if value is not None}}
    encoder = mllama_vision.read_config(hf.get("vision_config") or {})
    total = whole_number(text, "num_hidden_layers")
    blocks = _blocks(text["cross_attention_layers"], total)
    adapter = CrossAttentionConfig(
        form="llama",
        layers=tuple(place - number for number, place in enumerate(blocks)),
        memory=MLPAdapterConfig(layers=1),
        activation=read_activation(text),
    )
    return VLMConfig(
        _decoder(text, total - len(blocks)),
        encoder,
        adapter,
        tiling=tiling(encoder),
        layout=PromptLayout(image_token(hf, 128_256)),
    )


def _blocks(given: Any, layers: int) -> list[int]:
    numbers = given if isinstance(given, (list, tuple)) else [given]
    for number in numbers:
        if type(number) is not int or not 0 <= number < layers:
            raise UserError(
                f"config.json: cross_attention_layers has {number!r}, but num_hidden_layers counts {layers} layers, 0 "
                f"to {layers - 1}; copy it again"
            )
    found = sorted({*numbers})
    if not 0 < len(found) < layers:
        raise UserError(
            f"config.json: {len(found)} of {layers} layers are cross_attention_layers; there must be at least one of "
            "them, and one that is none"
        )
    return found


def _decoder(text: Mapping[str, Any], layers: int) -> DecoderConfig:
    # By its names and its sums the rest is Llama.
    own = {"model_type": "llama", "num_hidden_layers": layers, "tie_word_embeddings": False}
    none = dict.fromkeys(("head_dim", "layer_types"))
    width, heads = whole_number(text, "hidden_size"), whole_number(text, "num_attention_heads")
    if width % heads:
        raise UserError(f"config.json: hidden_size {width} does not divide by {heads} num_attention_heads")
    decoder = llama.read_config({**text, **own, **none, "attention_bias": False, "mlp_bias": False})
    return dataclasses.replace(decoder, input_only_tokens=ADDED_TOKENS)


def tiling(encoder: TileViTConfig) -> Tiling:
    """How its image processor cuts pictures."""
    return Tiling(encoder.grids, choose="canvas", fit="pad", thumbnail="none", slots=encoder.tiles)


def rows(config: VLMConfig) -> list[Row]:
    """The name table."""
    encoder, adapter, decoder = config.encoder, config.adapter, config.decoder
    assert isinstance(encoder, TileViTConfig)
    assert isinstance(adapter, CrossAttentionConfig)
    blocks = [place + number for number, place in enumerate(adapter.places(decoder))]
    layers = [number for number in range(decoder.layers + len(blocks)) if number not in blocks]
    return [
        *prefixed([_renumbered(row, layers) for row in parts.decoder_rows(config)], theirs="language_model."),
        *(row for number, place in enumerate(blocks) for row in _block_rows(decoder, number, place)),
        *affine("multi_modal_projector", "adapter/memory/layer_0", (encoder.width,), (decoder.width,)),
        *prefixed(mllama_vision.rows(encoder), theirs="vision_model.", ours="encoder/"),
    ]


def _renumbered(row: Row, layers: list[int]) -> Row:
    """A row of Llama's table with the number that the layer has in the list of all."""
    start = "model.layers."
    if not row.theirs.startswith(start):
        return row
    number, rest = row.theirs.removeprefix(start).split(".", 1)
    return dataclasses.replace(row, theirs=f"{start}{layers[int(number)]}.{rest}")


def _block_rows(decoder: DecoderConfig, number: int, place: int) -> list[Row]:
    """Rows of gated block `number`, which is layer `place` of their list."""
    width, mlp = (decoder.width,), (decoder.mlp_width,)
    heads, groups = (decoder.heads, decoder.head_size), (decoder.key_value_heads, decoder.head_size)
    block = [
        Row("input_layernorm.weight", "attention_norm/scale"),
        *affine("cross_attn.q_proj", "attention/query", width, heads, bias=False),
        *affine("cross_attn.k_proj", "attention/key", width, groups, bias=False),
        *affine("cross_attn.v_proj", "attention/value", width, groups, bias=False),
        *affine("cross_attn.o_proj", "attention/out", heads, width, bias=False),
        Row("cross_attn.q_norm.weight", "attention/query_norm/scale"),
        Row("cross_attn.k_norm.weight", "attention/key_norm/scale"),
        Row("cross_attn_attn_gate", "attention_gate"),
        Row("post_attention_layernorm.weight", "mlp_norm/scale"),
        *affine("mlp.gate_proj", "mlp/gate", width, mlp, bias=False),
        *affine("mlp.up_proj", "mlp/up", width, mlp, bias=False),
        *affine("mlp.down_proj", "mlp/down", mlp, width, bias=False),
        Row("cross_attn_mlp_gate", "mlp_gate"),
    ]
    named = prefixed(block, theirs=f"language_model.model.layers.{place}.", ours="adapter/blocks/")
    return [dataclasses.replace(row, index=number) for row in named]


def write_config(config: Any) -> dict[str, Any] | None:
    """config.json of an MllamaForConditionalGeneration; None if this is no VLM with such an encoder or gated blocks.

    Raises:
        UserError: if it is one but for something that Llama 3.2 Vision does not have.
    """
    if not isinstance(config, VLMConfig) or not isinstance(config.adapter, CrossAttentionConfig):
        return None
    encoder, adapter, decoder = config.encoder, config.adapter, config.decoder
    if not isinstance(encoder, TileViTConfig):
        raise UserError(
            "Llama 3.2 Vision has cross-attention to the features of a TileViTConfig, not of another encoder"
        )
    layout = parts.known_layout(config)
    _check_adapter(adapter, encoder, decoder)
    refuse(
        "Llama 3.2 Vision",
        {
            f"input_only_tokens {decoder.input_only_tokens} (it has {ADDED_TOKENS})": (
                decoder.input_only_tokens != ADDED_TOKENS
            ),
            "tied_embeddings": decoder.tied_embeddings,
            "visual tokens that see each other in both directions": layout.bidirectional != "none",
            "a tiling other than its image processor's": config.tiling != tiling(encoder),
        },
    )
    vision = mllama_vision.write_config(encoder)
    assert vision is not None
    vision.pop("architectures")
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "text_config": _write_text(decoder, adapter),
        "vision_config": vision,
        "image_token_index": layout.image_token,
        "tie_word_embeddings": False,
    }


def _check_adapter(adapter: CrossAttentionConfig, encoder: TileViTConfig, decoder: DecoderConfig) -> None:
    block = adapter.block(encoder.features, decoder)
    sizes = ("heads", "key_value_heads", "head_size", "mlp_width")
    refuse(
        "Llama 3.2 Vision",
        {
            "gated blocks of other sizes than the decoder's": any(
                getattr(block, name) != getattr(decoder, name) for name in sizes
            ),
            f"norm {block.norm!r} in gated blocks": block.norm != "rms",
            "gated blocks without query_key_norm": not block.query_key_norm,
            f"blind {adapter.blind_rule!r}": adapter.blind_rule != "whole_example",
            f"visible {adapter.seen!r}": adapter.seen != "group",
            f"activation {adapter.activation!r} in gated blocks of a decoder with {decoder.activation!r}": (
                adapter.activation != decoder.activation
            ),
            "a memory other than MLPAdapterConfig(layers=1) makes at the decoder's width": (
                adapter.memory != MLPAdapterConfig(layers=1) or block.memory_width != decoder.width
            ),
            "visual tokens in the sequence (prompt)": adapter.prompt is not None,
        },
    )


def _write_text(decoder: DecoderConfig, adapter: CrossAttentionConfig) -> dict[str, Any]:
    fields = llama.write_config(dataclasses.replace(decoder, input_only_tokens=0))
    if fields is None or fields["model_type"] != "llama" or fields["attention_bias"] or fields["mlp_bias"]:
        raise UserError("Llama 3.2 Vision has a decoder of Llama's kind, without biases, windows and offsets of norms")
    refuse(
        "Llama 3.2 Vision", {"heads that do not make up the width": decoder.head_size * decoder.heads != decoder.width}
    )
    places = adapter.places(decoder)
    left_out = ("architectures", "head_dim", "attention_bias", "mlp_bias")
    return {
        **{name: value for name, value in fields.items() if name not in left_out},
        "model_type": "mllama_text_model",
        "num_hidden_layers": decoder.layers + len(places),
        "cross_attention_layers": [place + number for number, place in enumerate(places)],
        "hidden_act": write_activation(decoder.activation),
        "pad_token_id": None,
    }
