"""Models whose encoder takes pictures of any shape, in frames with a mask."""

import functools

import numpy as np
from cases_vlms import IDEFICS_VISION, IMAGE, LLAMA, case, idefics2, inputs
from harness import Arrays, Case


def padded(tokens: int, size: int) -> Arrays:
    """Pictures by row of several shapes in frames of `size`, the rest of them padding under a mask."""
    found = inputs(tokens, nested=True, size=size)
    mask = np.zeros((3, 2, size, size), int)
    for place, (height, width) in {(0, 0): (size, size - 5), (2, 0): (size - 9, 11), (2, 1): (8, size)}.items():
        mask[place][:height, :width] = 1
    found["pixel_values"] = found["pixel_values"] * mask[:, :, None].astype(np.float32)
    return {**found, "pixel_attention_mask": mask}


CASES: dict[str, Case] = {
    "idefics2_padded": idefics2(functools.partial(padded, 5, 45), LLAMA),
    "idefics3_padded": case(
        "Idefics3", LLAMA, IDEFICS_VISION, functools.partial(padded, 4, 42), image_token_id=IMAGE, scale_factor=3
    ),
    "idefics2_small_frames": idefics2(functools.partial(padded, 5, 30), resampler_depth=1),
}
