"""What the image slots of a packed row hold, in words and as pictures: which tile of which picture, who sees it."""

import base64
import dataclasses

import cv2
import numpy as np
from jaxtyping import UInt8

from data_pipelines.template import Processor
from vlm_jax.batch import Batch


@dataclasses.dataclass(frozen=True)
class ShownPicture:
    """A picture of a row as a page shows it, in data URIs."""

    number: int
    """In the row, from 1."""
    whole: str
    """Itself, or its thumbnail; '' where it has none."""
    tiles: tuple[str, ...] = ()
    """Row by row."""
    columns: int = 1
    about: str = ""
    """How it is cut."""


def shown_pictures(batch: Batch, row: int) -> list[ShownPicture]:
    """The pictures of a row; none where the batch holds features."""
    if batch.images is None or batch.image_ids is None or batch.tile_index is None:
        return []
    image_ids, tile_index = np.asarray(batch.image_ids[row]), np.asarray(batch.tile_index[row])
    shown = []
    for picture in np.unique(image_ids[image_ids > 0]).tolist():
        slots = np.flatnonzero(image_ids == picture)
        numbers, (rows, columns) = tile_index[slots, 0], tile_index[slots[0], 1:].tolist()
        uris = {
            int(number): data_uri(np.asarray(batch.images[row, slot]))
            for number, slot in zip(numbers, slots, strict=True)
            if number <= rows * columns
        }
        tiles = tuple(uris[number] for number in range(1, rows * columns + 1) if number in uris)
        black = int((numbers > rows * columns).sum())
        about = f"{rows} × {columns} tiles" if tiles else ""
        about += f", {black} black" if black else ""
        shown.append(ShownPicture(picture, uris.get(0, ""), tiles, columns, about.removeprefix(", ")))
    return shown


def visual_title(batch: Batch, row: int, visual: int, processor: Processor) -> str:
    """What a visual token of a row shows: 'picture 1' or, of one that is cut, its thumbnail or which of its tiles.

    Where tiles are joined into rows, they and the separators are 'picture 1 tiles'.
    """
    assert batch.image_ids is not None
    slot, place = divmod(visual, processor.prompt_tokens)
    title = f"picture {int(batch.image_ids[row, slot])}"
    tiling = processor.pictures.tiling
    if tiling is None or batch.tile_index is None:
        return title
    number, rows, columns = np.asarray(batch.tile_index[row, slot]).tolist()
    whole = rows * columns == 1 and not tiling.has_thumbnail((rows, columns))
    if whole:
        return title
    if tiling.separator and (number or place == processor.prompt_tokens - 1):
        return f"{title} tiles"
    return f"{title} tile {number}/{rows * columns}" if number else f"{title} thumbnail"


def seen_pictures(batch: Batch, row: int, position: int) -> str:
    """Which pictures a position sees through cross-attention, as '2' or '1–3'; '' = none."""
    if batch.visible_images is None or batch.image_ids is None:
        return ""
    first, end = np.asarray(batch.visible_images[row, position]).tolist()
    if first >= end:
        return ""
    low, high = int(batch.image_ids[row, first]), int(batch.image_ids[row, end - 1])
    return str(low) if low == high else f"{low}–{high}"


def data_uri(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """Pixels as a PNG within a page."""
    encoded = cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()
    return "data:image/png;base64," + base64.b64encode(encoded).decode()
