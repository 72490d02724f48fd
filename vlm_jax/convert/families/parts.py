"""What the families of vision-language models share: an encoder's and a decoder's table and config inside another's."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.families import clip, decoders, dinov2, find_family, internvl_vision, siglip
from vlm_jax.convert.families.vision import position_grid
from vlm_jax.convert.names import Row, prefixed
from vlm_jax.errors import UserError
from vlm_jax.models.adapters import MLPAdapterConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.models.vlm import PromptLayout, VLMConfig

TOWER_DROPPED = tuple({*clip.DROPPED, *siglip.DROPPED, *dinov2.DROPPED})
"""Regexes of what image encoders have and we never take."""

DECODER_DROPPED = decoders.DROPPED


def read_decoder(fields: Mapping[str, Any], tied: bool) -> DecoderConfig:
    """The decoder of a text_config.

    Args:
        fields: the text_config, over the defaults of the model that it is part of.
        tied: whether embedding and head are one; the whole model's config.json says so.

    Raises:
        UserError: if it is of no known architecture.
    """
    # PaliGemma asks for attention in both directions here; its prompt layout is what says so in our config.
    own = {"tie_word_embeddings": tied, "use_bidirectional_attention": None}
    config = find_family(fields, "config.json: text_config").read_config({**fields, **own})
    if not isinstance(config, DecoderConfig):
        raise UserError(f"config.json: text_config is a {fields['model_type']}, which is no decoder")
    return config


def read_tower(fields: Mapping[str, Any]) -> ViTConfig:
    """The image encoder of a vision_config.

    Raises:
        UserError: if it is no ViT of a known architecture.
    """
    config = find_family(fields, "config.json: vision_config").read_config(fields)
    if not isinstance(config, ViTConfig):
        raise UserError(f"config.json: vision_config is a {fields['model_type']}; inside a VLM only ViTs are read")
    return config


def decoder_rows(config: VLMConfig) -> list[Row]:
    """Rows of the decoder, as those of a ...ForCausalLM: `model.*` and `lm_head.weight`."""
    return prefixed(decoders.decoder_rows(config.decoder), ours="decoder/")


def tower_rows(config: ViTConfig) -> list[Row]:
    """Rows of the encoder, as those of the architecture that it is alone."""
    return prefixed(_tower(config).rows(config), ours="encoder/")


def is_dinov2(config: ViTConfig) -> bool:
    """Whether the encoder is built like DINOv2; CLIP and SigLIP share their names."""
    return _tower(config) in (dinov2, internvl_vision)


def write_decoder(config: DecoderConfig) -> dict[str, Any]:
    """The text_config of a decoder.

    Raises:
        UserError: if no architecture can express it.
    """
    for model_type in ("llama", "gemma"):
        fields = find_family({"model_type": model_type}).write_config(config)
        if fields is not None:
            return {name: value for name, value in fields.items() if name != "architectures"}
    raise UserError("no architecture has a decoder like this")


def write_tower(config: ViTConfig, *, resamples: bool = False) -> dict[str, Any]:
    """The vision_config of an encoder, whatever becomes of its final norm.

    Args:
        config: the encoder's.
        resamples: the model outside resamples positions where pictures have another grid.

    Raises:
        UserError: if no architecture can express it.
    """
    if not resamples and position_grid(config) != config.grid:
        raise UserError(f"its positions are for {position_grid(config)} patches, but pictures have {config.grid}")
    return _tower(config).write_fields(config)


def _tower(config: ViTConfig) -> Any:
    if config.final_norm == "both":
        raise UserError("an encoder like BLIP's (final_norm 'both') is known by itself and inside BLIP-2 only")
    if not config.class_token:
        return siglip
    if config.stem_norm:
        return clip
    # A whole model takes DINOv2's last layer without its final norm; under the other name, with it.
    return internvl_vision if config.final_norm == "features" else dinov2


def encoder_and_adapter(config: Any, *, tiled: bool = False) -> tuple[ViTConfig, MLPAdapterConfig] | None:
    """The parts of a VLM that the families here can express; None if it has others.

    Args:
        config: of any model.
        tiled: the family cuts pictures into tiles, and the others do not.
    """
    if not isinstance(config, VLMConfig) or (config.tiling is not None) != tiled:
        return None
    if not isinstance(config.encoder, ViTConfig) or not isinstance(config.adapter, MLPAdapterConfig):
        return None
    return config.encoder, config.adapter


def with_layers(config: ViTConfig, layers: int, **changes: Any) -> ViTConfig:
    """The same encoder cut off after so many layers."""
    return dataclasses.replace(config, layers=layers, **changes)


def known_layout(config: VLMConfig) -> PromptLayout:
    """The config's layout.

    Raises:
        UserError: if it has none: outside, a model has to know which token stands for pictures.
    """
    if config.layout is None:
        raise UserError(
            "the config does not say which token stands for pictures; set VLMConfig.layout to "
            "PromptLayout(image_token=the tokenizer's image_id)"
        )
    return config.layout
