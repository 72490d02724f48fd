"""Small Llama 3.2 Vision models: several pictures a row, cut into several grids of tiles, and text before them."""

import functools
from typing import Any

import numpy as np
import transformers
from harness import Arrays, Case

VOCABULARY = 97
IMAGE = VOCABULARY
"""The image token is the first one past the vocabulary."""

GRIDS = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "cross_attention_layers": [1, 4],
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ROPE = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 32}

VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_global_layers": 2,
    "attention_heads": 3,
    "image_size": 14,
    "patch_size": 7,
    "max_num_tiles": 4,
    "intermediate_layers_indices": [2, 0],
    "vision_output_dim": 72,
}


def pictures(
    ids: list[list[int]], grids: tuple[tuple[int, int], ...] = GRIDS, tiles: int = 4, size: int = 14
) -> Arrays:
    """Pictures by the numbers of their grids, as the processor makes them: unused tiles are zero; 0 = no picture."""
    numbers = np.array(ids)
    counts = np.array([0, *(rows * columns for rows, columns in grids)])[numbers][..., None]
    used = np.arange(tiles) < np.maximum(counts, 1)
    pixels = np.random.default_rng(numbers.size).standard_normal((*numbers.shape, tiles, 3, size, size), np.float32)
    pixels *= (np.arange(tiles) < counts)[..., None, None, None]
    return {"pixel_values": pixels, "aspect_ratio_ids": numbers, "aspect_ratio_mask": used.astype(int)}


def inputs(mask: bool = True, shown: bool = True, **options: Any) -> Arrays:
    """Three rows of 14: text, two pictures apart and padding before; one picture and padding behind; two at once.

    Args:
        mask: who sees what, as the processor has it; else everybody sees everything.
        shown: there are pictures.
        options: of `pictures`.
    """
    rng = np.random.default_rng(3)
    ids, real = rng.integers(3, VOCABULARY, (3, 14)), np.ones((3, 14), int)
    real[0, :2], real[1, 11:] = 0, 0
    for row, column in ((0, 4), (0, 8), (1, 5), (2, 2), (2, 3)):
        ids[row, column] = IMAGE
    found = {"input_ids": ids, "attention_mask": real}
    if not shown:
        return found
    found |= pictures(**{"ids": [[1, 6], [3, 0], [8, 5]], **options})
    if mask:
        used = found["aspect_ratio_mask"]
        sees = np.zeros((3, 14, *used.shape[1:]), int)
        for row, picture, start, stop in ((0, 0, 4, 8), (0, 1, 8, 14), (1, 0, 5, 14), (2, 0, 2, 14), (2, 1, 3, 14)):
            sees[row, start:stop, picture] = used[row, picture]
        found["cross_attention_mask"] = sees
    return found


def config(text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None) -> transformers.MllamaConfig:
    return transformers.MllamaConfig(
        text_config={**TEXT, **(text or {})}, vision_config={**VISION, **(vision or {})}, image_token_index=IMAGE
    )


def whole(given, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None) -> Case:
    return Case("MllamaForConditionalGeneration", functools.partial(config, text, vision), given)


FEW = ((2, 1), (1, 2), (1, 1))
"""In an order of their own."""

CASES: dict[str, Case] = {
    "mllama": whole(inputs, {"rope_parameters": ROPE}),
    "mllama_edges": whole(
        functools.partial(inputs, False, grids=FEW, tiles=2, ids=[[1, 3], [2, 0], [3, 2]]),
        {"cross_attention_layers": [5, 0, 1], "hidden_act": "gelu"},
        {
            "max_num_tiles": 2,
            "supported_aspect_ratios": [list(grid) for grid in FEW],
            "intermediate_layers_indices": [-1, 1, 1],
            "vision_output_dim": 96,
            "num_global_layers": 1,
            "hidden_act": "quick_gelu",
        },
    ),
    "mllama_text": whole(functools.partial(inputs, shown=False)),
    "mllama_encoder": Case(
        "MllamaVisionModel",
        functools.partial(transformers.MllamaVisionConfig, **VISION),
        functools.partial(pictures, [[1, 6, 0], [3, 8, 5]]),
    ),
}
