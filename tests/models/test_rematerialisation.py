import dataclasses
import functools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval
from traced import products

from vlm_jax.batch import Batch
from vlm_jax.models.adapters.cross_attention import CrossAttentionConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.layers import Precision
from vlm_jax.models.presets import vlm_mu
from vlm_jax.models.rematerialisation import RematPolicy
from vlm_jax.models.vit import PatchStem, ViT, ViTConfig
from vlm_jax.models.vlm import VLM, VLMConfig

POLICIES = get_args(RematPolicy)
SIZES = DecoderConfig(40, width=20, layers=3, heads=6, key_value_heads=2, head_size=4, mlp_width=28)
ROWS, LENGTH = 2, 11
D, HK, GK, M, HS = 20, 24, 8, 28, 6 * LENGTH

KEPT = {
    "full": 0,
    "save_attention": HK,
    "save_qkv": 2 * HK + 2 * GK,
    "save_all_but_mlp": 2 * HK + 2 * GK + D,
    "save_products": 2 * HK + 2 * GK + D + 2 * M,
    "save_weight_dots": HK + 2 * GK + D + 2 * M,
    "save_dots": HK + 2 * GK + D + 2 * M + HK + HS,
    "offload_attention": HK,
    "offload_qkv": 2 * HK + 2 * GK,
    "offload_products": 2 * HK + 2 * GK + D + 2 * M,
}
"""Numbers a position and layer, besides a block's input."""

SCORES, SUMS = LENGTH * HK, LENGTH * HK
AGAIN = {
    "none": 0,
    "full": D * (HK + 2 * GK) + SCORES + SUMS + HK * D + 2 * D * M,
    "save_attention": D * (HK + 2 * GK) + SCORES + HK * D + 2 * D * M,
    "save_qkv": SCORES + HK * D + 2 * D * M,
    "save_all_but_mlp": SCORES + 2 * D * M,
    "save_products": SCORES,
    "save_weight_dots": SCORES + SUMS,
    "save_dots": 0,
}
"""Multiplications a position and layer that the backward pass does again; scores by XLA's attention."""
AGAIN |= {f"offload_{name}": AGAIN[f"save_{name}"] for name in ("attention", "qkv", "products")}


def batch():
    spec = Batch.spec(ROWS, LENGTH)
    arrays = {name: None if leaf is None else np.zeros(leaf.shape, leaf.dtype) for name, leaf in vars(spec).items()}
    arrays["segment_ids"] += np.repeat([1, 2], [6, 5]).astype(np.int32)
    arrays["positions"] += np.r_[:6, :5].astype(np.int32)
    arrays["tokens"] += np.arange(LENGTH, dtype=np.int32)
    return Batch(**arrays)


def decoder_loss(policy):
    module = VLM(VLMConfig(dataclasses.replace(SIZES, remat=policy)))
    return lambda params: jnp.sum(jnp.sin(module.apply({"params": params}, batch(), output="hidden").hidden))


@functools.cache
def abstract(policy="none"):
    module = VLM(VLMConfig(dataclasses.replace(SIZES, remat=policy)))
    return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, unboxed(module.init(jax.random.key(0), batch()))))


def unboxed(variables):
    return jax.tree.map(lambda x: x.value, variables["params"], is_leaf=lambda x: hasattr(x, "unbox"))


def kept(loss, params):
    """Numbers that stay from the forward to the backward pass."""
    _, backward = jax.eval_shape(lambda p: jax.vjp(loss, p), params)
    return sum(x.size for x in jax.tree.leaves(backward))


def test_every_policy_is_in_the_tables():
    assert {*POLICIES} == {*KEPT, "none"} == {*AGAIN}


@pytest.mark.parametrize("policy", KEPT)
def test_what_is_kept_is_what_the_table_says(policy):
    more = kept(decoder_loss(policy), abstract()) - kept(decoder_loss("full"), abstract())
    assert more == SIZES.layers * ROWS * LENGTH * KEPT[policy]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_computed_again_is_what_the_table_says(policy):
    def flops(policy):
        return sum(p.flops for p in products(jax.make_jaxpr(jax.grad(decoder_loss(policy)))(abstract()).jaxpr))

    assert flops(policy) - flops("none") == 2 * SIZES.layers * ROWS * LENGTH * AGAIN[policy]


