import dataclasses

import jax
import pytest
from published import LLAMA3, MISTRAL, PARAMETERS, QWEN2

from vlm_jax.convert.families import find_family
from vlm_jax.convert.hf import find_writer
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.decoder import DecoderConfig, SelfAttentionBlock
from vlm_jax.models.rope import DynamicRope, LinearRope, Llama3Rope, YarnRope
from vlm_jax.parallel import abstract_params


def read(hf):
    return find_family(hf).read_config(hf)


def shapes(config):
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params(boxed_params(build_model(config))))
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_models_have_their_published_size(name):
    hf, parameters = PARAMETERS[name]
    assert (
        sum(leaf.size for leaf in jax.tree.leaves(abstract_params(boxed_params(build_model(read(hf)))))) == parameters
    )


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_has_its_rows(name):
    hf, _ = PARAMETERS[name]
    config = read(hf)
    rows = find_family(hf).rows(config)
    assert len({row.theirs for row in rows}) == len(rows)
    found = {}
    for row in rows:
        found.setdefault(row.ours, []).append(row.index)
    for path, shape in shapes(config).items():
        assert found.pop(path) == (list(range(shape[0])) if path.startswith("layers/") else [None]), path
    assert not found


@pytest.mark.parametrize("name", PARAMETERS)
def test_config_goes_out_and_in_again(name):
    config = read(PARAMETERS[name][0])
    family, hf = find_writer(config)
    assert family.read_config(hf) == config


ROPES = {
    "linear": ({"type": "linear", "factor": 4.0}, LinearRope(4.0), 400),
    "dynamic": ({"type": "dynamic", "factor": 2.5}, DynamicRope(2.5, 100), 250),
    "llama3": (
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        Llama3Rope(8.0, 1.0, 4.0, 100),
        100,
    ),
    "yarn": ({"rope_type": "yarn", "factor": 2.0}, YarnRope(2.0, 100), 200),
    "yarn_tuned": (
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 25,
            "beta_fast": 20,
            "truncate": False,
        },
        YarnRope(4.0, 25, beta_fast=20.0, truncate=False),
        100,
    ),
    "yarn_of_deepseek": (
        {"type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_slow": 2.0},
        YarnRope(40.0, 100, beta_slow=2.0, attention_factor=1.0),
        4000,
    ),
    "default": ({"rope_type": "default"}, None, 100),
}


@pytest.mark.parametrize("name", ROPES)
def test_rope_is_read_in_both_forms_and_written(name):
    given, scaling, context = ROPES[name]
    sizes = {**MISTRAL, "max_position_embeddings": 100}
    old = read({**sizes, "rope_theta": 777.0, "rope_scaling": given})
    new = read({**sizes, "rope_theta": 5.0, "rope_parameters": {"rope_theta": 777.0, **given}})
    assert old == new
    assert (old.rope_base, old.rope_scaling, old.context) == (777.0, scaling, context)
    family, hf = find_writer(old)
    assert family.read_config(hf) == old
    del hf["rope_parameters"]
    assert family.read_config(hf) == old


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "'longrope' is not supported"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}, "mrope_section"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differ between types of layers"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor 0.25"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
        ({"max_position_embeddings": None}, "max_position_embeddings is None"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers is '32'"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"layer_types": ["sliding_attention"] * 32}, "layer_types"),
    ],
)
def test_what_is_not_implemented_is_named(fields, message):
    with pytest.raises(UserError, match=message):
        read({**LLAMA3, "rope_scaling": None, **fields})


def test_a_head_that_is_null_or_missing_is_width_over_heads():
    assert read({**MISTRAL, "head_dim": None}).head_size == read(MISTRAL).head_size == 128
    assert read({**MISTRAL, "head_dim": 96}).head_size == 96


