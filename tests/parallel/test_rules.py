"""The table of rules: it knows every axis that models use, and refuses what cannot be."""

import ast
import dataclasses
import types
from pathlib import Path

import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from vlm_jax import models
from vlm_jax.checkpoints import abstract_params, logical_axes
from vlm_jax.config import load_experiment
from vlm_jax.errors import UserError
from vlm_jax.models.presets import ADAPTERS, PRESETS, with_adapter
from vlm_jax.models.vlm import VLM
from vlm_jax.overrides import apply_overrides
from vlm_jax.parallel import Layout, MeshConfig
from vlm_jax.parallel.rules import ACTIVATIONS, AXES, TABLE, resolve_rules

MU = Path(__file__).parents[2] / "experiments" / "mu.py"
MODELS = {name: preset() for name, preset in PRESETS.items()}
MODELS |= {f"mu with {name}": with_adapter(PRESETS["mu"](), name) for name in ADAPTERS}


def absent(data=1, fsdp=1, tensor=1, sequence=1, **rules) -> Layout:
    """A layout over devices that are not there."""
    mesh = AbstractMesh((data, fsdp, sequence, tensor), AXES, axis_types=(AxisType.Auto,) * 4)
    return Layout(mesh, resolve_rules(rules))


@pytest.mark.parametrize("name", MODELS)
def test_every_axis_of_a_parameter_has_a_rule(name):
    """A misspelt axis would leave a parameter whole on every device, without a word."""
    axes = {axis for names in logical_axes(VLM(MODELS[name])).values() for axis in names}
    assert axes - {None} <= {axis for axis, _ in TABLE}


def test_every_axis_of_an_activation_is_checked_before_a_model_is_built():
    """What models say of their activations, as it stands in their code."""
    found = set()
    for file in Path(models.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Tuple)
                and len(node.elts) > 2
                and all(isinstance(e, ast.Constant) for e in node.elts)
            ):
                names = tuple(entry.value for entry in node.elts)
                if names[0] in ("batch", "pictures"):
                    found.add(names)
    assert found == set(ACTIVATIONS)


@pytest.mark.parametrize("name", MODELS)
def test_the_encoder_and_the_decoder_share_no_axis_but_those_of_layers(name):
    """So that rules for the one change nothing in the other."""
    axes = {"encoder": set(), "decoder": set()}
    for parameter, names in logical_axes(VLM(MODELS[name])).items():
        axes.setdefault(parameter.split("/")[0], set()).update(names)
    assert axes["encoder"] & axes["decoder"] <= {None, "layers", "head_size", "norm"}


def test_the_encoder_is_shared_over_pictures_and_its_parameters_over_fsdp():
    layout = absent(2, 2, 2, 2)
    assert layout.sharding("pictures", "patches", "act_embed").spec == PartitionSpec(AXES, None, None)
    params = abstract_params(VLM(PRESETS["mu"]()), layout)["encoder"]["layers"]
    assert params["mlp"]["up"]["kernel"].sharding.spec == PartitionSpec(None, "fsdp", None)


def test_a_rule_is_replaced_by_the_experiment():
    plain, other = absent(), absent(mlp=("tensor", "sequence"), length=())
    assert plain.axes("mlp") == ("tensor",)
    assert other.sharding("embed", "mlp").spec == PartitionSpec("fsdp", ("tensor", "sequence"))
    assert other.sharding("batch", "length").spec == PartitionSpec(("data", "fsdp"), None)


def test_a_rule_is_replaced_on_the_command_line():
    arguments = ["--mesh.fsdp", "2", "--mesh.rules", "vocab", "fsdp", "tensor"]
    mesh = apply_overrides(load_experiment(str(MU)), arguments).mesh
    assert mesh.rules == {"vocab": ("fsdp", "tensor")}
    experiment = dataclasses.replace(load_experiment(str(MU)), mesh=mesh)
    with pytest.raises(UserError, match=r"unknown override --mesh.rules.vocab"):
        apply_overrides(experiment, ["--mesh.rules.vocab", "tensor"])


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"haeds": ("tensor",)}, "no model has an axis 'haeds'; name one of act_embed"),
        ({"heads": ("tensr",)}, "heads shall go to 'tensr'; the mesh's axes are data, fsdp, sequence, tensor"),
        ({"mlp": ("tensor", "tensor")}, "mlp names a mesh axis twice"),
        ({"act_vision_heads": ("tensor",)}, "pictures and act_vision_heads of one array would both .* over tensor"),
        ({"length": ("fsdp",)}, "batch and length of one array would both be split over fsdp"),
    ],
)
def test_rules_that_cannot_be_are_a_user_error(rules, message):
    with pytest.raises(UserError, match=f"mesh.rules: {message}"):
        MeshConfig(rules=types.MappingProxyType(rules))


def test_a_mesh_axis_twice_for_a_parameter_is_a_user_error():
    with pytest.raises(UserError, match=r"mesh\.rules: mlp and embed of one array would both be split over fsdp"):
        abstract_params(VLM(PRESETS["mu"]()), absent(fsdp=2, mlp=("fsdp",)))
