"""Small Q-Formers by themselves, and BLIP-2 and InstructBLIP with decoders of known architectures."""

import functools
from typing import Any

import numpy as np
import transformers
from cases_vlms import GEMMA, IMAGE, LLAMA, QWEN2, inputs
from harness import Arrays, Case

QUERIES, FEATURES = 4, 20

SIZES = {
    "hidden_size": 24,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "encoder_hidden_size": FEATURES,
}
"""Three layers of which every second looks at the features: one group, and a layer that fills none."""

TEXT = {"vocab_size": 50, "max_position_embeddings": 17}

VIT = {
    "hidden_size": 20,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}


def alone(rows: int = 3, *, text: int = 0, embedded: int = 0, queries: int = QUERIES, padding: bool = True) -> Arrays:
    """Inputs of a Q-Former.

    Args:
        rows: how many.
        text: ids behind the queries.
        embedded: positions of text that come embedded.
        queries: how many.
        padding: some features and some of the text are padding, at either end.
    """
    rng = np.random.default_rng(rows + text + embedded)
    found: Arrays = {
        "query_embeds": rng.standard_normal((rows, queries + embedded, 24), np.float32),
        "encoder_hidden_states": rng.standard_normal((rows, 9, FEATURES), np.float32),
    }
    length = queries + embedded + text
    if embedded:
        found["query_length"] = np.int64(queries)
    if text:
        found["input_ids"] = rng.integers(0, 50, (rows, text))
    if padding:
        found["encoder_attention_mask"] = np.ones((rows, 9), int)
        found["encoder_attention_mask"][0, 6:] = 0
        found["encoder_attention_mask"][1, :2] = 0
        found["attention_mask"] = np.ones((rows, length), int)
        if length > queries:
            found["attention_mask"][0, -2:] = 0
            found["attention_mask"][2, queries : queries + 2] = 0
    return found


def qformer(kind: str, given, **fields: Any) -> Case:
    config = functools.partial(getattr(transformers, f"{kind}QFormerConfig"), **{**SIZES, **fields})
    return Case(f"{kind}QFormerModel", config, given)


QFORMERS: dict[str, Case] = {
    "blip2": qformer("Blip2", alone),
    "blip2_every_layer": qformer(
        "Blip2", functools.partial(alone, padding=False), cross_attention_frequency=1, hidden_act="relu"
    ),
    "blip2_first_layer_only": qformer("Blip2", alone, cross_attention_frequency=5, num_hidden_layers=4),
    "blip2_with_text_layers": qformer(
        "Blip2", functools.partial(alone, embedded=3, padding=False), use_qformer_text_input=True
    ),
    "instructblip": qformer("InstructBlip", functools.partial(alone, text=6), **TEXT),
    "instructblip_groups": qformer(
        "InstructBlip", functools.partial(alone, text=6), **TEXT, num_hidden_layers=4, layer_norm_eps=1e-3
    ),
}


def pictures() -> Arrays:
    """A Blip2VisionModel's."""
    return {"pixel_values": np.random.default_rng(0).standard_normal((2, 3, 28, 28), np.float32)}


TOWERS: dict[str, Case] = {
    "blip2": Case("Blip2VisionModel", functools.partial(transformers.Blip2VisionConfig, **VIT), pictures),
    "instructblip_without_bias": Case(
        "InstructBlipVisionModel",
        functools.partial(transformers.InstructBlipVisionConfig, **VIT, qkv_bias=False, hidden_act="gelu_new"),
        pictures,
    ),
    "blip": Case("BlipVisionModel", functools.partial(transformers.BlipVisionConfig, **VIT), pictures),
}


def instructed(tokens: int = QUERIES) -> Arrays:
    """Three rows with three pictures among them, and an instruction for each."""
    found = inputs(tokens)
    rng = np.random.default_rng(5)
    found["qformer_input_ids"] = rng.integers(0, 50, (3, 6))
    found["qformer_attention_mask"] = np.array([[1, 1, 1, 1, 0, 0], [1] * 6, [0, 1, 1, 1, 1, 1]])
    return found


def whole(kind: str, text: dict[str, Any], given, vision=VIT, **fields: Any) -> Case:
    extra = TEXT if kind == "InstructBlip" else {}
    config = functools.partial(
        getattr(transformers, f"{kind}Config"),
        text_config=text,
        vision_config=vision,
        qformer_config={**SIZES, **extra, **fields},
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )
    return Case(f"{kind}ForConditionalGeneration", config, given)


WHOLE: dict[str, Case] = {
    "blip2_llama": whole("Blip2", LLAMA, functools.partial(inputs, QUERIES)),
    "blip2_gemma": whole(
        "Blip2", GEMMA, functools.partial(inputs, QUERIES), cross_attention_frequency=1, use_qformer_text_input=True
    ),
    "instructblip_llama": whole("InstructBlip", LLAMA, instructed),
    "instructblip_qwen2": whole("InstructBlip", QWEN2, instructed, num_hidden_layers=2),
}

CASES: dict[str, Case] = {
    **{f"qformer_{name}": case for name, case in QFORMERS.items()},
    **{f"blip_tower_{name}": case for name, case in TOWERS.items()},
    **WHOLE,
}
