"""LLaVA-1.5 (Liu et al. 2024): an image encoder cut off below its last layer, a two-layer MLP, an LLM.

Whatever lies above the layer that LLaVA takes features from is left in the file; our encoder ends there. This is also
how VLMs trained here go out.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_jax.convert.families import dinov2, parts
from vlm_jax.convert.families.common import affine, read_activation, refuse, write_activation
from vlm_jax.convert.names import Row, prefixed
from vlm_jax.errors import UserError
from vlm_jax.models.adapters import MLPAdapterConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.models.vlm import PromptLayout, VLMConfig

MODEL_TYPES = ("llava",)

RENAMED = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    (
        r"^vision_tower\.(embeddings\.(?:class_embedding$|patch_embedding\.|position_embedding\.|position_ids)"
        r"|encoder\.layers\.|pre_layrnorm\.|post_layernorm\.|head\.)",
        r"vision_tower.vision_model.\1",
    ),
)
"""All layouts become the one of the published checkpoints, which every version of transformers and vLLM read."""

_TOWER = r"vision_tower\.(?:vision_model\.)?"

DROPPED = (
    *(rf"language_model\.(?:{name})" for name in parts.DECODER_DROPPED),
    *(_TOWER + f"(?:{name})" for name in parts.TOWER_DROPPED),
    _TOWER + r"(?:post_layernorm|layernorm)\.",
    _TOWER + r"encoder\.layers?\.\d+\.",
)
"""Encoder layers that are in the table are still checked; those above the features' layer are not taken."""

