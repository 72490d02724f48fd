"""Grids and canvases against transformers' image processors, over many sizes."""

import itertools

import numpy as np
import pytest
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.models.got_ocr2 import image_processing_pil_got_ocr2 as internvl
from transformers.models.idefics3 import image_processing_pil_idefics3 as idefics3
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.mllama import image_processing_pil_mllama as mllama

from data_pipelines.grids import choose_grid, fitted_size, longest_size, shown_tokens
from vlm_jax.pictures import Grid, Tiling, grids_up_to

_SIDES = np.random.default_rng(0)
SIZES = [
    *itertools.product((1, 2, 17, 223, 224, 225, 336, 500, 672, 673, 1999), repeat=2),
    *((int(a), int(b)) for a, b in _SIDES.integers(1, 1500, (600, 2))),
    *((int(a), int(b) * int(a)) for a, b in _SIDES.integers(1, 60, (200, 2))),
]
PINPOINTS: tuple[tuple[Grid, ...], ...] = (
    ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)),
    ((2, 2), (4, 1), (1, 4), (1, 1), (3, 3), (2, 3), (3, 2)),
)


@pytest.mark.parametrize("grids", PINPOINTS)
@pytest.mark.parametrize("tile", [24, 336])
def test_llava_next(grids: tuple[Grid, ...], tile: int) -> None:
    tiling = Tiling(grids, "area", "centre", separator=True)
    pinpoints = [[rows * tile, columns * tile] for rows, columns in grids]
    tokens = tile // 12
    for height, width in SIZES:
        rows, columns = choose_grid(tiling, height, width, (tile, tile))
        best = select_best_resolution((height, width), pinpoints)
        assert (rows * tile, columns * tile) == best, (height, width)
        picture = np.broadcast_to(np.zeros(3, np.uint8)[:, None, None], (3, height, width))
        lies = fitted_size(tiling, height, width, (rows, columns), (tile, tile))
        assert (lies.rows, lies.columns) == get_patch_output_size(picture, best, "channels_first"), (height, width)
        shown = shown_tokens(tiling, height, width, (rows, columns), (tokens, tokens), (tile, tile))
        counted = LlavaNextProcessor._get_unpadded_features(None, height, width, tokens, tokens, rows, columns)
        assert (shown.rows * shown.columns, shown.rows) == counted, (height, width)


@pytest.mark.parametrize("most", [2, 6, 12])
def test_internvl(most: int) -> None:
    grids = [(rows, columns) for columns, rows in internvl.get_all_supported_aspect_ratios(1, most)]
    tilings = [Tiling(tuple(grids), "aspect"), Tiling(grids_up_to(most), "aspect")]
    for height, width in SIZES:
        columns, rows = internvl.get_optimal_tiled_canvas((height, width), (448, 448), 1, most)
        for tiling in tilings:
            assert choose_grid(tiling, height, width, (448, 448)) == (rows, columns), (height, width)


@pytest.mark.parametrize(("most", "tile"), [(4, 560), (4, 30), (6, 100)])
def test_mllama(most: int, tile: int) -> None:
    tiling = Tiling(grids_up_to(most), "canvas", "pad", "none", slots=most)
    for height, width in SIZES:
        rows, columns = choose_grid(tiling, height, width, (tile, tile))
        canvas = mllama.get_optimal_tiled_canvas(height, width, most, tile)
        assert (rows * tile, columns * tile) == canvas, (height, width)
        lies = fitted_size(tiling, height, width, (rows, columns), (tile, tile))
        fits = mllama.get_image_size_fit_to_canvas(height, width, *canvas, tile)
        assert (lies.rows, lies.columns) == fits, (height, width)


@pytest.mark.parametrize(("longest", "tile"), [(1456, 364), (2048, 512), (90, 30), (100, 30)])
def test_idefics3(longest: int, tile: int) -> None:
    most = -(-longest // tile)
    tiling = Tiling(tuple(itertools.product(range(1, most + 1), repeat=2)), "cover", "squash", "last")
    for height, width in SIZES:
        scaled = idefics3._resize_output_size_rescale_to_max_len(height, width, max_len=longest)
        scaled = idefics3._resize_output_size_scale_below_upper_bound(*scaled, max_len=idefics3.MAX_IMAGE_SIZE)
        assert longest_size(height, width, longest) == scaled, (height, width)

        canvas = _VisionEncoderSize().resize_for_vision_encoder(np.zeros((3, *scaled), bool), tile)
        rows, columns = choose_grid(tiling, height, width, (tile, tile), longest_edge=longest)
        assert (rows * tile, columns * tile) == canvas, (height, width)


class _VisionEncoderSize(idefics3.Idefics3ImageProcessorPil):
    def resize(self, image, size, resample=None):  # only the size is asked for
        return size.height, size.width
