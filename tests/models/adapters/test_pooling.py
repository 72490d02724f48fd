import dataclasses

import jax.numpy as jnp
import numpy as np
import numpy_model
import pytest

from vlm_jax.models.adapters.mlp import MLPAdapterConfig
from vlm_jax.models.adapters.pooling import AveragePooling, AveragePoolingConfig, average_pool
from vlm_jax.models.presets import vlm_mu
from vlm_jax.models.states import FeatureMap
from vlm_jax.pictures import Tiling


def cell(grid, i, j, rows, columns):
    """The mean of the features that cell (i, j) touches."""
    height, width, _ = grid.shape
    ys = [y for y in range(height) if y + 1 > i * height / rows and y < (i + 1) * height / rows]
    xs = [x for x in range(width) if x + 1 > j * width / columns and x < (j + 1) * width / columns]
    return np.mean([grid[y, x] for y in ys for x in xs], 0)


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (3, 4), (6, 9), (5, 7), (4, 2)])
def test_cells_are_means_of_what_they_touch(grid):
    features = np.random.default_rng(0).standard_normal((2, 6, 9, 4))
    found = average_pool(jnp.asarray(features, jnp.float32), grid)
    expected = [[[cell(x, i, j, *grid) for j in range(grid[1])] for i in range(grid[0])] for x in features]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_example_of_the_docstring():
    ramp = jnp.arange(5.0)[None, :, None, None]
    np.testing.assert_allclose(average_pool(ramp, (3, 1)).ravel(), [0.5, 2, 3.5])


@pytest.mark.parametrize("shuffle", [1, 2])
def test_the_mlp_sees_the_averages_as_its_grid(make, shuffle):
    mlp = MLPAdapterConfig(hidden=13, pixel_shuffle=shuffle)
    config = AveragePoolingConfig(2, 4, mlp)
    features = np.random.default_rng(1).standard_normal((3, 30, 5))
    module = AveragePooling(config, FeatureMap(5, 6, 5), 11)
    given = jnp.asarray(features, jnp.float32)
    params = make.params(module, given)
    expected = []
    for x in features.reshape(3, 5, 6, 5):
        averages = np.array([cell(x, i, j, 2, 4) for i in range(2) for j in range(4)])
        expected.append(numpy_model.mlp_adapter(make.float64(params)["mlp"], mlp, averages, (2, 4)))
    np.testing.assert_allclose(module.apply({"params": params}, given), expected, atol=1e-4)
    assert config.token_grid(FeatureMap(5, 6, 5)) == (2 // shuffle, 4 // shuffle)
    assert config.prompt_tokens(FeatureMap(5, 6, 5)) == 8 // shuffle**2


def test_a_class_token_goes_through_the_mlp_alone(make):
    features = FeatureMap(2, 2, 3, ahead=1)
    module = AveragePooling(AveragePoolingConfig(1, 1, MLPAdapterConfig(layers=1)), features, 4)
    given = jnp.asarray(np.random.default_rng(0).standard_normal((1, 5, 3)), jnp.float32)
    params = make.params(module, given)
    found = module.apply({"params": params}, given)
    layer = make.float64(params)["mlp"]["layer_0"]
    expected = numpy_model.linear(np.stack([given[0, 0], given[0, 1:].mean(0)]), layer)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_rows_of_averages_can_end_with_a_separator():
    adapter = AveragePoolingConfig(2, 2)
    config = dataclasses.replace(vlm_mu(), adapter=adapter, tiling=Tiling(separator=True))
    assert (config.prompt_tokens, config.pictures.token_grid) == (5, (2, 2))


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="0 rows x 8 columns; each must be at least 1"):
        AveragePoolingConfig(0)
    with pytest.raises(ValueError, match="8 rows x 8 columns cannot be averages of a grid of 4 x 9"):
        AveragePoolingConfig().prompt_tokens(FeatureMap(4, 9, 5))
    with pytest.raises(ValueError, match="a grid of 3 x 3 patches does not divide by pixel_shuffle 2"):
        AveragePoolingConfig(3, 3, MLPAdapterConfig(pixel_shuffle=2)).prompt_tokens(FeatureMap(6, 6, 5))
