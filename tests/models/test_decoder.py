import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_model
import pytest

from vlm_jax.losses.next_token import score_tokens
from vlm_jax.models.decoder import Decoder, DecoderConfig, SelfAttentionBlock, shortest_pattern
from vlm_jax.models.layers import Precision
from vlm_jax.models.masks import reference_mask
from vlm_jax.models.rope import DynamicRope, LinearRope, Llama3Rope, YarnRope
from vlm_jax.models.vlm import VLM, VLMConfig

ODD = DecoderConfig(
    vocabulary_size=50,
    width=20,
    layers=4,
    heads=6,
    key_value_heads=2,
    head_size=6,
    mlp_width=28,
    rope_base=500.0,
    norm_epsilon=1e-3,
    pattern=(SelfAttentionBlock(window=4), SelfAttentionBlock()),
)


def odd_batch(make):
    examples = [
        {"trunk": [2, 7, 8, 9, 10, 11], "branches": [[5, 12, 13, 3], [5, 14, 3]]},
        {"trunk": [2, 20, 21, 22, 23, 24, 25, 26]},
    ]
    return make.pack(examples, 24)


@pytest.mark.parametrize("tied", [True, False])
def test_decoder_is_that_of_plain_numpy(make, tied):
    config = VLMConfig(dataclasses.replace(ODD, tied_embeddings=tied))
    batch = odd_batch(make)
    params = make.params(VLM(config), batch)
    logits = jax.jit(VLM(config).apply)({"params": params}, batch).logits
    real = np.asarray(batch.segment_ids)[0] != 0
    np.testing.assert_allclose(logits[0][real], numpy_model.vlm(make.float64(params), config, batch)[real], atol=1e-4)
    assert logits.dtype == jnp.float32


OPTIONS = {
    "embedding_scale": 1.7,
    "rope_scaling": LinearRope(3.0),
    "norm_offset": 1.0,
    "post_norms": True,
    "query_key_norm": True,
    "query_scale": 0.9,
    "attention_bias": True,
    "output_bias": True,
    "mlp_bias": True,
    "activation": "gelu_tanh",
    "attention_softcap": 1.5,
    "logit_softcap": 1.5,
}
EACH_OPTION = [{name: value} for name, value in OPTIONS.items()]
OTHER_VALUES = [
    {"activation": "gelu"},
    {"activation": "quick_gelu"},
    {"activation": "relu"},
    {"rope_scaling": DynamicRope(4.0, 5)},
    {"rope_scaling": Llama3Rope(4.0, 1.0, 4.0, 50)},
    {"rope_scaling": YarnRope(4.0, 50, beta_fast=8.0)},
]


@pytest.mark.parametrize("options", [*EACH_OPTION, *OTHER_VALUES, OPTIONS], ids=lambda o: "+".join(map(str, o)))
def test_every_option_is_that_of_plain_numpy(make, options):
    config = VLMConfig(dataclasses.replace(ODD, layers=2, **options))
    batch = odd_batch(make)
    params = make.params(VLM(config), batch)
    exact = make.float64(params)
    logits = np.asarray(jax.jit(VLM(config).apply)({"params": params}, batch).logits)[0]
    real = np.asarray(batch.segment_ids)[0] != 0
    expected = numpy_model.vlm(exact, config, batch)
    np.testing.assert_allclose(logits[real], expected[real], atol=1e-4)
    # The comparison would notice an option that is ignored.
    without = numpy_model.vlm(exact, VLMConfig(dataclasses.replace(ODD, layers=2)), batch)
    assert np.abs(without - expected)[real].max() > 0.02


def test_hidden_states_are_those_between_the_layers(make):
    config = VLMConfig(dataclasses.replace(ODD, **OPTIONS))
    batch = odd_batch(make)
    params = make.params(VLM(config), batch)
    module = Decoder(config.decoder)

    def states(params):
        masks = tuple(reference_mask(batch, block.window) for block in ODD.pattern)
        x = module.apply(params, batch.tokens, method="embed")
        return module.apply(params, x, batch.positions, masks, method="hidden_states")

    found = jax.jit(states)({"params": params["decoder"]})
    exact = make.float64(params)
    x = exact["decoder"]["embedding"][batch.tokens[0]] * config.decoder.embedding_scale
    *between, last = numpy_model.decoder(exact["decoder"], config.decoder, x, batch.positions[0], batch)
    real = batch.segment_ids[0] != 0
    assert len(found) == ODD.layers + 1
    for state, expected in zip(found, [*between[:-1], last], strict=True):
        np.testing.assert_allclose(state[0][real], expected[real], atol=1e-4)
    hidden = jax.jit(VLM(config).apply, static_argnames="output")({"params": params}, batch, output="hidden").hidden
    np.testing.assert_allclose(found[-1], hidden, atol=1e-5)


def test_options_work_with_a_cache(make):
    config = VLMConfig(dataclasses.replace(ODD, layers=2, **OPTIONS))
    prompt, whole = (make.pack([{"trunk": list(range(2, end))}], end - 2) for end in (9, 14))
    params = {"params": make.params(VLM(config), whole)}
    expected = jax.jit(VLM(config).apply, static_argnames="output")(params, whole, output="hidden").hidden
    prefill = jax.jit(lambda p: VLM(config).apply(p, prompt, 12, method="prefill"))
    hidden, cache = prefill(params)
    np.testing.assert_allclose(hidden, expected[:, :7], atol=3e-5)
    step = jax.jit(lambda *arguments: VLM(config).apply(*arguments, method="step"))
    for at in range(7, 12):
        positions = np.full((1, 1), at)
        hidden, cache = step(params, whole.tokens[:, at : at + 1], positions, np.ones((1, 1), bool), cache)
        np.testing.assert_allclose(hidden[0, 0], expected[0, at], atol=3e-5)


