"""GCompris' puzzles: pictures that are cut into pieces, put together again from where each piece belongs."""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

import cv2
import numpy as np
from jaxtyping import UInt8

from data_pipelines.examples import Image
from data_pipelines.images import BadImage
from data_pipelines.prepare.corpora.pictures.files import ground_of, over_ground, png

_TITLE = re.compile(r'instruction:\s*qsTr\("((?:[^"\\]|\\.)*)"\)')
_PIECE = re.compile(r"\{([^{}]*)\}")
_VALUE = re.compile(r'"(\w+)"\s*:\s*"?([^",\n]+)"?')

Pixels = UInt8[np.ndarray, "h w 4"]


def assembled(files: Mapping[str, bytes]) -> Iterator[tuple[str, str, Image]]:
    """(name, title, picture) of each board of an activity whose pieces are all pictures; its title as it is written.

    A board lists pieces by file and by the place of their centre, as a share of the whole; the first may be the ground
    on which they lie, with its size in pixels.
    """
    for path in sorted(files):
        text = files[path].decode() if "/board/" in path and path.endswith(".qml") else ""
        title = _TITLE.search(text)
        if not title:
            continue
        pieces = [dict(_VALUE.findall(piece)) for piece in _PIECE.findall(text[title.end() :])]
        folder = PurePosixPath(path).parent.parent
        try:
            picture = _together(pieces, files, folder)
        except (BadImage, KeyError, ValueError):
            continue  # a board of another form: drawn ground without a size, or pieces that are not pictures
        words = re.sub(r"\\(.)", r"\1", title[1])
        yield re.sub(r"\W+", "-", words.lower()).strip("-"), words, picture


def _together(pieces: list[dict[str, str]], files: Mapping[str, bytes], folder: PurePosixPath) -> Image:
    ground, *rest = pieces
    if ground.get("type") != "SHAPE_BACKGROUND_IMAGE":
        raise ValueError("no ground")
    source = str(folder / ground["pixmapfile"])
    if source.endswith(".svg"):
        canvas = np.zeros((round(float(ground["height"])), round(float(ground["width"])), 4), np.uint8)
    else:
        canvas = _pixels(files[source])
    for piece in rest:
        _lay(canvas, _pixels(files[str(folder / piece["pixmapfile"])]), float(piece["x"]), float(piece["y"]))
    rows, columns = (np.flatnonzero(canvas[..., 3].any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        raise BadImage("no piece lies within the board")
    whole = canvas[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return png(over_ground(whole, ground_of(whole)))


def _pixels(data: bytes) -> Pixels:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3:
        raise BadImage("a piece cannot be decoded")
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGBA)


def _lay(canvas: Pixels, piece: Pixels, x: float, y: float) -> None:
    """Lays a piece with its centre at (x, y), shares of the canvas; what stands over the edge is cut."""
    height, width = piece.shape[:2]
    top, left = round(y * canvas.shape[0] - height / 2), round(x * canvas.shape[1] - width / 2)
    rows = slice(max(0, top), min(canvas.shape[0], top + height))
    columns = slice(max(0, left), min(canvas.shape[1], left + width))
    part = piece[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    under = canvas[rows, columns]
    alpha = part[..., 3:].astype(np.float32) / 255
    under[..., :3] = np.rint(part[..., :3] * alpha + under[..., :3] * (1 - alpha))
    under[..., 3] = np.maximum(under[..., 3], part[..., 3])
