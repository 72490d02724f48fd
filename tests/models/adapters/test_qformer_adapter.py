import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_model
import optax
import pytest

from vlm_jax.batch import Batch
from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.adapters import QFormerAdapterConfig
from vlm_jax.models.flops import encoder_flops
from vlm_jax.models.layers import Precision
from vlm_jax.models.presets import vlm_mu
from vlm_jax.models.qformer import Inputs, QFormer, QFormerConfig
from vlm_jax.models.states import FeatureMap
from vlm_jax.models.vlm import VLM

FEATURES = FeatureMap(2, 3, 10)
SIZES = {"width": 12, "layers": 3, "heads": 3, "mlp_width": 20}
PLAIN = QFormerConfig(**SIZES)
ASKED = QFormerConfig(**SIZES, text=True, text_vocabulary=17, text_length=8)

ADAPTERS = {
    "plain": QFormerAdapterConfig(4, PLAIN),
    "every layer, no norm of features": QFormerAdapterConfig(
        4, dataclasses.replace(PLAIN, cross_every=1, activation="relu"), feature_norm=False
    ),
    "first layer only": QFormerAdapterConfig(4, dataclasses.replace(PLAIN, cross_every=9, norm_epsilon=1e-2)),
    "asked": QFormerAdapterConfig(4, ASKED, instruction=5),
}


def layer_norm(p, x, epsilon):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def attend(p, config, x, to):
    """Query by query and head by head."""
    size = config.width // config.heads
    made = np.zeros_like(x)
    for head in range(config.heads):
        q, k, v = (
            y @ p[name]["kernel"][:, head] + p[name]["bias"][head]
            for name, y in (("query", x), ("key", to), ("value", to))
        )
        scores = np.exp(q @ k.T / np.sqrt(size))
        made += (scores / scores.sum(-1, keepdims=True)) @ v @ p["out"]["kernel"][head]
    return layer_norm(p["norm"], x + made + p["out"]["bias"], config.norm_epsilon)


def feed_forward(p, config, x):
    hidden = numpy_model.ACTIVATIONS[config.activation](x @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"])
    y = x + hidden @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"]
    return layer_norm(p["norm"], y, config.norm_epsilon)


def numpy_qformer(p, config, queries, features, text=()):
    """[Q, W] queries, [P, D] features and ids without padding -> [Q, W]."""
    x, count = queries, len(queries)
    if len(text):
        x = np.concatenate([x, p["text"]["embedding"][list(text)] + p["text"]["positions"][: len(text)]])
    x = layer_norm(p["norm"], x, config.norm_epsilon)
    for number in range(config.layers):
        group, block = divmod(number, config.cross_every)
        if group < config.layers // config.cross_every:
            layer = jax.tree.map(lambda leaf, group=group: leaf[group], p["layers"][f"block_{block}"])
        else:
            layer = p["rest"][f"block_{block}"]
        x = attend(layer["attention"], config, x, x)
        q, rest = x[:count], x[count:]
        if number % config.cross_every == 0:
            q = attend(layer["cross"], config, q, features)
        x = feed_forward(layer["query"], config, q)
        if len(text):
            x = np.concatenate([x, feed_forward(layer["text"], config, rest)])
    return x[:count]


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_is_that_of_plain_numpy(make, name):
    config = ADAPTERS[name]
    features = np.random.default_rng(1).standard_normal((2, FEATURES.count, FEATURES.width))
    asked = np.array([[3, 1, 4, 0, 0], [0, 0, 0, 0, 0]]) if config.instruction else None
    module = config.build(FEATURES, 7, Precision(), False)
    given = (jnp.asarray(features, jnp.float32), None if asked is None else jnp.asarray(asked))
    params = make.params(module, *given)
    found = module.apply({"params": params}, *given)
    assert found.shape == (2, config.prompt_tokens(FEATURES), 7)
    p = make.float64(params)
    for row, x in enumerate(features):
        x = layer_norm(p["feature_norm"], x, 1e-6) if config.feature_norm else x
        text = () if asked is None else [id for id in asked[row] if id]
        wanted = numpy_qformer(p["qformer"], config.qformer, p["queries"], x, text)
        np.testing.assert_allclose(found[row], wanted @ p["out"]["kernel"] + p["out"]["bias"], atol=1e-4)


def test_padding_is_seen_by_nobody(make):
    config = dataclasses.replace(ASKED, features_width=10)
    module, rng = QFormer(config), np.random.default_rng(0)
    x, features = (jnp.asarray(rng.standard_normal((1, n, d)), jnp.float32) for n, d in ((6, 12), (5, 10)))
    keep, shown = jnp.array([[1, 1, 1, 1, 0, 1]], bool), jnp.array([[1, 1, 0, 1, 1]], bool)
    params = make.params(module, x, features, jnp.ones((1, 2), int))

    def last(x, features):
        inputs = Inputs(x, 3, features, sees=keep, sees_features=shown)
        return module.apply({"params": params}, inputs, method="states")[-1]

    there = np.asarray(last(x, features))[:, np.asarray(keep[0])]
    changed = np.asarray(last(x.at[:, 4].add(9.0), features.at[:, 2].add(9.0)))[:, np.asarray(keep[0])]
    np.testing.assert_array_equal(there, changed)
    assert np.abs(there - np.asarray(last(x, features.at[:, 1].add(9.0)))[:, np.asarray(keep[0])]).max() > 1e-3


def test_an_instruction_changes_what_is_read(make):
    config = ADAPTERS["asked"]
    module = config.build(FEATURES, 7, Precision(), True)
    features = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 10)), jnp.float32)
    same = jnp.stack([features[0]] * 2)
    asked = jnp.array([[3, 4, 0, 0, 0], [4, 3, 0, 0, 0]])
    params = make.params(module, same, asked)
    first, second = module.apply({"params": params}, same, asked)
    assert np.abs(first[:4] - second[:4]).max() > 1e-3
    np.testing.assert_array_equal(first[4], second[4])  # the separator
    assert config.pictures(FEATURES).instruction == 5
    with pytest.raises(ValueError, match="has no instructions"):
        module.apply({"params": params}, features)


