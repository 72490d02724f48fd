"""Idefics 2 (Laurençon et al. 2024, "What matters when building vision-language models?"): SigLIP, a gated MLP, a
perceiver resampler, Mistral.

The encoder takes pictures of any size and shape, over which its positions are spread; our processor brings all to one
square. config.json does not say whether pictures are cut into quarters; the image processor's file does.
"""

from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.families import parts
from vlm_jax.convert.families.common import affine, read_activation, refuse, whole_number, write_activation
from vlm_jax.convert.families.idefics3 import read_spread_tower, text_row, write_spread_tower
from vlm_jax.convert.families.llava import image_token
from vlm_jax.convert.names import Row, per_layer, prefixed
from vlm_jax.convert.tilings import quarters_tiling
from vlm_jax.models.adapters import ResamplerConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.models.vlm import PromptLayout, VLMConfig

MODEL_TYPES = ("idefics2",)
RENAMED = ()
DROPPED = (
    r"lm_head\.weight$",
    *(rf"model\.text_model\.(?:{name.removeprefix('model.')})" for name in parts.DECODER_DROPPED),
    *(rf"model\.vision_model\.(?:{name})" for name in parts.TOWER_DROPPED),
)

TEXT_DEFAULTS = {"model_type": "mistral", "rms_norm_eps": 1e-5}
"""The decoder where config.json says nothing of it; a text_config that is there is taken as it is."""
VISION_DEFAULTS = {"patch_size": 32}
"""What a field that config.json leaves out means, where it is not what it means to SigLIP."""
PERCEIVER_DEFAULTS = {
    "hidden_act": "silu",
    "hidden_size": 4096,
    "rms_norm_eps": 1e-6,
    "resampler_n_latents": 64,
    "resampler_depth": 3,
    "resampler_n_heads": 16,
    "resampler_head_dim": 96,
    "num_key_value_heads": 4,
}

_CONNECTOR = "model.connector.perceiver_resampler"
_PROJECTION = "model.connector.modality_projection"


def read_config(hf: Mapping[str, Any]) -> VLMConfig:
    """config.json of an Idefics2ForConditionalGeneration.

    Raises:
        UserError: if it asks for what our models cannot do.
    """
    text = {"model_type": "mistral", **(hf.get("text_config") or TEXT_DEFAULTS)}
    decoder = parts.read_decoder(text, bool(hf.get("tie_word_embeddings", False)))
    tower = read_spread_tower({**VISION_DEFAULTS, **(hf.get("vision_config") or {})})
    return VLMConfig(decoder, tower, _read_resampler(hf, decoder), layout=PromptLayout(image_token(hf, 32_001)))


def _read_resampler(hf: Mapping[str, Any], decoder: DecoderConfig) -> ResamplerConfig:
    fields = {**PERCEIVER_DEFAULTS, **(hf.get("perceiver_config") or {})}
    # A config.json of another width than the decoder's says nothing: its epsilon is the decoder's too.
    own = fields["hidden_size"] == decoder.width
    return ResamplerConfig(
        "idefics2",
        queries=whole_number(fields, "resampler_n_latents"),
        layers=whole_number(fields, "resampler_depth"),
        heads=whole_number(fields, "resampler_n_heads"),
        key_value_heads=whole_number(fields, "num_key_value_heads"),
        head_size=whole_number(fields, "resampler_head_dim"),
        projection_width=decoder.mlp_width,
        activation=read_activation(fields),
        projection_activation=decoder.activation,
        norm_epsilon=fields["rms_norm_eps"] if own else decoder.norm_epsilon,
    )


def rows(config: VLMConfig) -> list[Row]:
    """The name table."""
    assert isinstance(config.encoder, ViTConfig)
    assert isinstance(config.adapter, ResamplerConfig)
    return [
        *(text_row(row) for row in parts.decoder_rows(config)),
        *prefixed(parts.tower_rows(config.encoder), theirs="model.vision_model."),
        *_connector_rows(config.adapter, config.encoder.width, config.decoder.width),
    ]