RUNS = dict.fromkeys(POLICIES, 2) | {"full": 3, "save_weight_dots": 3}
"""Kernels of splash attention in a layer's step: forward and backward, and once more forward if nothing is kept."""


@pytest.mark.parametrize("policy", POLICIES)
def test_the_kernel_runs_again_only_where_its_result_is_not_kept(policy):
    module = VLM(VLMConfig(dataclasses.replace(SIZES, remat=policy)), kernel="splash", interpret=True)

    def loss(params):
        return jnp.sum(jnp.sin(module.apply({"params": params}, batch(), output="hidden").hidden))

    assert kernels(jax.make_jaxpr(jax.grad(loss))(abstract()).jaxpr) == RUNS[policy]


def kernels(program):
    """Pallas calls in a program whose results are used; its loop over layers counts once."""
    found = 0
    alive, _ = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    read = {id(variable) for equation in alive.eqns for variable in equation.invars} | {id(x) for x in alive.outvars}
    for equation in alive.eqns:
        if equation.primitive.name == "pallas_call":  # which dce_jaxpr keeps
            found += any(id(variable) in read for variable in equation.outvars)
        else:
            found += sum(kernels(inner) for inner in jaxprs_in_params(equation.params))
    return found


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0.5, 0.3, x.shape), x.dtype), abstract())


@pytest.fixture(scope="module")
def plain(params):
    return jax.jit(jax.value_and_grad(decoder_loss("none")))(params)


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_no_policy_changes_loss_or_gradients(params, plain, policy):
    loss, gradients = jax.jit(jax.value_and_grad(decoder_loss(policy)))(params)
    np.testing.assert_allclose(loss, plain[0], rtol=1e-5)
    assert all(np.any(x) for x in jax.tree.leaves(gradients))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        wanted = functools.reduce(lambda tree, key: tree[key.key], path, plain[1])
        np.testing.assert_allclose(leaf, wanted, atol=2e-5 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("gated", [True, False])
def test_encoders_know_the_names(gated):
    config = ViTConfig((16, 16), PatchStem(8), width=24, layers=2, heads=2, mlp_width=40, gated_mlp=gated)
    pixels = jnp.zeros((3, 16, 16, 3))
    params = jax.eval_shape(lambda: unboxed(ViT(config).init(jax.random.key(0), pixels)))

    def numbers(policy):
        module = ViT(dataclasses.replace(config, remat=policy), Precision())
        _, backward = jax.eval_shape(lambda p: jax.vjp(lambda p: module.apply({"params": p}, pixels), p), params)
        return sum(x.size for x in jax.tree.leaves(backward) if 3 in x.shape)  # biases may be among the others

    more = {policy: (numbers(policy) - numbers("full")) / (2 * 3 * 4) for policy in ("save_qkv", "save_products")}
    assert more == {"save_qkv": 4 * 24, "save_products": 5 * 24 + 40 * (1 + gated)}


def test_blocks_of_cross_attention_know_the_names():
    base = vlm_mu()
    spec = Batch.spec(2, 8, images=1, image_size=(32, 32), in_sequence=False)
    arrays = {name: None if x is None else np.zeros(x.shape, x.dtype) for name, x in vars(spec).items()}
    arrays["visible_images"] = np.ones((2, 8, 2), np.int32)
    rows = Batch(**arrays)

    def numbers(policy):
        decoder = dataclasses.replace(base.decoder, remat=policy)
        config = dataclasses.replace(base, decoder=decoder, adapter=CrossAttentionConfig(every=1))
        params = jax.eval_shape(lambda: unboxed(VLM(config).init(jax.random.key(0), rows)))
        plain = dataclasses.replace(config, encoder=None, adapter=None)

        def loss(config):
            return lambda p: jnp.sum(jnp.sin(VLM(config).apply({"params": p}, rows, output="hidden").hidden))

        text = dataclasses.replace(rows, images=None, image_ids=None, tile_index=None, visible_images=None)

        def alone(p):
            return jnp.sum(jnp.sin(VLM(plain).apply({"params": p}, text, output="hidden").hidden))

        return kept(loss(config), params) - kept(alone, {"decoder": params["decoder"]})

    c, memory = base.decoder, base.encoder.features.count
    per_block = 2 * 8 * 2 * c.heads * c.head_size + 2 * memory * 2 * c.key_value_heads * c.head_size
    assert numbers("save_qkv") - numbers("full") == 2 * per_block
