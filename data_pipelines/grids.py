"""Which grid of tiles a picture is cut into, how it lies on the grid's canvas, and which visual tokens show it.

A picture of 300 x 200 pixels (height x width) on a grid of 2 rows and 2 columns of tiles of 100 x 100:

    squash          pad             centre
    +-------+       +----+..+       .+----+.
    |       |       |    |  .       .|    |.        the canvas is 200 x 200; with its own aspect ratio the picture is
    |       |       |    |  .       .|    |.        200 x 133, and the rest is black
    +-------+       +----+..+       .+----+.

All numbers are those of the models' own image processors, rounding included; sizes are (height, width) in pixels.
"""

import dataclasses
import math

from data_pipelines.image_files import BadImage
from vlm_jax.pictures import Grid, Tiling

Size = tuple[int, int]
"""(height, width) in pixels."""

_COVER_MOST = 4096
"""Pixels: Idefics 3's processor scales no side beyond this."""


@dataclasses.dataclass(frozen=True)
class Box:
    """A part of a canvas, in pixels, or of a grid of visual tokens, in tokens."""

    top: int
    left: int
    rows: int
    columns: int


def choose_grid(tiling: Tiling, height: int, width: int, tile: Size, longest_edge: int = 0) -> Grid:
    """The grid that a picture is cut into.

    Args:
        tiling: its `grids` and `choose`. Where two grids are equally good, the one that stands first is chosen.
        height: of the picture.
        width: of the picture.
        tile: size of a tile: the encoder's.
        longest_edge: 'cover' brings the longer side to this first; 0 = to the longest of the grids.

    Raises:
        BadImage: if none of the grids suits the picture.
    """
    if min(height, width) < 1:
        raise BadImage(f"{height} x {width} pixels: the picture is empty")
    if tiling.choose != "cover":
        return {"area": _by_area, "aspect": _by_aspect, "canvas": _by_canvas}[tiling.choose](
            tiling, height, width, tile
        )
    rows, columns = cover_grid(tiling, height, width, tile, longest_edge)
    if (rows, columns) not in tiling.grids:
        raise BadImage(
            f"{height} x {width} pixels (height x width) take a grid of {rows} x {columns} tiles, which is not among "
            f"the {len(tiling.grids)} grids of the model's Tiling: cut the picture, or give it that grid"
        )
    return rows, columns


