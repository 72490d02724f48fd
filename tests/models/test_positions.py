import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.positions import resample


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
