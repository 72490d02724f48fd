import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_model
import optax
import pytest

from vlm_jax.models.adapters.resampler import Resampler, ResamplerConfig
from vlm_jax.models.flops import encoder_flops
from vlm_jax.models.presets import vlm_mu
from vlm_jax.models.states import FeatureMap
from vlm_jax.models.vlm import VLM

FEATURES = FeatureMap(3, 4, 10)
SIZES = {"queries": 5, "layers": 2, "heads": 4, "head_size": 6}

FORMS = {
    "flamingo": ResamplerConfig(**SIZES),
    "flamingo of another width": ResamplerConfig(**SIZES, width=8, mlp_width=9, activation="relu"),
    "idefics2": ResamplerConfig("idefics2", **SIZES, key_value_heads=2, mlp_width=7, projection_width=11),
    "idefics2 of another width": ResamplerConfig("idefics2", **SIZES, width=8, norm_epsilon=1e-3),
}


def numpy_resampler(p, config, features, width, shown=None):
    """[P, D] -> [queries, width], from the papers: latent by latent, over what is shown."""
    flamingo = config.form == "flamingo"

    def norm(x, p):
        if flamingo:
            return numpy_model.layer_norm(x, p, config.norm_epsilon)
        return numpy_model.rms_norm(x, p["scale"], config.norm_epsilon)

    def gated(x, p, activation="silu"):
        gate, up = (numpy_model.linear(x, p[name]) for name in ("gate", "up"))
        return numpy_model.linear(numpy_model.ACTIVATIONS[activation](gate) * up, p["down"])

    def plain(x, p):
        inner = np.maximum(numpy_model.linear(x, p["up"]), 0)
        return numpy_model.linear(inner if config.activation == "relu" else inner**2, p["down"])

    if "projection" in p:
        features = numpy_model.linear(features, p["projection"]) if flamingo else gated(features, p["projection"])
    if shown is not None:
        features = features[shown]
    x = p["latents"]
    for layer in range(config.layers):
        block = numpy_model.take(p["layers"], layer)
        y = norm(x, block["latents_norm"])
        context = np.concatenate([norm(features, block["features_norm"]), y])
        queries, keys, values = (
            np.einsum("sd,dhk->shk", given, block[name]["kernel"])
            for name, given in (("query", y), ("key", context), ("value", context))
        )
        seen = numpy_model.attention(queries, keys, values)
        x = x + np.einsum("shk,hkd->sd", seen, block["out"]["kernel"])
        y = norm(x, block["mlp_norm"])
        x = x + (plain(y, block["mlp"]) if flamingo else gated(y, block["mlp"]))
    x = norm(x, p["norm"])
    return numpy_model.linear(x, p["out"]) if "out" in p else x


def drawn(config, make, width=14, count=3):
    features = jnp.asarray(np.random.default_rng(1).standard_normal((count, 12, 10)), jnp.float32)
    module = config.build(FEATURES, width, dataclasses.replace(vlm_mu().precision), False)
    return module, make.params(module, features), features


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("width", [14, 8])
def test_each_form_is_that_of_plain_numpy(name, width, make):
    config = FORMS[name]
    module, params, features = drawn(config, make, width)
    found = module.apply({"params": params}, features)
    expected = [numpy_resampler(make.float64(params), config, np.asarray(x, float), width) for x in features]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.shape == (3, config.prompt_tokens(FEATURES), width)
    assert config.token_grid(FEATURES) == (0, 0)


@pytest.mark.parametrize("name", ["flamingo", "idefics2"])
def test_padding_is_as_if_it_were_not_there(name, make):
    config = FORMS[name]
    module, params, features = drawn(config, make)
    shown = np.arange(12)[None] < np.array([[12], [5], [1]])
    found = module.apply({"params": params}, features, None, jnp.asarray(shown))
    for got, x, seen in zip(found, features, shown, strict=True):
        wanted = numpy_resampler(make.float64(params), config, np.asarray(x, float), 14, seen)
        np.testing.assert_allclose(got, wanted, atol=1e-4)
    np.testing.assert_allclose(found[0], module.apply({"params": params}, features)[0], atol=1e-5)