def _by_area(tiling: Tiling, height: int, width: int, tile: Size) -> Grid:
    """Most of the picture's pixels, then the least canvas around them (LLaVA-NeXT).

    A picture that is scaled up has no more pixels than it had.
    """

    def score(grid: Grid) -> tuple[int, int]:
        down, across = canvas_size(grid, tile)
        scale = min(across / width, down / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - down * across

    return max(tiling.grids, key=score)


def _by_aspect(tiling: Tiling, height: int, width: int, tile: Size) -> Grid:
    """Nearest in width / height (InternVL 1.5, section 3.2).

    Of several, a later one that is no more than twice as large as the picture, so that small pictures stay small.
    """
    aspect = width / height
    found = tiling.grids[0]
    nearest = math.inf
    for rows, columns in tiling.grids:
        down, across = canvas_size((rows, columns), tile)
        away = abs(aspect - across / down)
        fills = height * width > 0.5 * down * across
        if away < nearest or (away == nearest and fills):
            nearest, found = away, (rows, columns)
    return found


def _by_canvas(tiling: Tiling, height: int, width: int, tile: Size) -> Grid:
    """The least enlargement of those that take the picture whole, else the least reduction; then the fewest tiles."""

    def scale(grid: Grid) -> float:
        return min(grid[0] * tile[0] / height, grid[1] * tile[1] / width)

    scales = [scale(grid) for grid in tiling.grids]
    wanted = min((s for s in scales if s >= 1), default=max(scales))
    best = [grid for grid, s in zip(tiling.grids, scales, strict=True) if s == wanted]
    return min(best, key=lambda grid: grid[0] * grid[1])


def cover_grid(tiling: Tiling, height: int, width: int, tile: Size, longest_edge: int = 0) -> Grid:
    """Idefics 3: as many tiles each way as the picture begins once its longer side has been brought to one length."""
    longest = longest_edge or max(max(rows * tile[0], columns * tile[1]) for rows, columns in tiling.grids)
    height, width = longest_size(height, width, longest)
    aspect = width / height
    if width >= height:
        columns = math.ceil(width / tile[1])
        return math.ceil(int(columns * tile[1] / aspect) / tile[0]), columns
    rows = math.ceil(height / tile[0])
    return rows, math.ceil(int(rows * tile[0] * aspect) / tile[1])


def longest_size(height: int, width: int, longest: int) -> Size:
    """Idefics 3: the longer side becomes `longest`, the other is rounded down and then up to an even number.

    (300, 200), 100 -> (100, 66)
    """
    aspect = width / height
    if width >= height:
        shorter = int(longest / aspect)
        height, width = max(shorter + shorter % 2, 1), longest
    else:
        shorter = int(longest * aspect)
        height, width = longest, max(shorter + shorter % 2, 1)
    if max(height, width) <= _COVER_MOST:
        return height, width
    aspect = width / height
    if width >= height:
        return max(int(_COVER_MOST / aspect), 1), _COVER_MOST
    return _COVER_MOST, max(int(_COVER_MOST * aspect), 1)


def canvas_size(grid: Grid, tile: Size) -> Size:
    """(height, width) of all tiles together."""
    return grid[0] * tile[0], grid[1] * tile[1]


def fitted_size(tiling: Tiling, height: int, width: int, grid: Grid, tile: Size) -> Box:
    """Where on the canvas the picture lies, and its size there; the rest is black.

    squash: the whole canvas. centre: in the middle, as large as fits, its shorter side rounded up (LLaVA-NeXT). pad:
    in the corner, as large as fits, but enlarged no further than to the size of a tile, its shorter side rounded down
    (Llama 3.2).

    Args:
        tiling: its `fit`.
        height: of the picture.
        width: of the picture.
        grid: that the picture is cut into.
        tile: size of a tile.
    """
    down, across = canvas_size(grid, tile)
    if tiling.fit == "squash":
        return Box(0, 0, down, across)
    if tiling.fit == "centre":
        by_width, by_height = across / width, down / height
        if by_width < by_height:
            rows, columns = min(math.ceil(height * by_width), down), across
        else:
            rows, columns = down, min(math.ceil(width * by_height), across)
        return Box((down - rows) // 2, (across - columns) // 2, rows, columns)
    most_down, most_across = min(max(height, tile[0]), down), min(max(width, tile[1]), across)
    by_height, by_width = most_down / height, most_across / width
    if by_width < by_height:
        return Box(0, 0, min(max(math.floor(height * by_width), 1), most_down), most_across)
    return Box(0, 0, most_down, min(max(math.floor(width * by_height), 1), most_across))


def shown_tokens(tiling: Tiling, height: int, width: int, grid: Grid, token_grid: Grid, tile: Size) -> Box:
    """Which part of the grid of visual tokens, joined over all tiles, shows the picture and not the black around it.

    For a picture in the middle as LLaVA-NeXT counts it, from the picture's size and not from that on the canvas: as
    much is cut off on either side, and nothing of the picture but what is less than a token. A picture so narrow that
    less than a token of it would be left may have none, or one row or column of tokens.

        . . . . .
        a b c d e      a grid of 1 x 1, 5 x 5 tokens, a picture three times as wide as high: rows 1 to 3 of 0 to 4
        f g h i j
        k l m n o
        . . . . .

    Args:
        tiling: its `fit`.
        height: of the picture.
        width: of the picture.
        grid: that the picture is cut into.
        token_grid: (rows, columns) of visual tokens of a tile.
        tile: size of a tile.

    Returns:
        In tokens; rows or columns may be 0.
    """
    rows, columns = grid[0] * token_grid[0], grid[1] * token_grid[1]
    if tiling.fit == "squash":
        return Box(0, 0, rows, columns)
    if tiling.fit == "pad":
        lies, (down, across) = fitted_size(tiling, height, width, grid, tile), canvas_size(grid, tile)
        return Box(0, 0, math.ceil(lies.rows * rows / down), math.ceil(lies.columns * columns / across))
    if width / height > columns / rows:
        cut = (rows - int(round(height * (columns / width), 7))) // 2
        return Box(cut, 0, rows - 2 * cut, columns)
    cut = (columns - int(round(width * (rows / height), 7))) // 2
    return Box(0, cut, rows, columns - 2 * cut)
