"""How image processors of transformers cut pictures into tiles, by the fields of preprocessor_config.json."""

from collections.abc import Mapping
from typing import Any

from vlm_jax.errors import UserError
from vlm_jax.pictures import Grid, Tiling

Size = tuple[int, int]
"""(height, width) in pixels."""

AROUND_IMAGE = "<fake_token_around_image>"
"""Idefics 3's processor puts it before each tile, and once behind a picture."""

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""LLaVA-NeXT: the sizes (height, width) that pictures are brought to where no file says anything of them."""

_ANY_RESOLUTION: Any = {
    "choose": "area",
    "fit": "centre",
    "thumbnail": "first",
    "thumbnail_of_one": True,
    "separator": True,
}
_MOST_ACROSS = 16
_SQUARE_TILES = "Llama 3.2's processor makes square tiles and pads pictures"


def read_tiling(plain: Mapping[str, Any], kind: str, tile: Size, where: str) -> Tiling | None:
    """How pictures are cut; None if they are not.

    Args:
        plain: the image processor's fields.
        kind: its class.
        tile: (height, width) of a tile in pixels.
        where: the file, for messages.

    Raises:
        UserError: if they are cut as they cannot be here.
    """
    if kind.startswith("Mllama"):
        most = _count(plain, "max_image_tiles", 4, where)
        if tile[0] != tile[1] or not plain.get("do_pad", True):
            padded = plain.get("do_pad", True)
            raise UserError(f"{where}: size is {tile[0]} x {tile[1]}, do_pad {padded}; {_SQUARE_TILES}")
        return canvas_tiling(most)
    if kind.startswith("LlavaNext"):
        return any_resolution(plain.get("image_grid_pinpoints"), tile, where)
    if kind.startswith("GotOcr2"):
        least, most = (_count(plain, name, usual, where) for name, usual in (("min_patches", 1), ("max_patches", 12)))
        return aspect_tiling(least, most) if plain.get("crop_to_patches") and most > 1 else None
    if kind.startswith("Idefics2"):
        return quarters_tiling() if plain.get("do_image_splitting", False) else None
    if "max_image_size" in plain and plain.get("do_image_splitting", True):
        return cover_tiling(tile, plain["size"]["longest_edge"], where)
    return None


def write_tiling(tiling: Tiling, tile: Size, longest_edge: int = 0) -> dict[str, Any]:
    """The fields of an image processor that cuts pictures like this, its class and size among them.

    Args:
        tiling: how pictures are cut.
        tile: (height, width) of a tile in pixels.
        longest_edge: that pictures are brought to first, as Idefics 3 does; 0 = they are not.

    Raises:
        UserError: if there is none.
    """
    size = {"height": tile[0], "width": tile[1]}
    if tile[0] == tile[1]:
        if tiling == quarters_tiling():
            return idefics2_fields(tile, splits=True)
        if tiling.choose == "canvas" and tiling == canvas_tiling(tiling.slots):
            fields = {"do_pad": True, "max_image_tiles": tiling.slots}
            return {"image_processor_type": "MllamaImageProcessor", "size": size, **fields}
        if tiling.separator:
            crop = {"do_center_crop": True, "crop_size": size, "do_pad": True}
            pinpoints = write_pinpoints(tiling, tile)
            kind = {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": pinpoints}
            return {**kind, "size": {"shortest_edge": tile[0]}, **crop}
        if longest_edge and tiling == cover_tiling(tile, longest_edge, "the image processor"):
            splits = {"do_image_splitting": True, "do_pad": True, "max_image_size": {"longest_edge": tile[0]}}
            return {"image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": longest_edge}, **splits}
    counts = [rows * columns for rows, columns in tiling.grids]
    if tiling == aspect_tiling(min(counts), max(counts)):
        limits = {"crop_to_patches": True, "min_patches": min(counts), "max_patches": max(counts)}
        return {"image_processor_type": "GotOcr2ImageProcessor", "size": size, **limits}
    raise UserError(
        "no image processor of transformers cuts pictures into tiles by this Tiling; there are those of LLaVA-NeXT "
        "(any_resolution), InternVL (aspect_tiling), Idefics 3 (cover_tiling) and Llama 3.2 (canvas_tiling)"
    )


def canvas_tiling(tiles: int) -> Tiling:
    """How Llama 3.2 Vision's image processor cuts pictures into at most so many tiles."""
    each = range(1, tiles + 1)
    grids = tuple((rows, columns) for rows in each for columns in each if rows * columns <= tiles)
    return Tiling(grids, choose="canvas", fit="pad", thumbnail="none", slots=tiles)