def test_flops_are_those_of_the_products_that_are_compiled():
    for config in (*FORMS.values(), dataclasses.replace(FORMS["idefics2"], layers=1)):
        module = config.build(FEATURES, 14, vlm_mu().precision, False)
        features = jax.ShapeDtypeStruct((1, 12, 10), jnp.float32)
        params = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), features))["params"]
        jaxpr = jax.make_jaxpr(lambda p, x, module=module: module.apply({"params": p}, x))(params, features)
        assert products(jaxpr.jaxpr) == config.flops(FEATURES, 14)


def products(jaxpr):
    """Two for each multiplication of the matrix products in a program."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [v for v in equation.params.values() if hasattr(v, "eqns") or hasattr(v, "jaxpr")]
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += times * sum(products(getattr(v, "jaxpr", v)) for v in inner)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * np.prod(equation.outvars[0].aval.shape) * np.prod([left[axis] for axis in contracted])
    return total


def picture_batch(make, config, pictures, answers):
    """A row a picture: its visual tokens, then an answer that only the picture tells."""
    rows = [
        make.pack(
            [{"trunk": [-1, 2, *answer], "images": [picture]}],
            config.prompt_tokens + 1 + len(answer),
            config.prompt_tokens,
            (32, 32),
            1,
        )
        for picture, answer in zip(pictures, answers, strict=True)
    ]
    batch = jax.tree.map(lambda *x: np.concatenate(x), *rows)
    targets = np.roll(batch.tokens, -1, 1)
    weights = np.zeros(targets.shape, np.float32)
    weights[:, config.prompt_tokens : -1] = 1
    return dataclasses.replace(batch, targets=targets, loss_weights=weights)


@pytest.mark.parametrize("form", ["flamingo", "idefics2"])
def test_it_learns_pictures_by_heart_from_its_own_initialisation(form, make):
    adapter = ResamplerConfig(form, queries=4, layers=1, heads=4, head_size=8)
    config = dataclasses.replace(vlm_mu(64), adapter=adapter)
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, layers=1))
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (8, 1, 1, 3)).repeat(32, 1).repeat(32, 2)
    batch = picture_batch(make, config, pictures, rng.integers(5, 64, (8, 3)))
    model = VLM(config)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), batch))["params"]
    optimizer = optax.adam(6e-3)

    def loss(params):
        logits = model.apply({"params": params}, batch).logits
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        return (each * batch.loss_weights).sum() / batch.loss_weights.sum()

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            value, gradients = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradients, state)
            return (optax.apply_updates(params, updates), state), value

        (params, _), values = jax.lax.scan(step, (params, optimizer.init(params)), None, 80)
        return params, values

    _, values = train(params)
    assert values[0] > 3.5
    assert values[-1] < 0.1  # without the pictures, eight answers cannot be told apart: 2.08 / 3 is the best


def test_a_model_counts_it(make):
    config = dataclasses.replace(vlm_mu(), adapter=ResamplerConfig(queries=7))
    bare = dataclasses.replace(config.encoder)
    assert config.prompt_tokens == 7
    assert encoder_flops(config) > config.adapter.flops(bare.features, config.decoder.width) > 0


def test_the_latents_tell_their_outputs_apart_before_training():
    module = Resampler(ResamplerConfig(**SIZES), FEATURES, 14)
    features = jnp.asarray(np.random.default_rng(0).standard_normal((1, 12, 10)), jnp.float32)
    params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), features))
    tokens = np.asarray(module.apply(params, features)[0])
    assert np.abs(np.corrcoef(tokens) - np.eye(5)).max() < 0.95


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="queries is 0; it must be at least 1"):
        ResamplerConfig(queries=0)
    with pytest.raises(ValueError, match="16 heads do not divide by 3 key_value_heads"):
        ResamplerConfig(key_value_heads=3)
    with pytest.raises(ValueError, match="projection_width is of the idefics2 form"):
        ResamplerConfig(projection_width=8)
