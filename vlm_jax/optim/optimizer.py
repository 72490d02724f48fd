"""One optax chain from a config: clip, any optax optimiser, decay and rates from the table, schedule."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import optax
from flax import traverse_util
from jaxtyping import Array, Int

from vlm_jax.errors import UserError
from vlm_jax.optim.muon import Axes, dimension_numbers
from vlm_jax.optim.streaming import STREAMED, streamed
from vlm_jax.optim.table import Rule


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate over a stage: linear warm-up, then a shape down to `final` of the peak."""

    peak: float = 1e-3
    warmup: int = 0
    """Steps from 0 to the peak."""
    shape: Literal["constant", "linear", "cosine", "warmup_stable_decay"] = "cosine"
    decay: float = 0.2
    """warmup_stable_decay: the last share of the steps, in which the rate falls linearly."""
    final: float = 0.0
    """Where the rate falls to by the stage's end, as a share of the peak."""

    def build(self, steps: int) -> optax.Schedule:
        """The rate as a function of the step, for a stage of so many steps."""
        after = max(steps - self.warmup, 1)
        floor = self.peak * self.final
        falling = optax.linear_schedule(self.peak, floor, max(int(after * self.decay), 1))
        stable = after - max(int(after * self.decay), 1)
        shapes = {
            "constant": optax.constant_schedule(self.peak),
            "linear": optax.linear_schedule(self.peak, floor, after),
            "cosine": optax.cosine_decay_schedule(self.peak, after, self.final),
            "warmup_stable_decay": optax.join_schedules([optax.constant_schedule(self.peak), falling], [stable]),
        }
        rising = optax.linear_schedule(0.0, self.peak, max(self.warmup, 1))
        return optax.join_schedules([rising, shapes[self.shape]], [self.warmup])


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Which optimiser, its arguments, the schedule, the clip, and the table of what trains."""

    name: str = "adam"
    """Any optimiser of optax or optax.contrib by its name there, such as adam, lion, adafactor, sgd, muon."""
    arguments: Mapping[str, bool | int | float] = dataclasses.field(default_factory=dict)
    """Its keyword arguments besides the learning rate, such as b2 of adam."""
    schedule: Schedule = Schedule()
    clip: float = 1.0
    """Largest global norm of the gradient; 0 = no clipping."""
    table: tuple[Rule, ...] = (Rule(".*"),)


def build_optimizer(
    config: OptimizerConfig,
    rules: Mapping[str, Rule],
    steps: int,
    axes: Mapping[str, Axes] | None = None,
    *,
    offload: bool = False,
) -> optax.GradientTransformation:
    """The chain for the trained parameters of one stage.

    Weight decay is decoupled and multiplied by the learning rate, so "adam" with decay in the table is AdamW.

    Args:
        config: of the stage.
        rules: the rule of every parameter (`table.assign_rules`).
        steps: length of the stage, for the schedule.
        axes: logical axes of every parameter by name; muon needs them to tell inputs from outputs, and offloading to
            know what is stacked by layers.
        offload: moments may lie on the host (`streaming`).

    Raises:
        UserError: if optax has no such optimiser, it does not take the arguments, or cannot be offloaded.
    """
    make = getattr(optax, config.name, None) or getattr(optax.contrib, config.name, None)
    if make is None:
        raise UserError(
            f"optimizer.name: optax has no optimiser {config.name!r}; try adam, lion, adafactor, sgd or muon"
        )
    extra = {"muon_weight_dimension_numbers": dimension_numbers(axes)} if axes and config.name == "muon" else {}
    try:
        direction = make(learning_rate=1.0, **config.arguments, **extra)
    except TypeError as error:
        raise UserError(f"optimizer.arguments: optax.{config.name} does not take them: {error}") from None
    if offload:
        if config.name not in STREAMED:
            raise UserError(
                f"offload-optimizer: {config.name} does not update number by number, so its state cannot come to the "
                f"device in parts; leave it off, or choose {', '.join(STREAMED)}"
            )
        assert axes is not None, "offloading needs the logical axes"
        direction = streamed(direction, axes)
    rate = config.schedule.build(steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
        direction,
        _decay_and_rate(rules),
        optax.scale_by_schedule(rate),
    )


def at_step(state: Any, step: Int[Array, ""]) -> Any:
    """The optimiser's state with its schedule at this step of the stage: a step that is skipped uses up its rate."""
    return optax.tree_utils.tree_set(state, _of_schedule, count=step)


def _of_schedule(path: Any, value: Any) -> bool:
    return getattr(path[-1], "tuple_name", "") == "ScaleByScheduleState"


def _decay_and_rate(rules: Mapping[str, Rule]) -> optax.GradientTransformation:
    """(update - decay * parameter) * rate of its rule, parameter by parameter."""

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        flat, weights = (traverse_util.flatten_dict(tree, sep="/") for tree in (updates, params))
        for name, value in flat.items():
            rule = rules[name]
            if rule.weight_decay:
                value = value - rule.weight_decay * weights[name].astype(value.dtype)
            flat[name] = value * jnp.asarray(rule.rate, value.dtype)
        return traverse_util.unflatten_dict(flat, sep="/"), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
