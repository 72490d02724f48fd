"""Idefics 3 (Laurençon et al. 2024) and SmolVLM (Marafioti et al. 2025): SigLIP, pixel-shuffle, one linear map, an LLM.

config.json does not say how large pictures are cut into tiles; the image processor's file does.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.families import parts, siglip
from vlm_jax.convert.families.common import affine, refuse, whole_number
from vlm_jax.convert.families.llava import image_token
from vlm_jax.convert.families.vision import check_resampling
from vlm_jax.convert.names import Row, prefixed
from vlm_jax.errors import UserError
from vlm_jax.models.adapters import MLPAdapterConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.models.vlm import PromptLayout, VLMConfig

MODEL_TYPES = ("idefics3", "smolvlm")
RENAMED = ((r"^model\.vision_model\.vision_model\.", "model.vision_model."),)
DROPPED = (
    r"lm_head\.weight$",
    *(rf"model\.text_model\.(?:{name.removeprefix('model.')})" for name in parts.DECODER_DROPPED),
    *(rf"model\.vision_model\.(?:{name})" for name in parts.TOWER_DROPPED),
)

TEXT_DEFAULTS = {"model_type": "llama", "rms_norm_eps": 1e-5}
VISION_DEFAULTS = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
"""What a field that config.json leaves out means."""


def read_config(hf: Mapping[str, Any]) -> VLMConfig:
    """config.json of an Idefics3ForConditionalGeneration or SmolVLMForConditionalGeneration.

    Raises:
        UserError: if it asks for what our models cannot do.
    """
    text = {**TEXT_DEFAULTS, **(hf.get("text_config") or {})}
    decoder = parts.read_decoder(text, bool(hf.get("tie_word_embeddings", False)))
    factor = whole_number({"scale_factor": 2, **hf}, "scale_factor")
    return VLMConfig(
        decoder,
        read_spread_tower({**VISION_DEFAULTS, **(hf.get("vision_config") or {})}),
        MLPAdapterConfig(layers=1, pixel_shuffle=factor, bias=False),
        layout=PromptLayout(image_token(hf, 128_257)),
    )


def read_spread_tower(fields: Mapping[str, Any]) -> ViTConfig:
    """The encoder of Idefics 2 and 3: SigLIP's, by its names and its sums, with positions spread over the picture."""
    tower = parts.read_tower({**fields, "model_type": "siglip_vision_model"})
    return dataclasses.replace(tower, position_resampling="fractional")


def write_spread_tower(encoder: ViTConfig, architecture: str) -> dict[str, Any]:
    """The vision_config of such an encoder, but for its model_type.

    Raises:
        UserError: if the architecture, which is called so, cannot express it.
    """
    refuse(
        architecture,
        {
            "an encoder with a class token": encoder.class_token,
            "an encoder without a final norm": encoder.final_norm != "features",
        },
    )
    check_resampling(encoder, architecture, "fractional")
    return siglip.write_fields(dataclasses.replace(encoder, position_resampling="bicubic"))


def rows(config: VLMConfig) -> list[Row]:
    """The name table."""
    assert isinstance(config.encoder, ViTConfig)
    assert isinstance(config.adapter, MLPAdapterConfig)
    inner = config.encoder.width * config.adapter.pixel_shuffle**2
    return [
        *(text_row(row) for row in parts.decoder_rows(config)),
        *prefixed(parts.tower_rows(config.encoder), theirs="model.vision_model."),
        *affine(
            "model.connector.modality_projection.proj",
            "adapter/layer_0",
            (inner,),
            (config.decoder.width,),
            bias=False,
        ),
    ]


def text_row(row: Row) -> Row:
    """A row of a ...ForCausalLM inside of Idefics: the head stays outside of the text model."""
    if not row.theirs.startswith("model."):
        return row
    return dataclasses.replace(row, theirs=row.theirs.replace("model.", "model.text_model.", 1))


def write_config(config: Any) -> dict[str, Any] | None:
    """config.json of an Idefics3ForConditionalGeneration; None if this is no VLM with an MLP adapter.

    Raises:
        UserError: if it is one but for something that Idefics 3 does not have; it says which settings can be exported.
    """
    tiled = isinstance(config, VLMConfig) and config.tiling is not None and config.tiling.choose == "cover"
    found = parts.encoder_and_adapter(config, tiled=tiled)
    if found is None or (config.layout and config.layout.bidirectional == "prompt"):
        return None
    encoder, adapter = found
    if adapter.layers != 1 or adapter.bias:
        raise UserError(
            "Idefics 3 has an adapter with layers 1 and bias False, with any pixel_shuffle, but this one has layers "
            f"{adapter.layers} and bias {adapter.bias}"
        )
    layout = parts.known_layout(config)
    refuse(
        "Idefics 3",
        {
            "visual tokens that see each other in both directions (bidirectional_images of the template)": (
                layout.bidirectional != "none"
            ),
        },
    )
    return {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        "text_config": parts.write_decoder(config.decoder),
        "vision_config": {**write_spread_tower(encoder, "Idefics 3"), "model_type": "idefics3_vision"},
        "image_token_id": layout.image_token,
        "scale_factor": adapter.pixel_shuffle,
        "tie_word_embeddings": config.decoder.tied_embeddings,
    }
