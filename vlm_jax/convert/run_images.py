"""An image encoder on pictures as transformers takes them: normalised, channels first."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from vlm_jax.convert.run_text import Arrays
from vlm_jax.errors import UserError
from vlm_jax.models.convnext import ConvNeXt
from vlm_jax.models.encoders import EncoderConfig, build_encoder
from vlm_jax.models.layers import Precision
from vlm_jax.models.states import EncoderStates
from vlm_jax.models.vit import ViT, ViTConfig


def channels_last(pixels: np.ndarray) -> Float[np.ndarray, "N H W 3"]:
    """[N, 3, H, W] -> [N, H, W, 3], float32.

    Raises:
        UserError: if the shape is another.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise UserError(f"inputs: pixel_values is {list(pixels.shape)}; give [pictures, 3, height, width]")
    return np.asarray(pixels, np.float32).transpose(0, 2, 3, 1)


def run_encoder(config: EncoderConfig, params: PyTree, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """last_hidden_state, hidden_states.N and, where the model has one, pooler_output, in transformers' shapes, float32.

    Args:
        config, params: of the encoder.
        inputs: pixel_values [N, 3, H, W].

    Raises:
        UserError: if there are no pictures.
    """
    if "pixel_values" not in inputs:
        raise UserError(f"inputs: pixel_values is missing; there are {', '.join(inputs) or 'none'}")
    pixels = channels_last(np.asarray(inputs["pixel_values"]))
    if isinstance(config, ViTConfig):
        height, width = (side - side % config.stem.stride for side in pixels.shape[1:3])
        pixels = pixels[:, :height, :width]  # transformers' convolution leaves out what fills no patch
    if 0 in pixels.shape:
        raise UserError(f"inputs: pixel_values is {list(inputs['pixel_values'].shape)}, which is too small for a patch")
    states = _states(build_encoder(config, Precision()), params, pixels)
    found = {f"hidden_states.{number}": array for number, array in enumerate(states.hidden)}
    found["last_hidden_state"] = states.last
    first = {name: np.moveaxis(np.asarray(x), -1, 1) if x.ndim == 4 else np.asarray(x) for name, x in found.items()}
    if states.pooled is not None:
        first["pooler_output"] = np.asarray(states.pooled)
    return {name: np.asarray(array, np.float32) for name, array in first.items()}


@functools.partial(jax.jit, static_argnums=0)
def _states(encoder: ViT | ConvNeXt, params: PyTree, pixels: Array) -> EncoderStates:
    result: Any = encoder.apply({"params": params}, pixels, method="states")
    return result
