"""PaliGemma 1 and 2 (Beyer et al. 2024, Steiner et al. 2024): SigLIP, one linear map, Gemma 1 or 2.

Picture and prompt see each other in both directions, and positions count from 1. Gemma multiplies its token embeddings
by sqrt(width) and visual tokens join them after that, so they are taken as the adapter gives them.
"""

from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.families import llava, parts
from vlm_jax.convert.families.common import affine, refuse
from vlm_jax.convert.names import Row, prefixed
from vlm_jax.errors import UserError
from vlm_jax.models.adapters import MLPAdapterConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.models.vlm import PromptLayout, VLMConfig

MODEL_TYPES = ("paligemma",)
RENAMED = llava.RENAMED
DROPPED = (
    *(rf"language_model\.(?:{name})" for name in parts.DECODER_DROPPED),
    *(rf"vision_tower\.vision_model\.(?:{name})" for name in parts.TOWER_DROPPED),
)

TEXT_DEFAULTS = {
    "model_type": "gemma",
    "hidden_size": 2048,
    "num_hidden_layers": 18,
    "intermediate_size": 16_384,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "vocab_size": 257_152,
}
VISION_DEFAULTS = {
    "model_type": "siglip_vision_model",
    "intermediate_size": 4096,
    "hidden_size": 1152,
    "patch_size": 14,
    "image_size": 224,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}
"""The parts where config.json says nothing of them."""


def read_config(hf: Mapping[str, Any]) -> VLMConfig:
    """config.json of a PaliGemmaForConditionalGeneration.

    Raises:
        UserError: if it asks for what our models cannot do.
    """
    text = {"model_type": "gemma", **(hf.get("text_config") or TEXT_DEFAULTS)}
    decoder = parts.read_decoder(text, bool(hf.get("tie_word_embeddings", True)))
    tower = parts.read_tower({"model_type": "siglip_vision_model", **(hf.get("vision_config") or VISION_DEFAULTS)})
    width = hf.get("projection_dim", 2048)
    if width != decoder.width:
        raise UserError(f"config.json: projection_dim is {width}, but hidden_size of text_config {decoder.width}")
    layout = PromptLayout(llava.image_token(hf, 256_000), bidirectional="prompt", first_position=1)
    return VLMConfig(decoder, tower, MLPAdapterConfig(layers=1), layout=layout)


def rows(config: VLMConfig) -> list[Row]:
    """The name table, in the layout of the published checkpoints."""
    assert isinstance(config.encoder, ViTConfig)
    inner, outer = config.encoder.width, config.decoder.width
    return [
        *prefixed(parts.decoder_rows(config), theirs="language_model."),
        *prefixed(parts.tower_rows(config.encoder), theirs="vision_tower.vision_model."),
        *affine("multi_modal_projector.linear", "adapter/layer_0", (inner,), (outer,)),
    ]


def write_config(config: Any) -> dict[str, Any] | None:
    """config.json of a PaliGemmaForConditionalGeneration; None if the prompt is not laid out like PaliGemma's.

    Raises:
        UserError: if it is, but something else is not PaliGemma's.
    """
    found = parts.encoder_and_adapter(config)
    if found is None or config.layout is None or config.layout.bidirectional != "prompt":
        return None
    encoder, adapter = found
    refuse(
        "PaliGemma",
        {
            "an adapter other than layers 1 with a bias and pixel_shuffle 1": adapter
            != MLPAdapterConfig(layers=1, hidden=adapter.hidden, activation=adapter.activation),
            "positions that do not count from 1": config.layout.first_position != 1,
            "an encoder with a class token": encoder.class_token,
            "an encoder without a final norm": encoder.final_norm != "features",
            "a decoder that is no Gemma": not config.decoder.norm_offset,
        },
    )
    tower, text = parts.write_tower(encoder), parts.write_decoder(config.decoder)
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "text_config": {**text, "num_image_tokens": config.prompt_tokens},
        "vision_config": {**tower, "projection_dim": config.decoder.width},
        "image_token_index": config.layout.image_token,
        "projection_dim": config.decoder.width,
        "hidden_size": config.decoder.width,
        "vocab_size": config.decoder.vocabulary_size,
        "tie_word_embeddings": config.decoder.tied_embeddings,
    }
