"""LLaVA-NeXT (LLaVA-1.6, Liu et al. 2024): LLaVA over tiles of any resolution, whose rows end with a learned token.

A picture is the whole of it at the encoder's size and then its tiles; the visual tokens of the tiles are joined into
one grid, those of the padding around the picture are left out, and `image_newline` ends each row of the rest.
"""

from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.families import llava, parts
from vlm_jax.convert.families.common import refuse
from vlm_jax.convert.names import Row
from vlm_jax.errors import UserError
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.pictures import Grid, Tiling

MODEL_TYPES = ("llava_next",)
RENAMED = ((r"^model\.image_newline$", "image_newline"), *llava.RENAMED)
DROPPED = llava.DROPPED

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""The sizes (height, width) that pictures are brought to where config.json says nothing of them."""

_TILING = {"choose": "area", "fit": "centre", "thumbnail": "first", "thumbnail_of_one": True, "separator": True}

constants = llava.constants


def read_config(hf: Mapping[str, Any]) -> VLMConfig:
    """config.json of a LlavaNextForConditionalGeneration.

    Raises:
        UserError: if it asks for what our models cannot do.
    """
    config = llava.read_config(hf)
    encoder = config.encoder
    assert encoder is not None
    if encoder.features.ahead:
        raise UserError(
            "config.json: vision_feature_select_strategy is 'full' and the encoder has a class token, which has no "
            "place in LLaVA-NeXT's rows of visual tokens; choose 'default'"
        )
    tiling = read_tiling(hf.get("image_grid_pinpoints"), encoder.image_size, "config.json")
    return VLMConfig(config.decoder, encoder, config.adapter, tiling, config.precision, config.layout)


def read_tiling(pinpoints: Any, tile: tuple[int, int], where: str) -> Tiling:
    """How pictures are cut by `image_grid_pinpoints`.

    Args:
        pinpoints: [[height, width], …] in pixels; None = the usual ones.
        tile: (height, width) of a tile.
        where: the file, for messages.

    Raises:
        UserError: if a size is no multiple of a tile's.
    """
    pinpoints = PINPOINTS if pinpoints is None else pinpoints
    if not isinstance(pinpoints, list) or not pinpoints:
        raise UserError(f"{where}: image_grid_pinpoints is {pinpoints!r}; it must list sizes in pixels")
    return Tiling(tuple(_grid(size, tile, where) for size in pinpoints), **_TILING)  # type: ignore[arg-type]


def _grid(size: Any, tile: tuple[int, int], where: str) -> Grid:
    sides = list(size) if isinstance(size, (list, tuple)) else []
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise UserError(f"{where}: image_grid_pinpoints holds {size!r}; each must be a height and a width in pixels")
    if sides[0] % tile[0] or sides[1] % tile[1]:
        raise UserError(
            f"{where}: image_grid_pinpoints holds {sides[0]} x {sides[1]}, which is no number of the encoder's tiles "
            f"of {tile[0]} x {tile[1]} pixels"
        )
    return sides[0] // tile[0], sides[1] // tile[1]


def write_pinpoints(tiling: Tiling, tile: tuple[int, int]) -> list[list[int]]:
    """`image_grid_pinpoints` of a tiling.

    Raises:
        UserError: if it is not LLaVA-NeXT's but for the grids.
    """
    if tiling != Tiling(tiling.grids, **_TILING):  # type: ignore[arg-type]
        wanted = ", ".join(f"{name} {value!r}" for name, value in _TILING.items())
        raise UserError(f"LLaVA-NeXT cuts pictures by a Tiling with {wanted}, no slots and no marks, not by this one")
    return [[rows * tile[0], columns * tile[1]] for rows, columns in tiling.grids]


def rows(config: VLMConfig) -> list[Row]:
    """The name table, in the layout of the published checkpoints."""
    return [*llava.rows(config), Row("image_newline", "adapter/separator")]


def write_config(config: Any) -> dict[str, Any] | None:
    """config.json of a LlavaNextForConditionalGeneration; None if this is no VLM with an MLP adapter and tiles.

    Raises:
        UserError: if it is one but for something that LLaVA-NeXT does not have.
    """
    found = parts.encoder_and_adapter(config, tiled=True)
    if found is None or not config.separator:
        return None
    encoder, adapter = found
    refuse("LLaVA-NeXT", {"tiles that are not square": len({*encoder.image_size}) > 1})
    fields = llava.write_fields(config, encoder, adapter, "LLaVA-NeXT")
    sizes = write_pinpoints(config.tiling, encoder.image_size)
    return {
        **fields,
        "architectures": ["LlavaNextForConditionalGeneration"],
        "model_type": "llava_next",
        "image_grid_pinpoints": sizes,
    }
