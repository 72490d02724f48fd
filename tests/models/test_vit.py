import jax
import jax.numpy as jnp
import numpy as np
import numpy_model
import pytest

from vlm_jax.models.encoders import normalise
from vlm_jax.models.positions import resample
from vlm_jax.models.vit import ConvStem, PatchStem, ViT, ViTConfig

STEMS = {"patch": PatchStem(6), "conv": ConvStem((5, 7), (2, 3))}


def config_of(stem, **fields):
    return ViTConfig((12, 18), STEMS[stem], **{"width": 12, "layers": 2, "heads": 3, "mlp_width": 20} | fields)


@pytest.mark.parametrize("stem", STEMS)
def test_vit_is_that_of_plain_numpy(make, stem):
    config = config_of(stem)
    pixels = np.random.default_rng(0).standard_normal((2, 12, 18, 3))
    params = make.params(ViT(config), jnp.asarray(pixels, jnp.float32))
    found = jax.jit(ViT(config).apply)({"params": params}, jnp.asarray(pixels, jnp.float32))
    expected = [numpy_model.vit(make.float64(params), config, picture) for picture in pixels]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert config.grid == (2, 3)
    assert config.patches == 6


def test_pictures_are_normalised_by_channel():
    config = config_of("patch", mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 2.0))
    found = normalise(np.full((1, 1, 3), 255, np.uint8), config)
    np.testing.assert_allclose(found, [[[1.0, 1.0, 0.0]]], atol=1e-6)


def test_another_picture_size_resamples_the_positions(make):
    config = config_of("patch")
    params = make.params(ViT(config), jnp.zeros((1, 12, 18, 3)))
    large = jnp.asarray(np.random.default_rng(1).standard_normal((1, 24, 36, 3)), jnp.float32)
    found = jax.jit(ViT(config).apply)({"params": params}, large)
    bigger = ViTConfig((24, 36), config.stem, width=12, layers=2, heads=3, mlp_width=20)
    same = params | {"positions": resample(params["positions"], (4, 6))}
    np.testing.assert_allclose(found, jax.jit(ViT(bigger).apply)({"params": same}, large), atol=1e-5)
    assert found.shape == (1, 24, 12)


def test_resampled_positions_keep_a_ramp_and_the_same_grid():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None, None], (8, 8, 1))
    assert resample(ramp, (8, 8)) is ramp
    fine = np.asarray(resample(ramp, (16, 8)))[:, 0, 0]
    np.testing.assert_allclose(fine[4:12], np.arange(4, 12) / 2 - 0.25, atol=1e-3)
    np.testing.assert_allclose(resample(jnp.full((2, 3, 4), 0.7), (5, 7)), 0.7, rtol=1e-5)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="not a multiple of the stem's stride 6"):
        ViTConfig((13, 18), PatchStem(6))
    with pytest.raises(ValueError, match="does not divide by 5 heads"):
        config_of("patch", heads=5)
    with pytest.raises(ValueError, match="2 channels but 1 strides"):
        ConvStem((1, 2), (2,))