TEXT_DEFAULTS = {"model_type": "llama"}
VISION_DEFAULTS = {
    "model_type": "clip_vision_model",
    "intermediate_size": 4096,
    "hidden_size": 1024,
    "patch_size": 14,
    "image_size": 336,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
"""The encoder where config.json says nothing of it; a vision_config that is there is taken as it is."""


def read_config(hf: Mapping[str, Any]) -> VLMConfig:
    """config.json of a LlavaForConditionalGeneration.

    Raises:
        UserError: if it asks for what our models cannot do.
    """
    text = {**TEXT_DEFAULTS, **(hf.get("text_config") or {})}
    tied = bool(hf.get("tie_word_embeddings")) or bool(text.get("tie_word_embeddings"))
    tower = parts.read_tower({"model_type": "clip_vision_model", **(hf.get("vision_config") or VISION_DEFAULTS)})
    return VLMConfig(
        parts.read_decoder(text, tied),
        _cut(tower, hf),
        MLPAdapterConfig(
            layers=2,
            activation=read_activation({"projector_hidden_act": "gelu", **hf}, "projector_hidden_act"),
            bias=bool(hf.get("multimodal_projector_bias", True)),
        ),
        layout=PromptLayout(image_token(hf, 32_000)),
    )


def image_token(hf: Mapping[str, Any], default: int) -> int:
    """The id that stands for a picture's visual tokens, under either of its names."""
    found = hf.get("image_token_index", hf.get("image_token_id", default))
    if type(found) is not int or found < 0:
        raise UserError(f"config.json: image_token_index is {found!r}; it must be the id of a token")
    return found


def _cut(tower: ViTConfig, hf: Mapping[str, Any]) -> ViTConfig:
    """The encoder as far as vision_feature_layer, with or without its class token."""
    layer, strategy = hf.get("vision_feature_layer", -2), hf.get("vision_feature_select_strategy", "default")
    if type(layer) is not int:
        raise UserError(f"config.json: vision_feature_layer is {layer!r}; features of one layer only are supported")
    layers = layer if layer >= 0 else tower.layers + 1 + layer
    if not 0 <= layers <= tower.layers:
        raise UserError(f"config.json: vision_feature_layer is {layer}, but the encoder has {tower.layers} layers")
    if strategy not in ("default", "full"):
        raise UserError(f"config.json: vision_feature_select_strategy is {strategy!r}; known are default and full")
    refuse(
        "an encoder inside LLaVA",
        {
            "registers": tower.registers,
            "vision_feature_select_strategy default without a class token": strategy == "default"
            and not tower.class_token,
        },
    )
    vision = hf.get("vision_config") or {}
    last_is_normed = vision.get("tie_last_hidden_states") and vision.get("model_type") not in dinov2.MODEL_TYPES
    normed = bool(last_is_normed) and layers == tower.layers and tower.final_norm == "features"
    return parts.with_layers(
        tower,
        layers,
        final_norm="features" if normed else "none",
        keep_class_token=strategy == "full" and tower.class_token,
    )


def rows(config: VLMConfig) -> list[Row]:
    """The name table, in the layout of the published checkpoints."""
    assert isinstance(config.encoder, ViTConfig)
    assert isinstance(config.adapter, MLPAdapterConfig)
    inner, outer = config.encoder.width, config.decoder.width
    bias = config.adapter.bias
    return [
        *prefixed(parts.decoder_rows(config), theirs="language_model."),
        *prefixed(parts.tower_rows(config.encoder), theirs=_tower_prefix(config.encoder)),
        *affine("multi_modal_projector.linear_1", "adapter/layer_0", (inner,), (outer,), bias=bias),
        *affine("multi_modal_projector.linear_2", "adapter/layer_1", (outer,), (outer,), bias=bias),
    ]


def _tower_prefix(encoder: ViTConfig) -> str:
    return "vision_tower." if parts.is_dinov2(encoder) else "vision_tower.vision_model."


def constants(config: VLMConfig) -> dict[str, np.ndarray]:
    """Tensors that their encoder has and LLaVA makes no use of: the final norm above the last hidden state."""
    encoder = config.encoder
    assert isinstance(encoder, ViTConfig)
    if encoder.final_norm != "none":
        return {}
    name = _tower_prefix(encoder) + ("layernorm" if parts.is_dinov2(encoder) else "post_layernorm")
    return {f"{name}.weight": np.ones(encoder.width, np.float32), f"{name}.bias": np.zeros(encoder.width, np.float32)}


def write_config(config: Any) -> dict[str, Any] | None:
    """config.json of a LlavaForConditionalGeneration; None if this is no VLM with an MLP adapter.

    Raises:
        UserError: if it is one but for something that LLaVA does not have; it says which settings can be exported.
    """
    found = parts.encoder_and_adapter(config)
    if found is None or (config.layout and config.layout.bidirectional == "prompt"):
        return None
    return write_fields(config, *found, "LLaVA")


def write_fields(config: VLMConfig, encoder: ViTConfig, adapter: MLPAdapterConfig, name: str) -> dict[str, Any]:
    """config.json of a VLM, whatever its pictures are cut into; `name` is what the architecture is called."""
    if adapter.layers != 2 or adapter.pixel_shuffle != 1 or adapter.hidden not in (0, config.decoder.width):
        raise UserError(
            f"{name} has an adapter with layers 2, hidden 0 and pixel_shuffle 1, but this one has layers "
            f"{adapter.layers}, hidden {adapter.hidden} and pixel_shuffle {adapter.pixel_shuffle}"
        )
    layout = parts.known_layout(config)
    refuse(
        name,
        {
            "visual tokens that see each other in both directions (bidirectional_images of the template)": (
                layout.bidirectional != "none"
            ),
            "registers": encoder.registers,
        },
    )
    tower = parts.write_tower(encoder, resamples=parts.is_dinov2(encoder))
    if encoder.final_norm == "features":
        tower["tie_last_hidden_states"] = True  # else transformers' last hidden state is the one before the final norm
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": parts.write_decoder(config.decoder),
        "vision_config": tower,
        "image_token_index": layout.image_token,
        "image_seq_length": config.prompt_tokens,
        "projector_hidden_act": write_activation(adapter.activation),
        "multimodal_projector_bias": adapter.bias,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default" if encoder.class_token and not encoder.keep_class_token else "full",
        "tie_word_embeddings": config.decoder.tied_embeddings,
    }
