"""Small LLaVA-NeXT models: pictures of several shapes, cut into several grids."""

from typing import Any

import numpy as np
import transformers
from cases_vlms import CLIP, IMAGE, LLAMA, MISTRAL, SIGLIP
from harness import Arrays, Case
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
SIZES = [(60, 41), (20, 90), (300, 31), (28, 28)]


def inputs() -> Arrays:
    """A row for each of the first pictures, and one for the last two; rows differ in length."""
    rng = np.random.default_rng(4)
    texts, tiles = [], []
    for height, width in SIZES:
        best = select_best_resolution((height, width), PINPOINTS)
        rows, columns = (side // 28 for side in best)
        kept, newlines = LlavaNextProcessor._get_unpadded_features(None, height, width, 4, 4, rows, columns)
        texts.append([*rng.integers(3, 90, 4).tolist(), *[IMAGE] * (kept + newlines + 16), 7, 8, 9])
        tiles.append(rng.integers(-2, 3, (1 + rows * columns, 3, 28, 28)).astype(np.float32))
    pixels = np.zeros((len(SIZES), max(map(len, tiles)), *tiles[0].shape[1:]), np.float32)
    for picture, of_picture in zip(pixels, tiles, strict=True):
        picture[: len(of_picture)] = of_picture
    texts = [*texts[:-2], texts[-2] + texts[-1]]
    length = max(map(len, texts))
    ids, mask = np.zeros((len(texts), length), int), np.zeros((len(texts), length), int)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "image_sizes": np.array(SIZES)}


def case(text: dict[str, Any], vision: dict[str, Any], **fields: Any) -> Case:
    given = {"image_token_index": IMAGE, "image_grid_pinpoints": PINPOINTS, **fields}
    return Case(
        "LlavaNextForConditionalGeneration",
        lambda: transformers.LlavaNextConfig(text_config=text, vision_config=vision, **given),
        inputs,
    )


CASES: dict[str, Case] = {
    "llava_next": case(LLAMA, CLIP),
    "llava_next_full": case(
        MISTRAL,
        SIGLIP,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        multimodal_projector_bias=False,
    ),
}