def _connector_rows(adapter: ResamplerConfig, inner: int, outer: int) -> list[Row]:
    mlp_width, size = adapter.mlp_width or 4 * outer, adapter.head_size
    layer = [
        Row("input_latents_norm.weight", "latents_norm/scale"),
        Row("input_context_norm.weight", "features_norm/scale"),
        *affine("self_attn.q_proj", "query", (outer,), (adapter.heads, size), bias=False),
        *affine("self_attn.k_proj", "key", (outer,), (adapter.groups, size), bias=False),
        *affine("self_attn.v_proj", "value", (outer,), (adapter.groups, size), bias=False),
        *affine("self_attn.o_proj", "out", (adapter.heads, size), (outer,), bias=False),
        Row("post_attention_layernorm.weight", "mlp_norm/scale"),
        *_gated_rows("mlp", "mlp", outer, mlp_width, outer),
    ]
    return [
        *_gated_rows(_PROJECTION, "adapter/projection", inner, adapter.projection_width or 4 * outer, outer),
        Row(f"{_CONNECTOR}.latents", "adapter/latents"),
        *per_layer(prefixed(layer, theirs=_CONNECTOR + ".layers.{layer}.", ours="adapter/layers/"), adapter.layers),
        Row(f"{_CONNECTOR}.norm.weight", "adapter/norm/scale"),
    ]


def _gated_rows(theirs: str, ours: str, inputs: int, hidden: int, outputs: int) -> list[Row]:
    return [
        *affine(f"{theirs}.gate_proj", f"{ours}/gate", (inputs,), (hidden,), bias=False),
        *affine(f"{theirs}.up_proj", f"{ours}/up", (inputs,), (hidden,), bias=False),
        *affine(f"{theirs}.down_proj", f"{ours}/down", (hidden,), (outputs,), bias=False),
    ]


def write_config(config: Any) -> dict[str, Any] | None:
    """config.json of an Idefics2ForConditionalGeneration; None if this is no VLM with a resampler of this form.

    Raises:
        UserError: if it is one but for something that Idefics 2 does not have; it says which settings can be exported.
    """
    if not isinstance(config, VLMConfig) or not isinstance(config.adapter, ResamplerConfig):
        return None
    adapter, encoder, decoder = config.adapter, config.encoder, config.decoder
    if adapter.form != "idefics2" or not isinstance(encoder, ViTConfig):
        return None
    layout = parts.known_layout(config)
    wide = 4 * decoder.width
    refuse(
        "Idefics 2",
        {
            "pictures cut into other tiles than quarters": config.tiling not in (None, quarters_tiling()),
            "visual tokens that see each other in both directions (bidirectional_images of the template)": (
                layout.bidirectional != "none"
            ),
            f"latents of width {adapter.width} beside a decoder's of {decoder.width}": (
                adapter.width not in (0, decoder.width)
            ),
            f"a resampler's mlp_width of {adapter.mlp_width}; it is {wide}": adapter.mlp_width not in (0, wide),
            f"a projection_width other than the decoder's mlp_width, {decoder.mlp_width}": (
                (adapter.projection_width or wide) != decoder.mlp_width
            ),
            f"a projection_activation other than the decoder's, {decoder.activation}": (
                adapter.projection_activation != decoder.activation
            ),
        },
    )
    return {
        "architectures": ["Idefics2ForConditionalGeneration"],
        "model_type": "idefics2",
        "text_config": parts.write_decoder(decoder),
        "vision_config": {**write_spread_tower(encoder, "Idefics 2"), "model_type": "idefics2_vision"},
        "perceiver_config": _write_resampler(adapter, decoder.width),
        "image_token_id": layout.image_token,
        "tie_word_embeddings": decoder.tied_embeddings,
    }


def _write_resampler(adapter: ResamplerConfig, width: int) -> dict[str, Any]:
    return {
        "model_type": "idefics2_perceiver",
        "hidden_act": write_activation(adapter.activation or "silu"),
        "hidden_size": width,
        "rms_norm_eps": adapter.norm_epsilon,
        "resampler_n_latents": adapter.queries,
        "resampler_depth": adapter.layers,
        "resampler_n_heads": adapter.heads,
        "resampler_head_dim": adapter.head_size,
        "num_key_value_heads": adapter.groups,
    }
