"""Small vision-language models: rows with several pictures and with none, image tokens embedded or not."""

import functools
from typing import Any

import numpy as np
import transformers
from cases_llms import SIZES, SLIDING
from harness import Arrays, Case

IMAGE = 96
"""The image token."""

LLAMA = {**SIZES, "model_type": "llama"}
MISTRAL = {**SIZES, "model_type": "mistral", "sliding_window": 7}
QWEN2 = {**SIZES, "model_type": "qwen2", "tie_word_embeddings": True, "hidden_size": 36, "num_attention_heads": 6}
GEMMA = {**SIZES, "model_type": "gemma", "tie_word_embeddings": True}
GEMMA2 = {**SIZES, "model_type": "gemma2", "num_hidden_layers": 4, "sliding_window": 7, "query_pre_attn_scalar": 12}
GEMMA2 |= {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "tie_word_embeddings": True}

VIT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 28,
    "patch_size": 7,
}
CLIP = {**VIT, "model_type": "clip_vision_model"}
SIGLIP = {**VIT, "model_type": "siglip_vision_model", "vision_use_head": False}
DINOV2 = {**VIT, "model_type": "dinov2", "mlp_ratio": 2}

assert SLIDING


def inputs(
    tokens: int, *, image: int = IMAGE, prompt: bool = False, nested: bool = False, size: int = 28, padding: bool = True
) -> Arrays:
    """Three rows with one, no and two pictures; row 0 is padded at the start, row 1 at the end.

    Args:
        tokens: visual tokens a picture.
        image: id of the image token.
        prompt: add token_type_ids: the first row's last five tokens are its answer so far.
        nested: pictures by row, [B, I, 3, H, W], with empty ones; else in one list.
        size: of the pictures.
        padding: rows differ in length.
    """
    rng = np.random.default_rng(tokens)

    def text(length: int) -> list[int]:
        return rng.integers(3, 90, length).tolist()

    length = 2 * tokens + 9
    one = [*text(4), *[image] * tokens, *text(length - tokens - 4 - 3 * padding)]
    none = text(length - 6 * padding)
    two = [*text(3), *[image] * tokens, *text(2), *[image] * tokens, *text(4)]
    ids, mask = np.zeros((3, length), int), np.zeros((3, length), int)
    ids[0, length - len(one) :], mask[0, length - len(one) :] = one, 1
    ids[1, : len(none)], mask[1, : len(none)] = none, 1
    ids[2], mask[2] = two, 1
    pixels = rng.standard_normal((3, 3, size, size), np.float32)
    found: Arrays = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    if nested:
        empty = np.zeros_like(pixels[0])
        found["pixel_values"] = np.stack([[pixels[0], empty], [empty, empty], [pixels[1], pixels[2]]])
    if prompt:
        found["token_type_ids"] = np.zeros_like(ids)
        found["token_type_ids"][0, -5:] = 1
    return found


def case(kind: str, text: dict[str, Any], vision: dict[str, Any], given, **fields: Any) -> Case:
    """`kind` as in LlavaForConditionalGeneration."""
    cls = getattr(transformers, f"{kind}Config")
    config = functools.partial(cls, text_config=text, vision_config=vision, **fields)
    return Case(f"{kind}ForConditionalGeneration", config, given)


def llava(text: dict[str, Any], vision: dict[str, Any], tokens: int = 16, **fields: Any) -> Case:
    return case("Llava", text, vision, functools.partial(inputs, tokens), image_token_index=IMAGE, **fields)


def paligemma(text: dict[str, Any], image: int) -> Case:
    given = functools.partial(inputs, 16, image=image, prompt=True)
    width = text["hidden_size"]
    return case("PaliGemma", text, SIGLIP, given, image_token_index=image, projection_dim=width, hidden_size=width)


IDEFICS_VISION = {**VIT, "image_size": 42}
PERCEIVER = {
    "resampler_n_latents": 5,
    "resampler_depth": 2,
    "resampler_n_heads": 6,
    "resampler_head_dim": 8,
    "num_key_value_heads": 3,
}


def idefics2(given, text: dict[str, Any] = MISTRAL, **perceiver: Any) -> Case:
    sizes = {**PERCEIVER, **perceiver}
    return case("Idefics2", text, IDEFICS_VISION, given, perceiver_config=sizes, image_token_id=IMAGE)


CASES: dict[str, Case] = {
    "idefics2": idefics2(functools.partial(inputs, 5, nested=True, size=42)),
    "idefics2_own_width": idefics2(
        functools.partial(inputs, 5, nested=True, size=28), QWEN2, hidden_size=36, rms_norm_eps=1e-2, hidden_act="gelu"
    ),
    "llava_clip": llava(LLAMA, CLIP),
    "llava_clip_full": llava(MISTRAL, CLIP, 17, vision_feature_select_strategy="full", vision_feature_layer=-1),
    "llava_siglip": llava(
        QWEN2,
        SIGLIP,
        vision_feature_select_strategy="full",
        vision_feature_layer=1,
        projector_hidden_act="relu",
        multimodal_projector_bias=False,
    ),
    "llava_dinov2": llava(LLAMA, DINOV2, vision_feature_layer=-2),
    "paligemma": paligemma(GEMMA, image=SIZES["vocab_size"] + 5),
    "paligemma2": paligemma(GEMMA2, image=IMAGE),
    "idefics3": case(
        "Idefics3",
        LLAMA,
        IDEFICS_VISION,
        functools.partial(inputs, 4, nested=True, size=42),
        image_token_id=IMAGE,
        scale_factor=3,
    ),
    "smolvlm": case(
        "SmolVLM",
        LLAMA,
        IDEFICS_VISION,
        functools.partial(inputs, 9, nested=True, size=42),
        image_token_id=IMAGE,
        scale_factor=2,
        tie_word_embeddings=True,
    ),
}
