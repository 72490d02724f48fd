"""Which grid, where the picture lies on its canvas, and which visual tokens show it."""

import itertools

import pytest

from data_pipelines.grids import Box, canvas_size, choose_grid, fitted_size, longest_size, shown_tokens
from data_pipelines.image_files import BadImage
from vlm_jax.pictures import Tiling, grids_up_to

TILE = (100, 100)
SIZES = list(itertools.product((1, 37, 99, 100, 101, 250, 640, 3001), repeat=2))


def test_the_modules_example_holds() -> None:
    cut = {fit: fitted_size(Tiling(fit=fit), 300, 200, (2, 2), TILE) for fit in ("squash", "pad", "centre")}  # type: ignore[arg-type]
    assert cut["squash"] == Box(0, 0, 200, 200)
    assert cut["pad"] == Box(0, 0, 200, 133)
    assert cut["centre"] == Box(0, 33, 200, 134)
    assert longest_size(300, 200, 100) == (100, 66)


@pytest.mark.parametrize(("size", "grid"), [((300, 100), (3, 1)), ((100, 310), (1, 3)), ((90, 90), (1, 1))])
def test_aspect_takes_the_nearest_ratio(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert choose_grid(Tiling(grids_up_to(4), "aspect"), *size, TILE) == grid


def test_of_equal_ratios_a_large_picture_has_more_tiles() -> None:
    tiling = Tiling(grids_up_to(9), "aspect")
    assert [choose_grid(tiling, side, side, TILE) for side in (100, 142, 300)] == [(1, 1), (2, 2), (3, 3)]


def test_area_keeps_pixels_and_then_wastes_few() -> None:
    tiling = Tiling(((2, 2), (1, 2), (2, 1), (1, 3)), "area")
    assert choose_grid(tiling, 100, 200, TILE) == (1, 2)  # all of it fits in three grids, this is the smallest of them
    assert choose_grid(tiling, 400, 400, TILE) == (2, 2)
    assert choose_grid(tiling, 100, 900, TILE) == (1, 3)


def test_canvas_is_the_smallest_that_the_picture_fits_in() -> None:
    tiling = Tiling(grids_up_to(4), "canvas", "pad", slots=5)
    assert choose_grid(tiling, 90, 95, TILE) == (1, 1)
    assert choose_grid(tiling, 100, 101, TILE) == (1, 2)
    assert choose_grid(tiling, 500, 500, TILE) == (2, 2)  # none is large enough: the least reduction


def test_cover_takes_as_many_tiles_as_the_scaled_picture_begins() -> None:
    tiling = Tiling(tuple(itertools.product(range(1, 5), repeat=2)), "cover")
    assert choose_grid(tiling, 50, 50, TILE) == (4, 4)
    assert choose_grid(tiling, 1000, 100, TILE) == (4, 1)
    assert choose_grid(tiling, 100, 370, TILE) == (2, 4)
    assert choose_grid(tiling, 100, 370, TILE, longest_edge=300) == (1, 3)


def test_a_picture_that_suits_no_grid_is_named() -> None:
    tiling = Tiling(((1, 4), (2, 4)), "cover")
    with pytest.raises(BadImage, match=r"400 x 100 pixels .* a grid of 4 x 1 tiles, which is not among the 2 grids"):
        choose_grid(tiling, 400, 100, TILE)


@pytest.mark.parametrize("choose", ["area", "aspect", "canvas", "cover"])
@pytest.mark.parametrize("fit", ["pad", "centre", "squash"])
def test_every_picture_lies_within_its_canvas_and_shows_tokens_within_the_grid(choose: str, fit: str) -> None:
    tiling = Tiling(tuple(itertools.product(range(1, 4), repeat=2)), choose, fit)  # type: ignore[arg-type]
    for height, width in SIZES:
        grid = choose_grid(tiling, height, width, TILE)
        lies, (down, across) = fitted_size(tiling, height, width, grid, TILE), canvas_size(grid, TILE)
        assert grid in tiling.grids
        assert lies.rows >= 1
        assert lies.columns >= 1
        assert min(lies.top, lies.left) >= 0
        assert lies.top + lies.rows <= down
        assert lies.left + lies.columns <= across
        shown = shown_tokens(tiling, height, width, grid, (5, 4), TILE)
        assert min(shown.top, shown.left, shown.rows, shown.columns) >= 0
        assert shown.top + shown.rows <= 5 * grid[0]
        assert shown.left + shown.columns <= 4 * grid[1]
        if fit != "centre":
            assert shown.rows >= 1
            assert shown.columns >= 1


def test_tokens_of_the_black_around_a_picture_are_not_shown() -> None:
    centred, corner, whole = (Tiling(fit=fit) for fit in ("centre", "pad", "squash"))  # type: ignore[arg-type]
    assert shown_tokens(centred, 100, 300, (1, 1), (5, 5), TILE) == Box(2, 0, 1, 5)
    assert shown_tokens(centred, 100, 200, (2, 2), (4, 4), TILE) == Box(2, 0, 4, 8)
    assert shown_tokens(corner, 100, 200, (2, 2), (4, 4), TILE) == Box(0, 0, 4, 8)
    assert shown_tokens(corner, 110, 200, (2, 2), (4, 4), TILE) == Box(0, 0, 5, 8)
    assert shown_tokens(whole, 100, 200, (2, 2), (4, 4), TILE) == Box(0, 0, 8, 8)


def test_tiles_need_not_be_square() -> None:
    tiling = Tiling(grids_up_to(4), "aspect", "centre")
    assert choose_grid(tiling, 100, 200, (100, 50)) == (1, 4)
    assert fitted_size(tiling, 100, 50, (1, 2), (100, 50)) == Box(0, 25, 100, 50)
