"""What families of LLMs and of image encoders share: rows of a linear map, and how config.json is read and written."""

import math
from collections.abc import Mapping
from typing import Any, get_args

from vlm_jax.convert.names import Linear, Reshape, Row, Shape
from vlm_jax.errors import UserError
from vlm_jax.models.layers import Activation

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "squared_relu",
}
"""Their names of non-linearities and ours; the first of several is the one that is written."""

_THEIR_ACTIVATION = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
assert _THEIR_ACTIVATION.keys() == {*get_args(Activation)}


def affine(theirs: str, ours: str, inputs: Shape, outputs: Shape, *, bias: bool = True) -> list[Row]:
    """Rows of a linear map."""
    rows = [Row(f"{theirs}.weight", f"{ours}/kernel", Linear(inputs, outputs))]
    return rows + [Row(f"{theirs}.bias", f"{ours}/bias", Reshape((math.prod(outputs),), outputs))] * bias


def whole_number(fields: Mapping[str, Any], name: str) -> int:
    """A positive whole number of config.json.

    Raises:
        UserError: if it is none.
    """
    value = fields.get(name)
    if type(value) is not int or value < 1:
        raise UserError(f"config.json: {name} is {value!r}; it must be a positive whole number")
    return value


def read_activation(fields: Mapping[str, Any], name: str = "hidden_act") -> Activation:
    """The non-linearity that the field `name` asks for.

    Raises:
        UserError: if our layers do not have it.
    """
    theirs = fields.get(name)
    if theirs not in ACTIVATIONS:
        raise UserError(f"config.json: {name} is {theirs!r}; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[theirs]


def write_activation(activation: Activation) -> str:
    """Their name of a non-linearity."""
    return _THEIR_ACTIVATION[activation]


def refuse(architecture: str, obstacles: Mapping[str, Any]) -> None:
    """Raises a UserError for the first obstacle, {what stands in the way: whether it does}, that is there."""
    for obstacle, present in obstacles.items():
        if present:
            raise UserError(f"{architecture} does not have {obstacle}")
