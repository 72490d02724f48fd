"""Pictures of several sizes in one array, as transformers takes them: padded, with a mask."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from vlm_jax.convert.run_images import channels_last
from vlm_jax.errors import UserError
from vlm_jax.models.adapters import ResamplerConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.models.vlm import VLMConfig


def whole_pictures(
    config: VLMConfig, inputs: Mapping[str, np.ndarray]
) -> tuple[Float[np.ndarray, "N H W 3"], Bool[np.ndarray, "N h w"] | None]:
    """Pictures that are there, and which of their patches are shown; None = all are.

    A patch is shown if the mask shows all of its pixels (Idefics 2), or any of them (Idefics 3, whose visual tokens are
    patches, padding among them). Pixels at the right and at the bottom that fill no patch are cut off.

    Args:
        config: of a model with an image encoder.
        inputs: pixel_values [N, 3, H, W] or [B, I, 3, H, W], where pictures that are all zero are absent, and maybe
            pixel_attention_mask [N, H, W] or [B, I, H, W], for encoders whose positions are spread over the picture.

    Raises:
        UserError: if the two do not agree, or the model cannot have pictures of this size.
    """
    pixels = np.asarray(inputs["pixel_values"], np.float32)
    mask = inputs.get("pixel_attention_mask")
    if mask is not None and np.shape(mask) != (*pixels.shape[:-3], *pixels.shape[-2:]):
        raise UserError(
            f"inputs: pixel_attention_mask is {list(np.shape(mask))}, but pixel_values {list(pixels.shape)}; give one "
            "number for each pixel of each picture"
        )
    if pixels.ndim == 5:
        pixels = pixels.reshape(-1, *pixels.shape[2:])
        present = np.any(pixels != 0, axis=(1, 2, 3))
        pixels = pixels[present]
        mask = None if mask is None else np.asarray(mask).reshape(-1, *np.shape(mask)[2:])[present]
    pixels = channels_last(pixels)
    if not isinstance(config.encoder, ViTConfig) or config.encoder.position_resampling != "fractional":
        if mask is not None and not np.all(mask):
            raise UserError("inputs: pixel_attention_mask hides pixels, but this model's encoder sees whole pictures")
        return pixels, None
    side = config.encoder.stem.stride
    rows, columns = (length // side for length in pixels.shape[1:3])
    pixels = pixels[:, : rows * side, : columns * side]
    if 0 in (rows, columns):
        raise UserError(f"inputs: pixel_values is {list(inputs['pixel_values'].shape)}, which is too small for a patch")
    if mask is None:
        return pixels, None
    patches = np.asarray(mask)[:, : rows * side, : columns * side].reshape(-1, rows, side, columns, side)
    shown = patches != 0
    return pixels, shown.all((2, 4)) if isinstance(config.adapter, ResamplerConfig) else shown.any((2, 4))
