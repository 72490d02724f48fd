import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy_model
import pytest

from vlm_jax.models.encoders import normalise
from vlm_jax.models.positions import resample
from vlm_jax.models.presets import dinov2_small
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


PRETRAINED = {
    "clip": {"class_token": True, "stem_norm": True, "activation": "quick_gelu", "final_norm": "pooled"},
    "clip_whole": {"class_token": True, "stem_norm": True, "final_norm": "none", "keep_class_token": True},
    "dinov2": {"class_token": True, "registers": 2, "layer_scale": True, "activation": "gelu"},
    "swiglu": {"registers": 1, "layer_scale": True, "activation": "silu", "gated_mlp": True, "attention_bias": False},
}


@pytest.mark.parametrize("name", PRETRAINED)
def test_variants_are_those_of_plain_numpy(make, name):
    config = config_of("patch", **PRETRAINED[name])
    config = dataclasses.replace(config, stem=PatchStem(6, bias=name != "clip"))
    pixels = np.random.default_rng(0).standard_normal((2, 12, 18, 3))
    params = make.params(ViT(config), jnp.asarray(pixels, jnp.float32))
    found = jax.jit(ViT(config).apply)({"params": params}, jnp.asarray(pixels, jnp.float32))
    expected = [numpy_model.vit(make.float64(params), config, picture) for picture in pixels]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.shape == (2, 6 + config.keep_class_token, 12)


def test_states_are_what_the_features_come_from(make):
    config = config_of("patch", class_token=True, registers=2, keep_class_token=True)
    pixels = jnp.asarray(np.random.default_rng(0).standard_normal((2, 12, 18, 3)), jnp.float32)
    params = make.params(ViT(config), pixels)
    states = ViT(config).apply({"params": params}, pixels, method="states")
    assert [state.shape for state in states.hidden] == [(2, 9, 12)] * 3
    features = ViT(config).apply({"params": params}, pixels)
    np.testing.assert_allclose(features, np.delete(states.last, [1, 2], axis=1), atol=1e-6)
    np.testing.assert_allclose(states.pooled, features[:, 0], atol=1e-6)
    first_only = dataclasses.replace(config, layers=1, final_norm="none")
    fewer = {name: leaf for name, leaf in params.items() if name != "norm"}
    fewer["layers"] = jax.tree.map(lambda leaf: leaf[:1], params["layers"])
    after_one = ViT(first_only).apply({"params": fewer}, pixels, method="states")
    np.testing.assert_allclose(after_one.last, states.hidden[1], atol=1e-6)
    assert after_one.pooled is None


def test_what_fills_no_patch_is_cut_off_if_that_is_allowed(make):
    config = dataclasses.replace(config_of("patch"), stem=PatchStem(6, truncate=True), image_size=(17, 20))
    assert config.grid == (2, 3)
    pixels = jnp.asarray(np.random.default_rng(0).standard_normal((1, 17, 20, 3)), jnp.float32)
    params = make.params(ViT(config), pixels)
    whole, cut = (ViT(config).apply({"params": params}, x) for x in (pixels, pixels[:, :12, :18]))
    np.testing.assert_array_equal(whole, cut)


def test_positions_may_be_learned_for_another_grid(make):
    config = config_of("patch", position_grid=(5, 4), position_resampling="bicubic")
    pixels = jnp.zeros((1, 12, 18, 3))
    params = make.params(ViT(config), pixels)
    assert params["positions"].shape == (5, 4, 12)
    same = params | {"positions": resample(params["positions"], (2, 3), "bicubic")}
    expected = ViT(config_of("patch")).apply({"params": same}, pixels)
    np.testing.assert_allclose(ViT(config).apply({"params": params}, pixels), expected, atol=1e-5)


def test_dinov2_small_has_as_many_parameters_as_was_published():
    config = dinov2_small()
    shapes = jax.eval_shape(ViT(config).init, jax.random.key(0), jnp.zeros((1, 28, 28, 3)))
    # 22,056,576 in the checkpoint, of which 384 are a mask token that only its training used.
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 22_056_192
    assert (config.patches, config.position_grid) == (256, (37, 37))


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


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="not a multiple of the stem's stride 6"):
        ViTConfig((13, 18), PatchStem(6))
    with pytest.raises(ValueError, match="does not divide by 5 heads"):
        config_of("patch", heads=5)
    with pytest.raises(ValueError, match="final_norm 'pooled' needs class_token"):
        config_of("patch", final_norm="pooled")
    with pytest.raises(ValueError, match="keep_class_token needs class_token"):
        config_of("patch", keep_class_token=True)
    with pytest.raises(ValueError, match="2 channels but 1 strides"):
        ConvStem((1, 2), (2,))


@pytest.mark.parametrize("class_token", [False, True])
def test_a_picture_in_a_frame_is_encoded_as_without_the_frame(make, class_token):
    config = ViTConfig(
        (12, 12),
        PatchStem(4),
        width=12,
        layers=2,
        heads=2,
        mlp_width=20,
        class_token=class_token,
        position_resampling="fractional",
    )
    frames = np.random.default_rng(0).standard_normal((2, 16, 20, 3)).astype("f4")
    params = make.params(ViT(config), frames)
    shown = np.zeros((2, 4, 5), bool)
    sizes = [(4, 2), (1, 5)]
    for picture, (rows, columns) in zip(shown, sizes, strict=True):
        picture[:rows, :columns] = True
    found = ViT(config).apply({"params": params}, frames, jnp.asarray(shown))
    for got, frame, picture, (rows, columns) in zip(found, frames, shown, sizes, strict=True):
        alone = ViT(config).apply({"params": params}, frame[None, : 4 * rows, : 4 * columns])
        np.testing.assert_allclose(got[picture.ravel()], alone[0], atol=1e-5)
