import dataclasses
import functools
import math

import jax
import pytest
from traced import abstract, products, trace_step

from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.convnext import ConvNeXtConfig
from vlm_jax.models.decoder import DecoderConfig, SelfAttentionBlock
from vlm_jax.models.flops import decoder_flops, forward_flops, stage_flops, training_flops, work_flops
from vlm_jax.models.ledger import Ledger
from vlm_jax.models.presets import ADAPTERS, dinov2_small, vlm_mu, with_adapter
from vlm_jax.models.tile_vit import TileViTConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.models.work import Work, all_pairs, full_rows
from vlm_jax.optim import Rule, assign_rules
from vlm_jax.parallel import abstract_params
from vlm_jax.pictures import Tiling

SIZES = DecoderConfig(50, width=20, layers=6, heads=6, key_value_heads=2, head_size=6, mlp_width=28)


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_of_a_product_counts_twice(tied):
    config = dataclasses.replace(SIZES, tied_embeddings=tied, attention_bias=True, query_key_norm=True, post_norms=True)
    params = abstract_params(boxed_params(build_model(config)))
    kernels = [leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "kernel"]
    head = math.prod(params["embedding"].shape)
    assert decoder_flops(VLMConfig(config), 0) == 2 * (sum(kernels) + head)


def test_a_window_bounds_what_attention_costs():
    def attention(pattern, length):
        config = VLMConfig(dataclasses.replace(SIZES, pattern=pattern))
        return decoder_flops(config, length) - decoder_flops(config, 0)

    near, far = SelfAttentionBlock(window=10), SelfAttentionBlock()
    assert attention((far,), 40) == 4 * 6 * 6 * 6 * 40
    assert attention((near,), 40) == attention((far,), 10)
    assert attention((near,), 4) == attention((far,), 4)
    assert attention((near, far), 40) == (attention((near,), 40) + attention((far,), 40)) / 2


def rules_of(config, table):
    return assign_rules(table, abstract(config))


def flops_of(config, table, sizes):
    rules = rules_of(config, table)
    return stage_flops(config, lambda name: rules[name].rate != 0, *sizes, all_pairs(config, *sizes))


TABLES = {
    "all": (Rule(".*"),),
    "adapter only": (Rule("^(encoder|decoder)/", rate=0.0), Rule(".*")),
    "encoder frozen": (Rule("^encoder/", rate=0.0), Rule(".*")),
    "decoder only": (Rule("^(encoder|adapter)/", rate=0.0), Rule(".*")),
    "decoder frozen": (Rule("^decoder/", rate=0.0), Rule(".*")),
    "embedding frozen": (Rule("^(encoder|adapter)/|embedding", rate=0.0), Rule(".*")),
    "head only": (Rule("^decoder/(norm|head)"), Rule(".*", rate=0.0)),
    "scales only": (Rule("norm/scale|norm/bias"), Rule(".*", rate=0.0)),
}


@functools.cache
def model(adapter, **changes):
    """Five layers, so that runs of layers before, between and after blocks differ; no width is a length."""
    base = vlm_mu()
    decoder = dataclasses.replace(base.decoder, layers=5, tied_embeddings=False, **changes)
    config = with_adapter(dataclasses.replace(base, decoder=decoder), adapter)
    if config.memory_tokens:
        config = dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, first=1, every=2))
    return config


USUAL = ("all", "adapter only", "encoder frozen", "decoder only")
CASES = [(adapter, table) for adapter in ADAPTERS for table in TABLES if table in USUAL or adapter in ("mlp", "hybrid")]


@pytest.mark.parametrize(("adapter", "table"), CASES)
def test_a_step_is_counted_product_by_product(adapter, table):
    config, sizes = model(adapter), (3, 41, 2)
    traced = sum(product.flops for product in products(trace_step(config, TABLES[table], *sizes)))
    assert flops_of(config, TABLES[table], sizes).total == pytest.approx(traced, rel=1e-3)


TILES = TileViTConfig(
    (16, 16),
    8,
    ((1, 1), (1, 2)),
    tiles=2,
    hidden=24,
    local_layers=3,
    global_layers=2,
    heads=2,
    mlp_width=40,
    joined=(1,),
)
ENCODERS = {
    "vit": {"encoder": dataclasses.replace(dinov2_small((28, 28)), width=24, layers=2, heads=2, mlp_width=40)},
    "convnext": {"encoder": ConvNeXtConfig((32, 32), depths=(1, 2), widths=(12, 20), patch=4)},
    "tiles": {"encoder": TILES, "tiling": Tiling(grids=TILES.grids, slots=2, thumbnail="none")},
}


