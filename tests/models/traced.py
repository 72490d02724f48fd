"""Matrix products of a traced program, counted one by one: the independent side of tests of FLOPs."""

import dataclasses
import functools
import math
from typing import Any

import jax

from vlm_jax.batch import Batch
from vlm_jax.losses.next_token import next_token_objective
from vlm_jax.models.abstract import boxed_params
from vlm_jax.models.vlm import VLM
from vlm_jax.optim import OptimizerConfig, Rule, assign_rules, build_optimizer, split
from vlm_jax.parallel import abstract_params
from vlm_jax.training.state import TrainState
from vlm_jax.training.step import train_step


@dataclasses.dataclass(frozen=True)
class Product:
    """One matrix product or convolution of a program."""

    flops: float
    """Two for each multiplication, as often as loops run it."""
    shape: tuple[int, ...]
    """Of the result."""


def products(jaxpr: Any, times: float = 1.0) -> list[Product]:
    """All products of a program; loops count as often as they run."""
    found = []
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            found.append(Product(2.0 * times * math.prod(out) * math.prod(left[i] for i in contracted), out))
        elif name == "conv_general_dilated":
            found.append(convolution(equation, times))
        inner = times * (equation.params["length"] if name == "scan" else 1)
        for value in equation.params.values():
            for program in value if isinstance(value, tuple | list) else (value,):
                program = getattr(program, "jaxpr", program)
                if hasattr(program, "eqns"):
                    found += products(program, inner)
    return found


def convolution(equation: Any, times: float) -> Product:
    """Each point of the result reads a kernel's points, less those that dilation fills with zeros."""
    out, kernel = equation.outvars[0].aval.shape, equation.invars[1].aval.shape
    axes = equation.params["dimension_numbers"].rhs_spec
    reads = math.prod(kernel) / kernel[axes[0]]
    zeros = math.prod(equation.params["lhs_dilation"])
    return Product(2.0 * times * math.prod(out) * reads / zeros, out)


@functools.cache
def abstract(config: Any) -> Any:
    """Parameters without memory."""
    return abstract_params(boxed_params(VLM(config)))


def trace_step(config: Any, table: tuple[Rule, ...], rows: int, length: int, images: int) -> Any:
    """The jaxpr of a whole training step, on abstract arrays."""
    params = abstract(config)
    rules = assign_rules(table, params)
    optimizer_config = OptimizerConfig(table=table)
    optimizer = build_optimizer(optimizer_config, rules, 100)
    trained, frozen = split(params, rules)
    counter = jax.ShapeDtypeStruct((), "int32")
    state = TrainState(counter, trained, frozen, jax.eval_shape(optimizer.init, trained))
    batch = Batch.spec(
        rows,
        length,
        images=images,
        image_size=config.image_size,
        in_sequence=config.prompt_tokens > 0,
        pictures=config.pictures,
    )
    pure = functools.partial(
        train_step,
        objective=functools.partial(next_token_objective, VLM(config).apply, sources=1),
        optimizer=optimizer,
        rate=optimizer_config.schedule.build(100),
    )
    return jax.make_jaxpr(pure)(state, batch).jaxpr
