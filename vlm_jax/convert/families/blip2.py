"""BLIP-2 (Li et al. 2023) and InstructBLIP (Dai et al. 2023): a ViT, a Q-Former, a linear map, an LLM.

The LLM must be of a known architecture, as in the InstructBLIP that stands on Vicuna. The published BLIP-2 stand on
OPT or T5, of which the encoder and the Q-Former can be taken (`part` of `load_hf`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.families import blip_vision, parts, qformer
from vlm_jax.convert.families.common import affine, refuse, whole_number
from vlm_jax.convert.families.llava import image_token
from vlm_jax.convert.names import Reshape, Row, prefixed
from vlm_jax.errors import UserError
from vlm_jax.models.adapters import QFormerAdapterConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.models.vlm import PromptLayout, VLMConfig

MODEL_TYPES = ("blip-2", "instructblip")
RENAMED = ()
DROPPED = (
    r".*\.position_ids$",
    r"qformer\.encoder\.layer\.\d+\.(intermediate|output)\.",
    *(rf"language_model\.(?:{name})" for name in parts.DECODER_DROPPED),
)
"""Where BLIP-2's Q-Former has layers for text, the whole model makes no use of them."""

INSTRUCTION = 128
"""Tokens of an instruction that an imported InstructBLIP reads; config.json names no length."""


def read_config(hf: Mapping[str, Any]) -> VLMConfig:
    """config.json of a Blip2ForConditionalGeneration or an InstructBlipForConditionalGeneration.

    Raises:
        UserError: if it asks for what our models cannot do.
    """
    encoder, adapter = read_parts(hf)
    text = {"model_type": "opt", **(hf.get("text_config") or {})}
    if text["model_type"] in ("opt", "t5"):
        raise UserError(
            f"config.json: text_config is {text['model_type']!r}, and decoders of that architecture are not read; take "
            "the image encoder or the Q-Former by itself: from-hf SRC DST --part encoder, or --part qformer"
        )
    tied = text.get("tie_word_embeddings", text["model_type"].startswith("gemma"))
    return VLMConfig(
        parts.read_decoder(text, bool(tied)),
        encoder,
        adapter,
        layout=PromptLayout(image_token(hf, -1)),
    )


def read_parts(hf: Mapping[str, Any]) -> tuple[ViTConfig, QFormerAdapterConfig]:
    """The encoder and the adapter, which do not depend on the decoder."""
    instructed = hf["model_type"] == "instructblip"
    encoder = blip_vision.read_config({"model_type": "blip_2_vision_model", **(hf.get("vision_config") or {})})
    kind = {"model_type": "instructblip_qformer" if instructed else "blip_2_qformer"}
    read = qformer.read_config({**(hf.get("qformer_config") or {}), **kind})
    # Inside a model the features' width is the encoder's.
    read = dataclasses.replace(read, features_width=0, text=instructed)
    adapter = QFormerAdapterConfig(
        whole_number({"num_query_tokens": 32, **hf}, "num_query_tokens"),
        read,
        instruction=min(INSTRUCTION, read.text_length) if instructed else 0,
        feature_norm=False,
    )
    return encoder, adapter


def parts_alone(hf: Mapping[str, Any]) -> dict[str, tuple[Any, list[Row]]]:
    """(config, name table) of the parts that do not depend on the decoder."""
    encoder, adapter = read_parts(hf)
    alone = dataclasses.replace(adapter.qformer, features_width=encoder.width)
    return {
        "encoder": (encoder, prefixed(blip_vision.rows(encoder), theirs="vision_model.")),
        "qformer": (alone, prefixed(qformer.rows(alone), theirs="qformer.")),
    }


def rows(config: VLMConfig) -> list[Row]:
    """The name table."""
    assert isinstance(config.encoder, ViTConfig)
    assert isinstance(config.adapter, QFormerAdapterConfig)
    adapter, shape = config.adapter, (config.adapter.queries, config.adapter.qformer.width)
    fitted = dataclasses.replace(adapter.qformer, features_width=config.encoder.width)
    return [
        *prefixed(blip_vision.rows(config.encoder), theirs="vision_model.", ours="encoder/"),
        Row("query_tokens", "adapter/queries", Reshape((1, *shape), shape)),
        *prefixed(qformer.rows(fitted), theirs="qformer.", ours="adapter/qformer/"),
        *affine("language_projection", "adapter/out", shape[1:], (config.decoder.width,)),
        *prefixed(parts.decoder_rows(config), theirs="language_model."),
    ]


def write_config(config: Any) -> dict[str, Any] | None:
    """config.json of a BLIP-2, or of an InstructBLIP if an instruction is read; None if there is no Q-Former.

    Raises:
        UserError: if there is one but something else is not BLIP-2's.
    """
    if not isinstance(config, VLMConfig) or not isinstance(config.adapter, QFormerAdapterConfig):
        return None
    layout, adapter = parts.known_layout(config), config.adapter
    encoder = config.encoder
    if not isinstance(encoder, ViTConfig) or encoder.final_norm != "both":
        raise UserError("BLIP-2 has an encoder like BLIP's (final_norm 'both'), but this one is another")
    refuse(
        "BLIP-2",
        {
            "a norm of the features in the adapter (feature_norm)": adapter.feature_norm,
            "pictures cut into tiles": config.tiling is not None,
            "visual tokens that see each other in both directions": layout.bidirectional != "none",
        },
    )
    kind = "InstructBlip" if adapter.instruction else "Blip2"
    vision = "instructblip_vision_model" if adapter.instruction else "blip_2_vision_model"
    fitted = dataclasses.replace(adapter.qformer, features_width=encoder.width)
    return {
        "architectures": [f"{kind}ForConditionalGeneration"],
        "model_type": "instructblip" if adapter.instruction else "blip-2",
        "text_config": parts.write_decoder(config.decoder),
        "vision_config": {"model_type": vision, **blip_vision.write_fields(encoder)},
        "qformer_config": qformer.write_fields(fitted),
        "num_query_tokens": adapter.queries,
        "image_token_index": layout.image_token,
    }