def quarters_tiling() -> Tiling:
    """How Idefics 2's image processor cuts pictures, if it does: four quarters, then the whole.

    Its quarters are cut before they are brought to their size, and ours after; pixels at their edges differ a little.
    """
    mark = AROUND_IMAGE
    return Tiling(((2, 2),), choose="aspect", fit="squash", thumbnail="last", tile_mark=mark, thumbnail_mark=mark)


def idefics2_fields(size: Size, splits: bool) -> dict[str, Any]:
    """The fields of Idefics 2's image processor that brings every picture to one square, as ours does."""
    if size[0] != size[1]:
        raise UserError(f"Idefics 2's processor makes pictures of one size square, not {size[0]} x {size[1]}")
    edges = {"shortest_edge": size[0], "longest_edge": size[0]}
    return {
        "image_processor_type": "Idefics2ImageProcessor",
        "size": edges,
        "do_pad": True,
        "do_image_splitting": splits,
    }


def aspect_tiling(least: int, most: int) -> Tiling:
    """How InternVL's image processor cuts pictures into `least` to `most` tiles."""
    each = range(1, most + 1)
    grids = [(rows, columns) for columns in each for rows in each if least <= rows * columns <= most]
    grids.sort(key=lambda grid: grid[0] * grid[1])
    return Tiling(tuple(grids), choose="aspect", fit="squash", thumbnail="last")


def cover_tiling(tile: Size, longest_edge: int, where: str) -> Tiling | None:
    """How Idefics 3's image processor cuts pictures, with the tokens that its processor puts between tiles.

    Args:
        tile: (height, width) of a tile, a square.
        longest_edge: that the longer side of a picture is brought to first.
        where: the file, for messages.

    Returns:
        None if every picture is one tile.

    Raises:
        UserError: if there would be very many.
    """
    most = -(-longest_edge // tile[0])
    if most == 1:
        return None
    if most > _MOST_ACROSS:
        raise UserError(
            f"{where}: size {longest_edge} is {most} tiles of max_image_size {tile[0]}; at most {_MOST_ACROSS} are cut"
        )
    # The shorter side is made even, so that of an odd longer side it may come out longer than that.
    each = range(1, most + 1 + longest_edge % 2)
    grids = tuple((rows, columns) for rows in each for columns in each if max(rows, columns) >= most)
    return Tiling(
        grids,
        choose="cover",
        fit="squash",
        thumbnail="last",
        tile_mark=AROUND_IMAGE + "<row_{row}_col_{column}>",
        row_mark="\n",
        thumbnail_mark=f"\n{AROUND_IMAGE}<global-img>",
        whole_mark=f"{AROUND_IMAGE}<global-img>",
    )


def any_resolution(pinpoints: Any, tile: Size, where: str) -> Tiling:
    """How LLaVA-NeXT's image processor cuts pictures.

    Args:
        pinpoints: `image_grid_pinpoints`: [[height, width], …] in pixels; None = the usual ones.
        tile: (height, width) of a tile.
        where: the file, for messages.

    Raises:
        UserError: if a size is no multiple of a tile's.
    """
    pinpoints = PINPOINTS if pinpoints is None else pinpoints
    if not isinstance(pinpoints, list) or not pinpoints:
        raise UserError(f"{where}: image_grid_pinpoints is {pinpoints!r}; it must list sizes in pixels")
    return Tiling(tuple(_grid(size, tile, where) for size in pinpoints), **_ANY_RESOLUTION)


def write_pinpoints(tiling: Tiling, tile: Size) -> list[list[int]]:
    """`image_grid_pinpoints` of a tiling.

    Raises:
        UserError: if it is not LLaVA-NeXT's but for the grids.
    """
    if tiling != Tiling(tiling.grids, **_ANY_RESOLUTION):
        wanted = ", ".join(f"{name} {value!r}" for name, value in _ANY_RESOLUTION.items())
        raise UserError(f"LLaVA-NeXT cuts pictures by a Tiling with {wanted}, no slots and no marks, not by this one")
    return [[rows * tile[0], columns * tile[1]] for rows, columns in tiling.grids]


def _grid(size: Any, tile: Size, where: str) -> Grid:
    sides = list(size) if isinstance(size, (list, tuple)) else []
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise UserError(f"{where}: image_grid_pinpoints holds {size!r}; each must be a height and a width in pixels")
    if sides[0] % tile[0] or sides[1] % tile[1]:
        raise UserError(
            f"{where}: image_grid_pinpoints holds {sides[0]} x {sides[1]}, which is no number of the encoder's tiles "
            f"of {tile[0]} x {tile[1]} pixels"
        )
    return sides[0] // tile[0], sides[1] // tile[1]


def _count(plain: Mapping[str, Any], name: str, usual: int, where: str) -> int:
    value = plain.get(name, usual)
    if type(value) is not int or value < 1:
        raise UserError(f"{where}: {name} is {value!r}; it must be a positive whole number")
    return value