@pytest.mark.parametrize("table", ["all", "encoder frozen", "scales only"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_is_counted_product_by_product(encoder, table):
    base, sizes = vlm_mu(), (3, 41, 2)
    adapter = dataclasses.replace(base.adapter, pixel_shuffle=1)
    config = dataclasses.replace(base, adapter=adapter, **ENCODERS[encoder])
    traced = sum(product.flops for product in products(trace_step(config, TABLES[table], *sizes)))
    assert flops_of(config, TABLES[table], sizes).total == pytest.approx(traced, rel=1e-2)


def test_features_of_a_decoder_in_other_families_change_no_count():
    sizes, table = (3, 41, 2), TABLES["all"]
    pattern = (SelfAttentionBlock(window=8), SelfAttentionBlock())
    decoder = DecoderConfig(
        96, 40, 4, 4, 2, 10, 72, pattern=pattern, post_norms=True, query_key_norm=True, attention_softcap=3.0
    )
    config = dataclasses.replace(vlm_mu(), decoder=decoder)
    traced = sum(product.flops for product in products(trace_step(config, table, *sizes)))
    assert flops_of(config, table, sizes).total == pytest.approx(traced, rel=1e-3)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_no_frozen_kernel_has_a_product_that_is_its_gradient(adapter):
    config, table = model(adapter), TABLES["adapter only"]
    rules, params = rules_of(config, table), abstract(config)
    shapes = {"trained": set(), "frozen": set()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        stacked = "/layers" in name or "/blocks/" in name
        kept = shapes["trained" if rules[name].rate else "frozen"]
        if leaf.ndim - stacked > 1:
            kept.add(tuple(sorted(leaf.shape[stacked:])))
    own = shapes["frozen"] - shapes["trained"]
    assert tuple(sorted(params["decoder"]["head"].shape)) in own

    def gradients(table):
        return {tuple(sorted(p.shape)) for p in products(trace_step(config, table, 3, 41, 2))} & own

    assert not gradients(table)
    assert gradients(TABLES["all"])  # the same look finds them where they are


def test_what_lies_below_everything_trained_has_no_backward_pass():
    config, work = model("mlp"), Work(100.0, 2.0, (1000.0,))
    head = work_flops(config, frozenset({"decoder/head"}), work)
    assert head.input_gradients == 0
    c = config.decoder
    assert head.weight_gradients == 2 * 100 * c.width * c.vocabulary_size
    assert head.forward == forward_flops(config, work) > forward_flops(config, work, features_given=True)


def test_adapter_only_training_of_8b_is_worth_its_name():
    """Two thirds of the full step are left: all but the weights' gradients."""
    config = VLMConfig(DecoderConfig(129_024, 4096, 32, 32, 8, 128, 14_336, tied_embeddings=False))
    config = dataclasses.replace(vlm_mu(), decoder=config.decoder)
    trained = {"full": lambda name: not name.startswith("encoder/"), "alone": lambda name: name.startswith("adapter/")}
    step = {name: stage_flops(config, trains, 256, 4096, 4).total for name, trains in trained.items()}
    assert 0.66 < step["alone"] / step["full"] <= 0.70


def test_work_adds_up():
    config = model("hybrid")
    one, other = full_rows(config, 3, 41, 2), Work(50.0, 1.0, (700.0,), 30.0, 90.0)
    together = training_like(config, one + other)
    assert together == pytest.approx(training_like(config, one) + training_like(config, other))
    assert training_like(config, one.times(4.0)) == pytest.approx(4 * training_like(config, one))


def training_like(config, work):
    return work_flops(config, None, work).total


def test_full_rows_are_causal_and_the_convention_is_not():
    config = VLMConfig(SIZES)
    exact, usual = stage_flops(config, None, 2, 40, 0).total, training_flops(config, 2, 40, 0)
    per_pair = 3 * 4 * 6 * 6 * 6
    assert usual - exact == per_pair * 2 * (40 * 40 - 40 * 41 / 2)
    windowed = VLMConfig(dataclasses.replace(SIZES, pattern=(SelfAttentionBlock(window=10),)))
    assert full_rows(windowed, 2, 40, 0).pairs == (2 * (sum(range(1, 10)) + 31 * 10),)


def test_the_ledger_s_example():
    ledger = Ledger(trained={"map/kernel"})
    y = ledger.linear("map", 2 * 3 * 5, False)
    assert (y, ledger.forward, ledger.input_gradients, ledger.weight_gradients) == (True, 60.0, 0.0, 60.0)