def test_flops_count_every_product(make):
    queries, features, width = 4, FEATURES.count, 7
    q = dataclasses.replace(ADAPTERS["first layer only"].qformer, features_width=FEATURES.width)
    matrices = {
        "self": 4 * 12 * 12 * queries * 3,
        "scores": 2 * 12 * queries**2 * 3,
        "mlp": 2 * 12 * 20 * queries * 3,
        "cross": 2 * 12 * 12 * queries + 2 * 10 * 12 * features,
        "cross scores": 2 * 12 * queries * features,
        "out": 12 * width * queries,
    }
    assert ADAPTERS["first layer only"].flops(FEATURES, width) == 2.0 * sum(matrices.values())
    assert q.cross_layers == 1
    mu = vlm_mu()
    more, less = (dataclasses.replace(mu, adapter=QFormerAdapterConfig(n, PLAIN)) for n in (8, 4))
    assert encoder_flops(more) > encoder_flops(less)


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="width 13 does not divide by 3 heads"):
        QFormerConfig(width=13, heads=3)
    with pytest.raises(ValueError, match="cross_every is 0"):
        QFormerConfig(cross_every=0)
    with pytest.raises(ValueError, match="text is off"):
        QFormerConfig(text_vocabulary=5)
    with pytest.raises(ValueError, match="queries is 0"):
        QFormerAdapterConfig(0)
    with pytest.raises(ValueError, match="it can be 0 to 8"):
        QFormerAdapterConfig(4, ASKED, instruction=9)
    with pytest.raises(ValueError, match="set all three or none"):
        QFormerAdapterConfig(4, PLAIN, instruction=5)
    with pytest.raises(ValueError, match="features_width is 9, but the encoder's features have 10"):
        QFormerAdapterConfig(4, dataclasses.replace(PLAIN, features_width=9)).prompt_tokens(FEATURES)
    with pytest.raises(ValueError, match="features_width is 0"):
        build_model(PLAIN)


def test_a_qformer_by_itself_has_all_its_parameters():
    boxed = boxed_params(build_model(dataclasses.replace(ASKED, features_width=10)))
    params = nn.meta.unbox(boxed)
    assert params["text"]["embedding"].shape == (17, 12)
    assert {"attention", "cross", "query", "text"} == {*params["rest"]["block_0"]}
    assert {"attention", "query", "text"} == {*params["layers"]["block_1"]}


def overfit(config, steps=80):
    """Loss on texts that only the picture tells, after some steps with everything but the encoder trained."""
    rng, rows, tokens = np.random.default_rng(0), 8, config.prompt_tokens
    words = rng.integers(10, 300, (rows, 3))
    ids = np.concatenate([np.full((rows, tokens), 5), words], 1)
    zero, visual = np.zeros_like(ids), np.full_like(ids, -1)
    visual[:, :tokens] = np.arange(tokens)
    weights = np.zeros(ids.shape, np.float32)
    weights[:, tokens - 1 : -1] = 1
    squares = rng.integers(0, 256, (rows, 1, 4, 4, 3)).astype(np.uint8)
    batch = Batch(
        tokens=ids,
        targets=np.roll(ids, -1, 1),
        loss_weights=weights,
        segment_ids=zero + 1,
        branch_ids=zero,
        block_ids=zero,
        positions=zero + np.arange(ids.shape[1]),
        example_index=zero,
        source_ids=zero[:, :1],
        images=squares.repeat(8, 2).repeat(8, 3),
        visual_index=visual,
    )
    model = VLM(config)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), batch))["params"]
    encoder = params.pop("encoder")
    optimizer = optax.adamw(3e-3)

    def loss(params):
        logits = model.apply({"params": {**params, "encoder": encoder}}, batch).logits
        each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(batch.targets))
        return (each * weights).sum() / weights.sum()

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, value = optimizer.init(params), None
    for _ in range(steps):
        params, state, value = step(params, state)
    return float(value)


def test_it_learns_what_only_the_picture_tells():
    mu = vlm_mu(vocabulary_size=384)
    qformer = QFormerConfig(width=24, layers=2, heads=2, mlp_width=48)
    adapter = QFormerAdapterConfig(4, qformer)
    assert overfit(dataclasses.replace(mu, adapter=adapter)) < 0.3
