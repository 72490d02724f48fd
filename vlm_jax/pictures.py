"""What a picture is to a row: the image slots that it takes, and who may see them. Between the model and the packer.

A picture takes one image slot, or, where pictures are cut, one for each of its tiles and its thumbnail. The encoder
sees slots; an adapter turns each into N visual tokens of the sequence (prompt-based), or into keys and values for
gated blocks (cross-attention-based), or into both.
"""

import dataclasses
from typing import Literal

Grid = tuple[int, int]
"""(rows, columns) of tiles."""

Visible = Literal["last", "group", "all"]
"""Which pictures a position may see through cross-attention, of those that stand at it or before it in its example:

    text and pictures   a [1] b [2] [3] c
    last                -  1  1  2   3  3     the last one (Flamingo, section 2.4)
    group               -  1  1  2  23 23     those since the last text (Llama 3.2's processor)
    all                 -  1  1 12 123 123
"""


def grids_up_to(most: int, least: int = 1) -> tuple[Grid, ...]:
    """All grids of `least` to `most` tiles, by their number of tiles, then by rows."""
    found = [
        (rows, tiles // rows) for tiles in range(least, most + 1) for rows in range(1, tiles + 1) if tiles % rows == 0
    ]
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a picture is cut into tiles of the encoder's size.

    A grid is chosen by the picture's size, the picture is brought to the grid's canvas (rows x columns tiles), and the
    canvas is cut, row by row. The thumbnail is the whole picture at the size of one tile.
    """

    grids: tuple[Grid, ...] = grids_up_to(4)
    """The grids to choose from, (rows, columns)."""
    choose: Literal["area", "aspect", "canvas", "cover"] = "aspect"
    """area: the one that keeps most of the picture's pixels and wastes least (LLaVA-NeXT, any resolution); aspect: the
    one of the nearest aspect ratio (InternVL 1.5, section 3.2); canvas: the smallest that the picture fits in, else the
    one that shrinks it least (Llama 3.2); cover: as many tiles each way as the picture, scaled to the largest grid's
    longer side, begins (Idefics 3).
    """
    fit: Literal["pad", "centre", "squash"] = "squash"
    """How the picture fills the canvas: with its own aspect ratio in the corner or in the middle, black around it; or
    stretched over it.
    """
    thumbnail: Literal["first", "last", "none"] = "first"
    thumbnail_of_one: bool = False
    """Whether a picture of one tile has a thumbnail too."""
    slots: int = 0
    """Image slots that every picture takes, those left over black, for encoders whose tiles attend to each other
    (Llama 3.2); 0 = as many as it has tiles.
    """
    separator: bool = False
    """Each row of visual tokens of the whole grid, joined over its tiles and without those of the padding, ends with a
    learned separator (LLaVA-NeXT); else visual tokens stand tile by tile.
    """
    tile_mark: str = ""
    """Text before each tile; {tile}, {row} and {column} are its numbers, from 1 (NVLM: "<tile_{tile}>")."""
    row_mark: str = ""
    """Text after each row of tiles."""
    thumbnail_mark: str = ""
    """Text before the thumbnail."""
    whole_mark: str = ""
    """Text before a picture that is one tile without a thumbnail, in place of the other marks. All marks stand within
    the text that a template puts around every picture.
    """

    def __post_init__(self) -> None:
        if not self.grids or any(rows < 1 or columns < 1 for rows, columns in self.grids):
            raise ValueError("Tiling: grids needs at least one (rows, columns), each at least 1")
        most = self.most_slots
        if self.slots and self.slots < most:
            raise ValueError(f"Tiling: slots is {self.slots}, but the largest of its grids takes {most}")
        if self.separator and (self.tile_mark or self.row_mark):
            raise ValueError(
                "Tiling: separator joins the rows of visual tokens of neighbouring tiles, so there is no place for "
                "tile_mark and row_mark; leave them empty, or separator off"
            )

    @property
    def most_slots(self) -> int:
        """The most image slots that a picture takes."""
        return max(self.slots, *(self.slots_of(grid) for grid in self.grids))

    def has_thumbnail(self, grid: Grid) -> bool:
        """Whether a picture cut like this has a thumbnail."""
        return self.thumbnail != "none" and (self.thumbnail_of_one or grid != (1, 1))

    def slots_of(self, grid: Grid) -> int:
        """Image slots of a picture that is cut like this."""
        return max(self.slots, grid[0] * grid[1] + self.has_thumbnail(grid))


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What the packer must know of a model beyond the N visual tokens that an image slot becomes."""

    tiling: Tiling | None = None
    """None = a picture is one slot."""
    token_grid: Grid = (0, 0)
    """(rows, columns) that a slot's visual tokens form, where they form one."""
    prompt_slots: Literal["all", "thumbnail"] = "all"
    """Which slots of a picture put visual tokens into the sequence (NVLM-H: the thumbnail only)."""
    visible: Visible | None = None
    """Set where image slots are seen through cross-attention too, in place of the sequence or beside it."""
    instruction: int = 0
    """Tokens of the instruction that the adapter reads with a picture (InstructBLIP); 0 = it reads none."""
    instruction_vocabulary: int = 0
    """How many ids of an instruction it embeds."""

    def __post_init__(self) -> None:
        if self.prompt_slots == "thumbnail" and self.tiling is not None and self.tiling.thumbnail == "none":
            raise ValueError(
                "Pictures: only thumbnails go into the sequence, but tiling.thumbnail is 'none'; choose 'first' or "
                "'last', or prompt_slots 'all'"
            )