PLAIN = DecoderConfig(
    99, width=24, layers=4, heads=4, key_value_heads=2, head_size=10, mlp_width=30, context=64, tied_embeddings=False
)
NEAR = SelfAttentionBlock(window=5)
EXPRESSIBLE = {
    "llama": [
        {},
        {"attention_bias": True, "output_bias": True, "mlp_bias": True, "activation": "gelu_tanh"},
        {"tied_embeddings": True, "rope_scaling": LinearRope(2.0)},
    ],
    "mistral": [{"pattern": (NEAR,)}, {"width": 25}],
    "qwen2": [{"attention_bias": True}, {"attention_bias": True, "pattern": (NEAR, SelfAttentionBlock())}],
    "qwen3": [
        {"query_key_norm": True},
        {"query_key_norm": True, "attention_bias": True, "output_bias": True, "pattern": (SelfAttentionBlock(), NEAR)},
    ],
    "gemma": [{"norm_offset": 1.0, "embedding_scale": 24**0.5, "activation": "gelu_tanh"}],
    "gemma2": [
        {"norm_offset": 1.0, "embedding_scale": 24**0.5, "post_norms": True, "activation": "gelu"},
        {
            "norm_offset": 1.0,
            "embedding_scale": 24**0.5,
            "post_norms": True,
            "query_scale": 13**-0.5,
            "attention_softcap": 50.0,
            "logit_softcap": 30.0,
            "pattern": (NEAR, SelfAttentionBlock()),
        },
    ],
}


@pytest.mark.parametrize(("kind", "fields"), [(kind, fields) for kind, all_ in EXPRESSIBLE.items() for fields in all_])
def test_what_an_architecture_can_express_is_written(kind, fields):
    config = dataclasses.replace(PLAIN, **fields)
    family, hf = find_writer(config)
    assert hf["model_type"] == kind
    assert hf["architectures"] == [f"{kind.title()}ForCausalLM"]
    assert family.read_config(hf) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embedding_scale": 2.0}, "embedding_scale 2.0"),
        ({"post_norms": True}, "post_norms"),
        ({"logit_softcap": 3.0}, "logit_softcap"),
        ({"query_scale": 0.5}, "query_scale 0.5"),
        ({"output_bias": True}, "output_bias on its own"),
        ({"attention_bias": True, "query_key_norm": True}, "attention_bias on its own"),
        ({"attention_bias": True, "mlp_bias": True}, "mlp_bias"),
        ({"pattern": (NEAR, SelfAttentionBlock())}, "windows in some layers"),
        ({"query_key_norm": True, "pattern": (NEAR, SelfAttentionBlock(7))}, "several sizes"),
        ({"norm_offset": 0.5}, "norm_offset 0.5"),
        ({"norm_offset": 1.0}, "embedding_scale 1.0"),
        ({"norm_offset": 1.0, "embedding_scale": 24**0.5, "logit_softcap": 30.0}, "soft-caps"),
        ({"norm_offset": 1.0, "embedding_scale": 24**0.5, "post_norms": True, "query_scale": 0.3}, "query_scale 0.3"),
    ],
)
def test_what_no_architecture_has_is_named(fields, message):
    with pytest.raises(UserError, match=message):
        find_writer(dataclasses.replace(PLAIN, **fields))


def test_layers_of_qwen_slide_from_the_one_that_config_names():
    sliding = {**QWEN2, "use_sliding_window": True, "sliding_window": 99}
    windows = [block.window for block in read(sliding).pattern]
    assert windows == [0] * 21 + [99] * 3
    listed = {**sliding, "layer_types": ["full_attention", "sliding_attention"] * 12}
    assert read(listed).pattern == (SelfAttentionBlock(0), SelfAttentionBlock(99))
    for fields, message in (
        ({"layer_types": ["full_attention"]}, "1 entries for 24 layers"),
        ({"layer_types": ["chunked_attention"] * 24}, "chunked_attention"),
        ({"use_sliding_window": False}, "sliding_window is None"),
    ):
        with pytest.raises(UserError, match=message):
            read({**listed, **fields})
