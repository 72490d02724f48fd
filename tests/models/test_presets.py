import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from vlm_jax.batch import Batch
from vlm_jax.models.abstract import boxed_params
from vlm_jax.models.flops import forward_flops
from vlm_jax.models.presets import ADAPTERS, PRESETS, with_adapter
from vlm_jax.models.vlm import VLM, VLMConfig
from vlm_jax.models.work import Work
from vlm_jax.serialise import from_plain, to_plain


def boxed_parameters(config):
    """Shapes of all parameters with their axis names; nothing is allocated."""
    rows = Batch.spec(2, config.prompt_tokens + 8, images=1, image_size=config.image_size)
    return jax.eval_shape(lambda batch: VLM(config).init(jax.random.key(0), batch), rows)


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "billions", "decoder", "encoder"),
    [("0.2b", 0.2, 134.5e6, 21.7e6), ("2b", 2.0, 1711e6, 412e6), ("8b", 8.0, 8030e6, 412e6)],
)
def test_preset_has_the_size_of_its_name_and_its_parts_those_of_their_models(name, billions, decoder, encoder):
    """Published: SmolLM2-135M and -1.7B, Llama-3.1-8B; ViT-S/14, and SigLIP-So400m without its pooling head."""
    params = nn.meta.unbox(boxed_parameters(PRESETS[name]()))["params"]
    assert float(f"{count(params) / 1e9:.1g}") == billions
    assert count(params["decoder"]) == pytest.approx(decoder, rel=0.01)
    assert count(params["encoder"]) == pytest.approx(encoder, rel=0.01)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_runs_in_the_abstract_at_any_vocabulary(name):
    config = PRESETS[name](400)
    rows = Batch.spec(2, config.prompt_tokens + 8, images=1, image_size=config.image_size)
    params = nn.meta.unbox(boxed_parameters(config))
    forward = jax.eval_shape(VLM(config).apply, params, rows)
    assert forward.logits.shape == (2, config.prompt_tokens + 8, 400)
    assert forward.logits.dtype == jnp.float32
    hidden, cache = jax.eval_shape(
        lambda p, b: VLM(config).apply(p, b, config.prompt_tokens + 20, method="prefill"), params, rows
    )
    assert hidden.shape[1] == config.prompt_tokens + 8
    assert cache.length == config.prompt_tokens + 20


def check_axes(boxed):
    """Every dimension of every parameter has its logical axis."""
    specs = nn.get_partition_spec(boxed)
    shapes = nn.meta.unbox(boxed)
    leaves = jax.tree_util.tree_flatten_with_path(shapes)[0]
    names = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))
    assert len(leaves) == len(names)
    for (path, shape), spec in zip(leaves, names, strict=True):
        where = jax.tree_util.keystr(path)
        assert len(spec) == len(shape.shape), where
        # Only small dimensions of kernels (patch side, colours, 3x3 windows) and the grid of positions are not split.
        unnamed = [size for size, axis in zip(shape.shape, spec, strict=True) if axis is None]
        assert all(size <= 37 for size in unnamed), where
        assert len({axis for axis in spec if axis}) == sum(axis is not None for axis in spec), where
        assert ("layers" in spec) == ("layers" in where or "['blocks']" in where), where


@pytest.mark.parametrize("name", PRESETS)
def test_every_dimension_of_every_parameter_has_its_logical_axis(name):
    check_axes(boxed_parameters(PRESETS[name]())["params"])


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_fits_every_size_with_as_many_tokens_as_asked_for(name):
    for size in ("mu", "0.2b", "2b", "8b"):
        config = with_adapter(PRESETS[size](), name, 16)
        features = config.encoder.features
        assert config.prompt_tokens in (0, 16) or name in ("mlp", "hybrid")  # they cannot choose any number
        assert config.adapter.memory_tokens(features) in (0, 16, features.count)
        assert forward_flops(config, Work(slots=1.0), features_given=True) > 0
        assert from_plain(VLMConfig, to_plain(config)) == config
    check_axes(boxed_params(VLM(with_adapter(PRESETS["mu"](), name)))["adapter"])
