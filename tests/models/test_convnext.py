import jax
import jax.numpy as jnp
import numpy as np
import numpy_model
import pytest

from vlm_jax.models.convnext import ConvNeXt, ConvNeXtConfig
from vlm_jax.models.flops import encoder_flops
from vlm_jax.models.presets import vlm_mu
from vlm_jax.models.vlm import VLM, VLMConfig

SIZES = {"patch": 3, "depths": (1, 2), "widths": (4, 6)}


def squares(x, p, side):
    """[H, W, C] -> [h, w, D], square by square."""
    rows, columns = x.shape[0] // side, x.shape[1] // side
    out = np.zeros((rows, columns, p["kernel"].shape[-1]))
    for r in range(rows):
        for c in range(columns):
            square = x[r * side : (r + 1) * side, c * side : (c + 1) * side]
            out[r, c] = np.einsum("abi,abio->o", square, p["kernel"]) + p["bias"]
    return out


def depthwise(x, p):
    padded = np.pad(x, ((3, 3), (3, 3), (0, 0)))
    out = np.zeros_like(x)
    for r in range(x.shape[0]):
        for c in range(x.shape[1]):
            out[r, c] = np.einsum("abi,abi->i", padded[r : r + 7, c : c + 7], p["filters"][:, :, 0]) + p["bias"]
    return out


def convnext(p, config, pixels):
    """Normalised picture [H, W, 3] -> ([h, w, D], pooled [D])."""
    x = numpy_model.layer_norm(squares(pixels, p["stem"]["patch"], config.patch), p["stem_norm"], 1e-6)
    for stage, depth in enumerate(config.depths):
        if stage:
            x = numpy_model.layer_norm(x, p[f"reduce_{stage}_norm"], 1e-6)
            x = squares(x, p[f"reduce_{stage}"]["patch"], 2)
        for layer in range(depth):
            block = numpy_model.take(p[f"stage_{stage}"], layer)
            y = numpy_model.layer_norm(depthwise(x, block["depthwise"]), block["norm"], 1e-6)
            y = numpy_model.ACTIVATIONS[config.activation](numpy_model.linear(y, block["mlp"]["up"]))
            x = x + numpy_model.linear(y, block["mlp"]["down"]) * block.get("scale", 1)
    return x, numpy_model.layer_norm(x.mean((0, 1)), p["norm"], config.norm_epsilon)


@pytest.mark.parametrize("fields", [{}, {"layer_scale": False, "activation": "relu"}])
def test_convnext_is_that_of_plain_numpy(make, fields):
    config = ConvNeXtConfig((20, 31), **SIZES, **fields)
    pixels = np.random.default_rng(0).standard_normal((2, 20, 31, 3))
    module, given = ConvNeXt(config), jnp.asarray(pixels, jnp.float32)
    params = make.params(module, given)
    features = jax.jit(module.apply)({"params": params}, given)
    states = module.apply({"params": params}, given, method="states")
    assert features.shape == (2, config.patches, config.width) == (2, 3 * 5, 6)
    for i, picture in enumerate(pixels):
        expected, pooled = convnext(make.float64(params), config, picture)
        np.testing.assert_allclose(features[i], expected.reshape(-1, 6), atol=1e-4)
        np.testing.assert_allclose(states.last[i], expected, atol=1e-4)
        np.testing.assert_allclose(states.pooled[i], pooled, atol=1e-4)
    assert [state.shape[1:] for state in states.hidden] == [(6, 10, 4), (6, 10, 4), (3, 5, 6)]


def test_a_vlm_may_have_it_as_its_encoder(make):
    mu = vlm_mu()
    config = VLMConfig(mu.decoder, ConvNeXtConfig((24, 24), **SIZES), mu.adapter)
    assert config.prompt_tokens == 4
    picture = np.random.default_rng(0).integers(0, 256, (24, 24, 3))
    batch = make.pack([{"trunk": [5, -1, 6], "images": [picture]}], 8, config.prompt_tokens, (24, 24), 1)
    params = make.params(VLM(config), batch)
    encoder = config.encoder
    expected, _ = convnext(make.float64(params["encoder"]), encoder, (picture / 255 - encoder.mean) / encoder.std)
    found = VLM(config).apply({"params": params}, batch.images[0], method="encode")
    np.testing.assert_allclose(found[0], expected.reshape(-1, 6), atol=1e-4)
    assert np.isfinite(VLM(config).apply({"params": params}, batch).logits).all()
    stem, reduction = 8 * 8 * 27 * 4, 4 * 4 * 16 * 6
    blocks = 8 * 8 * (49 * 4 + 8 * 16) + 2 * 4 * 4 * (49 * 6 + 8 * 36)
    adapter = 4 * (6 * 4 * 32 + 32 * 32)
    assert encoder_flops(config) == 2 * (stem + reduction + blocks + adapter)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="2 depths but 3 widths"):
        ConvNeXtConfig(depths=(1, 1), widths=(1, 2, 3))
    with pytest.raises(ValueError, match="at least one block"):
        ConvNeXtConfig(depths=(1, 0), widths=(1, 2))
    with pytest.raises(ValueError, match="20 x 224 pixels is too small for 4 stages"):
        ConvNeXtConfig((20, 224))
