import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.positions import fractional_positions, keeps_positions, resample


def cubic(x, a=-0.75):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def stretched(line, count):
    """Point by point: all points of an endlessly repeated edge, weighed by their distance."""
    found = []
    for i in range(count):
        at = (i + 0.5) * len(line) / count - 0.5
        near = range(int(at) - 4, int(at) + 6)
        found.append(sum(cubic(at - j) * line[min(max(j, 0), len(line) - 1)] for j in near))
    return np.array(found)


@pytest.mark.parametrize("grid", [(3, 8), (9, 5), (2, 2), (5, 11), (1, 1)])
def test_bicubic_is_cubic_convolution_along_one_side_and_then_the_other(grid):
    positions = np.random.default_rng(0).standard_normal((5, 7, 2))
    expected = np.apply_along_axis(stretched, 0, positions, grid[0])
    expected = np.apply_along_axis(stretched, 1, expected, grid[1])
    found = resample(jnp.asarray(positions, jnp.float32), grid, "bicubic")
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("method", ["bicubic", "bicubic_antialias"])
def test_what_is_the_same_everywhere_stays_so(method):
    np.testing.assert_allclose(resample(jnp.full((2, 3, 4), 0.7), (5, 7), method), 0.7, rtol=1e-5)
    positions = jnp.ones((2, 3, 4))
    assert resample(positions, (2, 3), method) is positions


def test_antialiased_positions_keep_a_ramp():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None, None], (8, 8, 1))
    fine = np.asarray(resample(ramp, (16, 8)))[:, 0, 0]
    np.testing.assert_allclose(fine[4:12], np.arange(4, 12) / 2 - 0.25, atol=1e-3)


def test_only_one_way_averages_where_the_new_grid_is_coarser():
    stripes = jnp.asarray(np.tile([0.0, 1.0], 8)[:, None, None] * np.ones((16, 4, 1)), jnp.float32)
    assert np.ptp(resample(stripes, (5, 4), "bicubic_antialias")[1:-1]) < 0.2
    assert np.ptp(resample(stripes, (5, 4), "bicubic")[1:-1]) > 0.5


def cell_of(number, count, old):
    """Where patch `number` of `count` falls: by rational numbers, but for corners on an edge that float32 moves."""
    at = np.float32(number) * (np.float32(1) / np.float32(count))
    return sum(np.float32(edge / old) <= at for edge in range(1, old))


@pytest.mark.parametrize("grid", [(4, 6), (1, 9), (3, 2), (7, 5), (8, 12)])
def test_fractional_positions_are_those_of_the_cell_that_a_patch_begins_in(grid):
    positions = jnp.arange(24.0).reshape(4, 6, 1)
    expected = [[[6 * cell_of(i, grid[0], 4) + cell_of(j, grid[1], 6)] for j in range(grid[1])] for i in range(grid[0])]
    np.testing.assert_array_equal(resample(positions, grid, "fractional"), expected)


def test_fractional_positions_of_a_frame_are_those_of_the_picture_in_it():
    positions = jnp.asarray(np.random.default_rng(0).standard_normal((4, 6, 3)), jnp.float32)
    shown = np.zeros((3, 5, 7), bool)
    sizes = [(5, 7), (3, 2), (1, 4)]
    for picture, (rows, columns) in zip(shown, sizes, strict=True):
        picture[:rows, :columns] = True
    found = fractional_positions(positions, jnp.asarray(shown))
    for got, picture, size in zip(found, shown, sizes, strict=True):
        wanted = resample(positions, size, "fractional")
        np.testing.assert_array_equal(got[: size[0], : size[1]], wanted)
        np.testing.assert_array_equal(got[~picture], np.broadcast_to(positions[0, 0], got[~picture].shape))


def test_the_example_of_the_docstring():
    positions = jnp.arange(4.0)[None, :, None]
    shown = jnp.asarray([[[True, True, True, False, False]]])
    assert fractional_positions(positions, shown).ravel().tolist() == [0, 1, 2, 0, 0]


def test_float32_decides_for_the_cell_before_in_some_grids():
    kept = [side for side in range(1, 40) if keeps_positions((side, side))]
    assert sorted({*range(1, 40)} - {*kept}) == [25, 29, 31]
    assert keeps_positions((70, 32))
    assert not keeps_positions((32, 49))