def test_new_norms_start_as_ones(make):
    config = dataclasses.replace(ODD, **OPTIONS)
    params = nn.meta.unbox(VLM(VLMConfig(config)).init(jax.random.key(0), odd_batch(make)))["params"]["decoder"]
    block = params["layers"]["block_0"]
    for norm in (
        *(block[name] for name in ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")),
        *(block["attention"][name] for name in ("query_norm", "key_norm")),
        params["norm"],
    ):
        np.testing.assert_array_equal(norm["scale"] + config.norm_offset, 1)


def test_layers_become_the_shortest_pattern():
    near, far = SelfAttentionBlock(window=4), SelfAttentionBlock()
    for blocks, pattern in (
        ([near] * 6, (near,)),
        ([near, far] * 3, (near, far)),
        ([near, far, near], (near, far, near)),
        ([far, far, near] * 2, (far, far, near)),
        ([far, far, near, near], (far, far, near, near)),
    ):
        assert shortest_pattern(blocks) == pattern


def test_what_is_recomputed_does_not_change_gradients(make):
    batch = odd_batch(make)
    small = dataclasses.replace(ODD, layers=2, pattern=(SelfAttentionBlock(),))
    params = make.params(VLM(VLMConfig(small)), batch)

    def gradients(policy):
        module = VLM(VLMConfig(dataclasses.replace(small, remat=policy)))

        def loss(params):
            hidden = module.apply({"params": params}, batch, output="hidden").hidden
            return jnp.sum(jnp.sin(hidden) * (batch.segment_ids != 0)[..., None])

        return jax.jit(jax.grad(loss))(params)

    plain = gradients("none")
    assert all(np.any(x) for x in jax.tree.leaves(plain))
    for policy in ("full", "save_dots", "save_weight_dots"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), plain, gradients(policy))


def test_recomputing_everything_keeps_less(make):
    batch = odd_batch(make)
    params = make.params(VLM(VLMConfig(ODD)), batch)

    def kept(policy):
        module = VLM(VLMConfig(dataclasses.replace(ODD, remat=policy)))
        _, backward = jax.eval_shape(
            lambda p: jax.vjp(lambda q: module.apply({"params": q}, batch, output="hidden").hidden, p), params
        )
        return sum(x.size for x in jax.tree.leaves(backward))

    assert kept("full") < kept("save_weight_dots") <= kept("save_dots") < kept("none")


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(make):
    batch = odd_batch(make)
    config = VLMConfig(ODD, precision=Precision(compute="bfloat16"))
    params = make.params(VLM(config), batch)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    hidden = jax.eval_shape(lambda p: VLM(config).apply({"params": p}, batch, output="hidden").hidden, params)
    assert hidden.dtype == jnp.bfloat16
    logits = jax.jit(VLM(config).apply)({"params": params}, batch).logits
    assert logits.dtype == jnp.float32
    exact = jax.jit(VLM(VLMConfig(ODD)).apply)({"params": params}, batch).logits
    real = np.asarray(batch.segment_ids)[0] != 0
    np.testing.assert_allclose(logits[0][real], exact[0][real], atol=0.15)


@pytest.mark.parametrize("chunk", [5, 8, 24, 100])
def test_chunked_scores_and_gradients_equal_those_of_the_whole(chunk):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((2, 23, 6)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((6, 31)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 31, (2, 23)))
    weights = jnp.asarray(rng.random((2, 23)), jnp.float32)

    def total(hidden, kernel, chunk):
        scores = score_tokens(lambda x: x @ kernel, hidden, targets, chunk)
        return (weights * scores.cross_entropy).sum(), scores

    both = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True), static_argnums=2)
    (_, whole), gradients = both(hidden, kernel, 0)
    (_, parts), chunked = both(hidden, kernel, chunk)
    logits = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64)
    expected = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
    np.testing.assert_allclose(whole.cross_entropy, expected, atol=1e-4)
    np.testing.assert_array_equal(whole.correct, logits.argmax(-1) == targets)
    np.testing.assert_allclose(parts.cross_entropy, whole.cross_entropy, atol=1e-5)
    np.testing.assert_array_equal(parts.correct, whole.correct)
    for a, b in zip(chunked, gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_chunked_scores_never_hold_the_logits_of_a_whole_batch():
    def loss(hidden, kernel, chunk):
        return score_tokens(lambda x: x @ kernel, hidden, jnp.zeros((2, 60), int), chunk).cross_entropy.sum()

    def largest(chunk):
        shapes = jax.ShapeDtypeStruct((2, 60, 8), jnp.float32), jax.ShapeDtypeStruct((8, 997), jnp.float32)
        traced = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2).trace(*shapes, chunk)
        # 997 is the vocabulary: every array that holds logits has it as a dimension, and the kernel has 8 rows.
        return max(v.aval.size // 997 for j in jaxprs(traced.jaxpr.jaxpr) for e in j.eqns for v in e.outvars if has(v))

    def has(variable):
        return 997 in variable.aval.shape

    assert largest(0) >= 120
    assert largest(7) < 30


def jaxprs(jaxpr):
    """The program and every program inside it."""
    yield jaxpr
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from jaxprs(inner)


def test_sizes_that_cannot_be_are_refused():
    for fields, message in (
        ({"key_value_heads": 4}, "6 heads do not divide by 4"),
        ({"layers": 5}, "5 layers are not a multiple"),
        ({"head_size": 5}, "is odd"),
        ({"context": -1}, "context is -1"),
        ({"logit_softcap": -30.0}, "cannot be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(ODD, **fields)
