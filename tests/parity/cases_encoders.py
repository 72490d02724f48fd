"""Small image encoders with odd sizes: grids that are not square, pictures that no patch divides, other sizes."""

import functools
from typing import Any

import numpy as np
import transformers
from harness import Arrays, Case

VIT = {"hidden_size": 18, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 5, "image_size": 20}
CLIP = {**VIT, "intermediate_size": 31}
CONVNEXT = {"num_stages": 3, "depths": [2, 1, 3], "hidden_sizes": [6, 10, 14], "patch_size": 3, "image_size": 37}


def pictures(height: int = 20, width: int = 20) -> Arrays:
    """Two normalised pictures."""
    return {"pixel_values": np.random.default_rng(height).standard_normal((2, 3, height, width)).astype(np.float32)}


def case(kind: str, size: tuple[int, int] = (20, 20), model: str = "Model", **fields: Any) -> Case:
    """`kind` as in Dinov2Model; pictures of `size`."""
    config = functools.partial(getattr(transformers, f"{kind}Config"), **fields)
    return Case(f"{kind}{model}", config, functools.partial(pictures, *size))


def dinov2(size: tuple[int, int] = (20, 20), kind: str = "Dinov2", **fields: Any) -> Case:
    return case(kind, size, **{**VIT, "mlp_ratio": 3, **fields})


CASES: dict[str, Case] = {
    "clip": case("CLIPVision", **CLIP),
    "clip_gelu": case("CLIPVision", (23, 23), **{**CLIP, "image_size": 23, "hidden_act": "gelu"}),
    "siglip": case("SiglipVision", **CLIP, vision_use_head=False),
    "siglip_truncated": case("SiglipVision", (24, 24), **{**CLIP, "image_size": 24}, vision_use_head=False),
    "dinov2": dinov2(),
    "dinov2_larger": dinov2((35, 45)),
    "dinov2_smaller": dinov2((17, 14), qkv_bias=False),
    "dinov2_swiglu": dinov2((20, 40), use_swiglu_ffn=True),
    "dinov2_registers": dinov2(kind="Dinov2WithRegisters", num_register_tokens=3),
    "dinov2_registers_larger": dinov2((25, 50), "Dinov2WithRegisters", num_register_tokens=1, use_swiglu_ffn=True),
    "dinov2_registers_smaller": dinov2((15, 10), "Dinov2WithRegisters", num_register_tokens=2),
    "convnext": case("ConvNext", (37, 37), **CONVNEXT),
    "convnext_oblong": case("ConvNext", (25, 62), **{**CONVNEXT, "layer_scale_init_value": 0.0, "hidden_act": "relu"}),
}
