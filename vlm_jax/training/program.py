"""A stage's step, ready to be compiled: for the devices that are here, or for a slice that is not.

Training and rehearsal build it here, so what is rehearsed is what runs.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from data_pipelines.template import Template
from vlm_jax.batch import Batch
from vlm_jax.checkpoints import abstract_params, logical_axes
from vlm_jax.config import Experiment, LossPolicy, Stage
from vlm_jax.losses.next_token import next_token_objective
from vlm_jax.models.vlm import VLM
from vlm_jax.optim import Rule, assign_rules, build_optimizer, split
from vlm_jax.parallel import Layout, batch_shardings, replicated, use_layout
from vlm_jax.parallel.together import compiled_together
from vlm_jax.training.features import FrozenEncoder, encoder_is_frozen
from vlm_jax.training.loop import Step
from vlm_jax.training.loss_watch import abstract_watch, first_watch
from vlm_jax.training.state import TrainState, abstract_optimizer, create_state
from vlm_jax.training.step import Objective, compile_step, train_step


@dataclasses.dataclass(frozen=True)
class StageProgram:
    """What a stage computes, and where: its model, what trains, by which optimiser, and how it all lies on devices."""

    stage: Stage
    model: VLM
    layout: Layout
    rules: Mapping[str, Rule]
    """The rule of every parameter, by name."""
    optimizer: optax.GradientTransformation
    policy: LossPolicy
    encoder: FrozenEncoder | None
    """Where the image encoder is frozen: its own program, which runs before the step."""

    @property
    def one_path(self) -> bool:
        """Whether the model's attention cannot tell branches and blocks apart: examples must have none."""
        return self.model.kernel == "splash"

    @property
    def abstract_params(self) -> dict[str, Any]:
        """Every parameter in full precision: shape, dtype, sharding."""
        return abstract_params(self.model, self.layout)

    def objective(self, sources: int) -> Objective:
        """The stage's objective, of all parameters and a part of a batch whose mixture has so many sources."""
        chunk = self.stage.objective.chunk
        return lambda params, part: next_token_objective(self.model.apply, params, part, sources, chunk)

    def abstract_state(self) -> TrainState:
        """The state in abstract arrays with their shardings, as `create_state` makes it of real ones."""
        trained, frozen = split(self.abstract_params, self.rules)
        compute = self.model.config.precision.compute
        return TrainState(
            step=jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(self.layout)),  # type: ignore[arg-type]
            trained=trained,
            frozen=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, compute, sharding=x.sharding), frozen),
            optimizer=abstract_optimizer(self.optimizer, trained, self.layout, offload=self.stage.offload_optimizer),
            watch=abstract_watch(self.policy, self.layout),
        )

    def create_state(self, params: PyTree) -> TrainState:
        """The state before the first step; `params`, all of them in full precision, are given up."""
        compute = self.model.config.precision.compute
        offload = self.stage.offload_optimizer
        state = create_state(params, self.rules, self.optimizer, compute, self.layout, offload=offload)
        return dataclasses.replace(state, watch=first_watch(self.policy, self.layout))

    def abstract_batch(self) -> Batch:
        """The global batch as the loader gives it, in abstract arrays with their shardings."""
        data, config = self.stage.data, self.model.config
        batch = Batch.spec(
            data.rows,
            data.length,
            images=data.images,
            image_size=config.image_size,
            examples=data.budget.entries,
            preference=data.has_preferences,
            in_sequence=bool(config.prompt_tokens),
            pictures=config.pictures,
        )
        return _placed(batch, self.layout)

    def abstract_encoded(self) -> Batch:
        """The batch that the step takes: `abstract_batch`, with features in place of pictures if `encoder` runs first.

        Call it within `use_layout`.
        """
        batch = self.abstract_batch()
        if self.encoder is None or batch.images is None:
            return batch
        encoded = jax.eval_shape(self.encoder, self.abstract_state().frozen, batch)
        return _placed(encoded, self.layout)

    @functools.cached_property
    def step(self) -> Any:
        """The step under jit: (state, batch) -> (state, metrics); it gives up the state that it is given.

        The batch is one that `encoder`, if there is one, has gone over (`whole_step` does both). Call or lower it
        within `use_layout`.
        """
        pure = functools.partial(
            train_step,
            objective=self.objective(len(self.stage.data.mixture)),
            optimizer=self.optimizer,
            rate=self.stage.optimizer.schedule.build(self.stage.steps),
            accumulation=self.stage.accumulation,
            policy=self.policy,
        )
        return compile_step(pure, self.abstract_state())

    @property
    def whole_step(self) -> Step:
        """The encoder's program, if it has one of its own, and the step, on a batch as the loader gives it."""
        step, encoder = compiled_together(self.step), self.encoder
        return step if encoder is None else lambda state, batch: step(state, encoder(state.frozen, batch))

    def lower(self) -> dict[str, Any]:
        """What a step runs, lowered for the layout's devices: "encoder" if it has a program of its own, and "step"."""
        with use_layout(self.layout):
            batch, state = self.abstract_batch(), self.abstract_state()
            lowered = {}
            if self.encoder is not None and batch.images is not None:
                lowered["encoder"] = self.encoder.lower(state.frozen, batch)
            return lowered | {"step": self.step.lower(state, self.abstract_encoded())}


def build_program(experiment: Experiment, index: int, layout: Layout, template: Template | None = None) -> StageProgram:
    """The program of a stage.

    Args:
        experiment: what is run.
        index: of the stage.
        layout: where; its devices may be those of a slice that is not there.
        template: of the stage's examples, where it is not the experiment's own.

    Raises:
        UserError: if the stage's tables, its optimiser or its examples do not fit the model.
    """
    stage, platform = experiment.stages[index], layout.mesh.devices.flat[0].platform
    model = VLM(experiment.model, kernel=experiment.kernel(stage, platform, template))
    rules = assign_rules(stage.optimizer.table, abstract_params(model))
    optimizer = build_optimizer(
        stage.optimizer, rules, stage.steps, logical_axes(model), offload=stage.offload_optimizer
    )
    encoder = FrozenEncoder(model, layout) if encoder_is_frozen(rules) else None
    return StageProgram(stage, model, layout, rules, optimizer, experiment.loss_policy, encoder)


def _placed(batch: Batch, layout: Layout) -> Batch:
    shardings = batch_shardings(batch, layout)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), batch, shardings)
