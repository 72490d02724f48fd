import jax.numpy as jnp
import numpy as np
import numpy_model
import pytest

from vlm_jax.models.adapters.mlp import MLPAdapter, MLPAdapterConfig, pixel_shuffle
from vlm_jax.models.states import FeatureMap


def features_of(rows, columns):
    return FeatureMap(rows, columns, 5)


def test_pixel_shuffle_joins_squares_row_by_row():
    grid = jnp.arange(4.0).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(pixel_shuffle(grid, 2), [[[[0, 1, 2, 3]]]])
    x = np.random.default_rng(0).standard_normal((6, 9, 5))
    np.testing.assert_array_equal(
        pixel_shuffle(jnp.asarray(x)[None], 3)[0], numpy_model.pixel_shuffle(x, 3).astype("f4")
    )


@pytest.mark.parametrize(("layers", "r", "hidden"), [(1, 1, 0), (2, 2, 0), (3, 1, 13), (3, 2, 13)])
def test_adapter_is_that_of_plain_numpy(make, layers, r, hidden):
    config = MLPAdapterConfig(layers, hidden, r)
    features = np.random.default_rng(layers).standard_normal((2, 24, 5))
    module = MLPAdapter(config, features_of(4, 6), 11)
    params = make.params(module, jnp.asarray(features, jnp.float32))
    found = module.apply({"params": params}, jnp.asarray(features, jnp.float32))
    expected = [numpy_model.mlp_adapter(make.float64(params), config, x, (4, 6)) for x in features]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.shape == (2, config.prompt_tokens(features_of(4, 6)), 11)


def test_another_activation_and_no_biases(make):
    config = MLPAdapterConfig(2, activation="quick_gelu", bias=False)
    features = np.random.default_rng(0).standard_normal((1, 6, 5))
    module = MLPAdapter(config, features_of(2, 3), 7)
    params = make.params(module, jnp.asarray(features, jnp.float32))
    assert all(set(layer) == {"kernel"} for layer in params.values())
    found = module.apply({"params": params}, jnp.asarray(features, jnp.float32))
    np.testing.assert_allclose(
        found[0], numpy_model.mlp_adapter(make.float64(params), config, features[0], (2, 3)), atol=1e-4
    )


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="5 x 4 patches does not divide by pixel_shuffle 2"):
        MLPAdapterConfig(pixel_shuffle=2).prompt_tokens(features_of(5, 4))
    with pytest.raises(ValueError, match="it can be 1, 2 or 3"):
        MLPAdapterConfig(layers=4)
