"""A picture in its image slots, and its place in the sequence: which visual tokens stand there, between which marks.

A picture of 2 x 2 tiles, 2 x 2 visual tokens each, thumbnail first: its slots, and which visual tokens stand there:

    slots       tile by tile, with marks: N = 4 a slot      joined into rows that end with a separator: N = 5 a slot
    0 1 2       0 1 2 3  <tile_1> 4 5 6 7                   0 1 2 3  5 6 10 11 4
      3 4       <tile_2> 8 9 10 11 …                                 7 8 12 13 4 …

With separators a slot has one visual token more, its last, which is a separator; all slots' are the same, and the
thumbnail's stands for them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from data_pipelines import images as image_functions
from data_pipelines.examples import Image
from data_pipelines.grids import Box, Size, canvas_size, choose_grid, fitted_size, shown_tokens
from data_pipelines.image_files import BadImage
from data_pipelines.images import ImagePreprocessing, Pixels
from vlm_jax.pictures import Grid, Pictures, Tiling


@dataclasses.dataclass(frozen=True)
class Cut:
    """How a picture fills its image slots: [thumbnail] tiles row by row [thumbnail] [black slots]."""

    size: Size = (0, 0)
    """(height, width) of the picture in pixels; (0, 0) where pictures are not cut, and nobody asked."""
    grid: Grid = (1, 1)
    """(rows, columns) of tiles."""
    slots: int = 1
    """T, image slots in all."""
    thumbnail: Literal["first", "last", "none"] = "none"
    shown: Box | None = None
    """With separators: which of the visual tokens of the whole grid show the picture and not the black around it."""

    @property
    def whole(self) -> bool:
        """Whether it is one slot with the whole picture in it (and black slots, if any)."""
        return self.grid == (1, 1) and self.thumbnail == "none"

    @property
    def thumbnail_slot(self) -> int | None:
        """Which of its slots holds the thumbnail, or the whole picture; None if none does."""
        if self.whole or self.thumbnail == "first":
            return 0
        return self.grid[0] * self.grid[1] if self.thumbnail == "last" else None

    @property
    def first_tile(self) -> int:
        """The slot of the first tile."""
        return int(self.thumbnail == "first")

    @property
    def tile_index(self) -> Int32[np.ndarray, "T 3"]:
        """(number, rows, columns) of every slot: 0 = thumbnail or whole picture, 1.. = tile, row by row; black slots
        are numbered on.
        """
        return _tile_index(self.grid, self.slots, self.thumbnail_slot, self.whole)


@functools.lru_cache(maxsize=1024)
def _tile_index(grid: Grid, slots: int, thumbnail: int | None, whole: bool) -> Int32[np.ndarray, "T 3"]:
    index = np.array([[number, *grid] for number in range(1, slots + 1)], np.int32)
    if thumbnail is not None:
        index[thumbnail, 0] = 0
        index[thumbnail + 1 :, 0] -= not whole
    index.flags.writeable = False
    return index


class Run(NamedTuple):
    """Visual tokens that stand together, behind a mark."""

    mark: str
    """Text before them."""
    visual: Int32[np.ndarray, " n"]
    """Which of the picture's T*N visual tokens fill the positions; -1 = the image token's own embedding stays."""


class Place(NamedTuple):
    """What stands in the sequence for a picture."""

    cut: Cut
    runs: tuple[Run, ...]
    after: str
    """Text that still belongs to it, behind the last run."""
    visual_tokens: int
    """T*N, those that its slots become, in the sequence or not."""

    @property
    def visual(self) -> Int32[np.ndarray, " n"]:
        """The indices of all runs, in order."""
        return self.runs[0].visual if len(self.runs) == 1 else np.concatenate([run.visual for run in self.runs])


@functools.lru_cache(maxsize=64)
def uncut(prompt_tokens: int) -> Place:
    """The place of a picture that is one slot: its N visual tokens or, where N = 0, the image token alone."""
    return _whole(Cut(), prompt_tokens, "")


def place_of(cut: Cut, prompt_tokens: int, pictures: Pictures) -> Place:
    """What stands in the sequence for a picture that is cut like this.

    Args:
        cut: of the picture.
        prompt_tokens: N, visual tokens a slot.
        pictures: what the model wants.

    Raises:
        BadImage: if the picture is so narrow that no visual token is left to show it.
    """
    if pictures.tiling is None:
        return uncut(prompt_tokens)
    if cut.thumbnail_slot is None and cut.shown is not None and 0 in (cut.shown.rows, cut.shown.columns):
        raise BadImage(
            f"{cut.size[0]} x {cut.size[1]} pixels (height x width) are so narrow that no visual token would show "
            "them: cut the picture, or give the model's tiling a thumbnail"
        )
    return _place(dataclasses.replace(cut, size=(0, 0)), prompt_tokens, pictures)._replace(cut=cut)


@functools.lru_cache(maxsize=4096)
def _place(cut: Cut, prompt_tokens: int, pictures: Pictures) -> Place:
    tiling = pictures.tiling
    assert tiling is not None
    if cut.whole:
        return _whole(cut, prompt_tokens, tiling.whole_mark)
    parts = [] if prompt_tokens else [Run("", np.full(1, -1, np.int32))]
    of_tiles = list(_tiles(cut, prompt_tokens, pictures, tiling))
    if cut.thumbnail_slot is None:
        parts += of_tiles
    else:
        first = cut.thumbnail_slot * prompt_tokens
        own = np.arange(first, first + max(0, prompt_tokens - tiling.separator), dtype=np.int32)
        thumbnail = Run(tiling.thumbnail_mark, own)
        parts += [thumbnail, *of_tiles] if cut.thumbnail == "first" else [*of_tiles, thumbnail]
    return _joined(cut, parts, prompt_tokens)


def _whole(cut: Cut, prompt_tokens: int, mark: str) -> Place:
    visual = np.arange(prompt_tokens, dtype=np.int32) if prompt_tokens else np.full(1, -1, np.int32)
    visual.flags.writeable = False
    return Place(cut, (Run(mark, visual),), "", cut.slots * prompt_tokens)


def _tiles(cut: Cut, prompt_tokens: int, pictures: Pictures, tiling: Tiling) -> list[Run]:
    """The runs of the tiles, the last one without visual tokens if there is a mark behind it."""
    shown = prompt_tokens if pictures.prompt_slots == "all" else 0
    if tiling.separator and shown:
        return [Run("", _rows_of_tokens(cut, prompt_tokens, pictures.token_grid))]
    rows, columns = cut.grid
    parts, before = [], ""
    for tile in range(rows * columns):
        row, column = divmod(tile, columns)
        first = (cut.first_tile + tile) * prompt_tokens
        mark = _numbered(tiling.tile_mark, tile + 1, row + 1, column + 1)
        parts.append(Run(before + mark, np.arange(first, first + shown, dtype=np.int32)))
        before = tiling.row_mark if column == columns - 1 else ""
    return [*parts, Run(before, np.zeros(0, np.int32))]


def _rows_of_tokens(cut: Cut, prompt_tokens: int, token_grid: Grid) -> Int32[np.ndarray, " n"]:
    """The visual tokens of all tiles as one picture, without those of the black around it, a separator a row.

    Of a very narrow picture no column may be left, and the separators stand alone, as in LLaVA-NeXT.
    """
    (rows, columns), (down, across) = cut.grid, token_grid
    box = cut.shown or Box(0, 0, rows * down, columns * across)
    y = np.arange(box.top, box.top + box.rows, dtype=np.int32)[:, None]
    x = np.arange(box.left, box.left + box.columns, dtype=np.int32)[None, :]
    slot = cut.first_tile + y // down * columns + x // across
    tokens = slot * prompt_tokens + y % down * across + x % across
    separator = (cut.thumbnail_slot or 0) * prompt_tokens + prompt_tokens - 1
    return np.concatenate([tokens, np.full((box.rows, 1), separator, np.int32)], 1).reshape(-1)


def _numbered(mark: str, tile: int, row: int, column: int) -> str:
    return mark.replace("{tile}", str(tile)).replace("{row}", str(row)).replace("{column}", str(column))


def _joined(cut: Cut, parts: list[Run], prompt_tokens: int) -> Place:
    """Marks of runs without visual tokens go to the next run, those behind the last to the end."""
    runs, waiting = [], ""
    for mark, visual in parts:
        waiting += mark
        if len(visual):
            visual.flags.writeable = False
            runs.append(Run(waiting, visual))
            waiting = ""
    return Place(cut, tuple(runs), waiting, cut.slots * prompt_tokens)


def cut_of(size: Size, tile: Size, pictures: Pictures, preprocessing: ImagePreprocessing) -> Cut:
    """How a picture of this size is cut.

    Args:
        size: (height, width) in pixels.
        tile: the encoder's.
        pictures: with a tiling.
        preprocessing: how pictures are resized.

    Raises:
        BadImage: if none of the grids suits the picture.
    """
    tiling = pictures.tiling
    assert tiling is not None
    grid = choose_grid(tiling, *size, tile, preprocessing.longest_edge)
    shown = None
    if tiling.separator:
        shown = shown_tokens(tiling, *size, grid, pictures.token_grid, tile)
    thumbnail = tiling.thumbnail if tiling.has_thumbnail(grid) else "none"
    return Cut(size, grid, tiling.slots_of(grid), thumbnail, shown)


def pixels_of(
    image: Image,
    cut: Cut,
    tile: Size,
    tiling: Tiling,
    preprocessing: ImagePreprocessing,
    change: Callable[[Pixels], Pixels] | None = None,
) -> UInt8[np.ndarray, "T H W 3"]:
    """Decodes a picture and fills its slots with its tiles and its thumbnail; what is left over stays black.

    The thumbnail is the whole picture, resized as `preprocessing` says (with 'cover', of the canvas, as Idefics 3
    makes it); on the canvas the picture lies as the tiling's `fit` says.

    Args:
        image: the picture.
        cut: as found from its size.
        tile: the encoder's size.
        tiling: of the model.
        preprocessing: how pictures are resized.
        change: what is done to the whole picture before it is cut.

    Raises:
        BadImage: if it cannot be decoded, or is of another size than when its grid was chosen.
    """
    canvas = canvas_size(cut.grid, tile)
    reduced = (2 * max(canvas[0], tile[0]), 2 * max(canvas[1], tile[1])) if preprocessing.reduce_jpeg else None
    pixels = image_functions.decode(image, reduced)
    if pixels.shape[:2] != cut.size and not preprocessing.reduce_jpeg:
        was, now = (f"{height} x {width}" for height, width in (cut.size, pixels.shape[:2]))
        raise BadImage(f"the picture is {now} pixels (height x width), but was {was} when its tiles were counted")
    pixels = pixels if change is None else change(pixels)
    squash = dataclasses.replace(preprocessing, resize="squash", shortest_edge=0)
    lies = fitted_size(tiling, *cut.size, cut.grid, tile)
    laid = image_functions.resize(pixels, (lies.rows, lies.columns), squash)
    if laid.shape[:2] != canvas:
        black = np.zeros((*canvas, 3), np.uint8)
        black[lies.top : lies.top + lies.rows, lies.left : lies.left + lies.columns] = laid
        laid = black
    slots = np.zeros((cut.slots, *tile, 3), np.uint8)
    (rows, columns), (height, width) = cut.grid, tile
    tiles = slots[cut.first_tile : cut.first_tile + rows * columns].reshape(rows, columns, height, width, 3)
    tiles[:] = laid.reshape(rows, height, columns, width, 3).swapaxes(1, 2)
    if cut.thumbnail_slot is not None and not cut.whole:
        of, how = (laid, squash) if tiling.choose == "cover" else (pixels, preprocessing)
        slots[cut.thumbnail_slot] = image_functions.resize(of, tile, how)
    return slots
