"""Parameters that are loaded stay as they are; those that are missing are drawn as in a full draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import traverse_util

from vlm_jax.checkpoints import (
    abstract_params,
    initialise_missing,
    keep_masters,
    load_params,
    step_directory,
    widen,
)
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.errors import UserError


def flat(tree):
    return traverse_util.flatten_dict(dict(tree), sep="/")


@pytest.mark.parametrize("given", ["encoder", "decoder/layers", "nothing", "everything"])
def test_what_is_missing_is_drawn_as_if_nothing_had_been_loaded(tiny, given):
    everything = flat(tiny.params)
    prefix = {"nothing": "-", "everything": ""}.get(given, given)
    loaded = {name: leaf + 7 for name, leaf in everything.items() if name.startswith(prefix)}
    found = flat(initialise_missing(tiny.model, tiny.layout, 0, traverse_util.unflatten_dict(loaded, sep="/")))
    assert set(found) == set(everything)
    for name, leaf in found.items():
        np.testing.assert_array_equal(leaf, loaded.get(name, everything[name]))
        assert leaf.sharding == flat(tiny.abstract)[name].sharding
        assert leaf.dtype == everything[name].dtype


def test_another_seed_draws_other_parameters(tiny):
    other = flat(initialise_missing(tiny.model, tiny.layout, 1))
    kernels = [name for name in other if name.endswith("kernel")]
    assert kernels
    assert not any(np.array_equal(other[name], flat(tiny.params)[name]) for name in kernels)


def test_abstract_parameters_are_those_that_are_drawn(tiny):
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), abstract_params(tiny.model))
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), tiny.params)


def test_parameters_come_back_bit_for_bit_into_their_places(tiny, step):
    found = flat(load_params(step, tiny.abstract))
    for name, leaf in flat(tiny.params).items():
        np.testing.assert_array_equal(found[name], leaf)
        assert found[name].sharding == flat(tiny.abstract)[name].sharding


def test_a_workdir_means_its_newest_step_of_the_last_stage(workdir, step):
    assert step_directory(str(workdir)) == step
    later = workdir / "checkpoints" / "instruct" / "2"
    step.with_name("2").rename(step.with_name("100"))
    assert step_directory(str(workdir)).name == "100"
    later.parent.mkdir()
    step.rename(later)
    assert step_directory(str(workdir)) == later
    assert step_directory(str(later)) == later


def test_a_copied_step_directory_needs_nothing_else(tiny, workdir, step, tmp_path):
    elsewhere = step.rename(tmp_path / "elsewhere")
    workdir.rename(tmp_path / "gone")
    model = load_model(str(elsewhere))
    for name, leaf in flat(tiny.params).items():
        np.testing.assert_array_equal(flat(model.params)[name], leaf)
    assert model.experiment == tiny.experiment
    assert model.processor.prompt_tokens == tiny.experiment.model.prompt_tokens
    assert model.processor.tokenizer.decode(model.processor.tokenizer.encode("Какой цвет?")) == "Какой цвет?"
    with pytest.raises(UserError):
        load_model(str(workdir))


def test_damaged_masters_are_named(tmp_path):
    full = {"encoder": {"kernel": jnp.linspace(0.0, 1.0, 64).reshape(8, 8)}}
    narrow = jax.tree.map(lambda x: x.astype("bfloat16"), full)
    masters = epath.Path(tmp_path) / "masters" / "captions"
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), full)
    keep_masters(masters, full)
    assert (widen(narrow, abstract, masters)["encoder"]["kernel"] == full["encoder"]["kernel"]).all()
    sums = masters.with_name("captions.checksums.json")
    sums.write_text(sums.read_text().replace("float32:", "float32:0"))
    with pytest.raises(UserError, match=r"masters/captions: damaged"):
        widen(narrow, abstract, masters)
