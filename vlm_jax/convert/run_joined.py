"""Pictures cut into tiles as LLaVA-NeXT takes them: which slots are real, and which visual tokens fill the sequence."""

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.images import BadImage, ImagePreprocessing
from data_pipelines.tiles import Cut, cut_of, place_of
from vlm_jax.convert.run_images import channels_last
from vlm_jax.errors import UserError
from vlm_jax.models.vlm import VLMConfig


def cut_pictures(
    config: VLMConfig, pixels: np.ndarray, sizes: np.ndarray | None
) -> tuple[int, Float[np.ndarray, "M H W 3"], Int[np.ndarray, " V"]]:
    """Tiles of pictures, without what pads pictures of fewer tiles, and the order of their visual tokens.

    A picture's are those of its thumbnail, then the rows of its tiles joined, each with the separator behind it.

    Args:
        config: with a tiling that has a separator and the thumbnail first.
        pixels: [N, T, 3, H, W], or [M, 3, H, W] without padding.
        sizes: [N, 2], each picture's own (height, width) before it was brought to the size of its grid.

    Returns:
        (N, M tiles, indices into their visual tokens, tile by tile).

    Raises:
        UserError: if tiles and sizes do not agree.
    """
    cuts = _cuts(config, sizes)
    tiles = _tiles(np.asarray(pixels, np.float32), cuts)
    index, first = [], 0
    for cut in cuts:
        index.append(first * config.prompt_tokens + place_of(cut, config.prompt_tokens, config.pictures).visual)
        first += cut.slots
    return len(cuts), channels_last(tiles), np.concatenate(index)


def _cuts(config: VLMConfig, sizes: np.ndarray | None) -> list[Cut]:
    if sizes is None:
        raise UserError("inputs: image_sizes is missing; give each picture's own (height, width) beside pixel_values")
    sizes = np.asarray(sizes)
    if sizes.ndim != 2 or sizes.shape[1] != 2 or not len(sizes) or sizes.min() < 1:
        raise UserError(f"inputs: image_sizes is {sizes.tolist()}; give a (height, width) in pixels for each picture")
    found = []
    for number, (height, width) in enumerate(sizes.tolist()):
        try:
            size = (int(height), int(width))
            found.append(cut_of(size, config.image_size, config.pictures, ImagePreprocessing()))
        except BadImage as error:
            raise UserError(f"inputs: image_sizes[{number}]: {error}") from None
    return found


def _tiles(pixels: np.ndarray, cuts: list[Cut]) -> Float[np.ndarray, "M 3 H W"]:
    """Real tiles, as the grids of the pictures want them."""
    wanted = sum(cut.slots for cut in cuts)
    if pixels.ndim == 4:
        if len(pixels) != wanted:
            raise UserError(
                f"inputs: pixel_values holds {len(pixels)} tiles, but image_sizes makes {len(cuts)} pictures of "
                f"{wanted} with their thumbnails"
            )
        return pixels
    if pixels.ndim != 5 or len(pixels) != len(cuts):
        raise UserError(
            f"inputs: pixel_values is {list(pixels.shape)}, but image_sizes tells of {len(cuts)} pictures; give "
            "[pictures, tiles, 3, height, width]"
        )
    for number, cut in enumerate(cuts):
        if cut.slots > pixels.shape[1]:
            (height, width), (rows, columns) = cut.size, cut.grid
            raise UserError(
                f"inputs: image_sizes[{number}] is {height} x {width}, which is cut into {rows} x {columns} tiles "
                f"and a thumbnail, but pixel_values holds {pixels.shape[1]} a picture; give the pictures' own sizes"
            )
    return np.concatenate([tiles[: cut.slots] for tiles, cut in zip(pixels, cuts, strict=True)])
