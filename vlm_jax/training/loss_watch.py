"""The judgement of a step by its loss, on the device: what a spike is, and what a skipped step leaves as it was.

It is pure: what it depends on is saved with every checkpoint, so a resumed run judges as one that was never stopped.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from vlm_jax.config import LossPolicy
from vlm_jax.parallel import Layout, put_same, replicated

FILE = "loss_watch.json"
"""Name of the watch among a checkpoint's files."""

_LEAST_DEVIATION = 0.01
"""As a share of the mean: a loss that hardly moves makes no spike of a small step."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossWatch:
    """Mean and variance of the loss over the ordinary steps of a stage, later ones weighing more."""

    steps: Int[Array, ""]
    """Ordinary steps so far."""
    mean: Float[Array, ""]
    variance: Float[Array, ""]

    def limit(self, factor: float) -> Float[Array, ""]:
        """The loss above which a step is a spike."""
        deviation = jnp.maximum(jnp.sqrt(self.variance), _LEAST_DEVIATION * jnp.abs(self.mean))
        return self.mean + factor * deviation

    def after(self, loss: Float[Array, ""], span: int) -> "LossWatch":
        """With one more loss: plain mean and variance over the first `span` steps, then a weight of 1 / span each.

        mean' = mean + a·(loss - mean), variance' = (1 - a)·(variance + a·(loss - mean)²), as in T. Finch, "Incremental
        calculation of weighted mean and variance" (2009), section 9.
        """
        weight = 1.0 / jnp.minimum(self.steps + 1, span).astype(jnp.float32)
        distance = loss - self.mean
        mean = self.mean + weight * distance
        variance = (1.0 - weight) * (self.variance + weight * distance * distance)
        return LossWatch(self.steps + 1, mean, variance)

    def to_json(self) -> bytes:
        """Exactly, as a file of a checkpoint."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json.dumps({name: value.item() for name, value in jax.device_get(values).items()}).encode() + b"\n"


def first_watch(policy: LossPolicy, layout: Layout, saved: bytes | None = None) -> LossWatch | None:
    """The watch before a stage's first step, or as a checkpoint keeps it; None where nobody looks for spikes.

    Args:
        policy: of the experiment.
        layout: on whose devices it is kept, on each the same.
        saved: content of the checkpoint's FILE, if it has one.
    """
    if policy.spike == "ignore":
        return None
    values = json.loads(saved) if saved else {"steps": 0, "mean": 0.0, "variance": 0.0}
    steps, mean, variance = np.int32(values["steps"]), np.float32(values["mean"]), np.float32(values["variance"])
    return put_same(LossWatch(steps, mean, variance), replicated(layout))  # type: ignore[arg-type]


def abstract_watch(policy: LossPolicy, layout: Layout) -> LossWatch | None:
    """The same in abstract arrays with their shardings."""
    if policy.spike == "ignore":
        return None
    sharding = replicated(layout)
    whole, real = (jax.ShapeDtypeStruct((), dtype, sharding=sharding) for dtype in (jnp.int32, jnp.float32))
    return LossWatch(whole, real, real)  # type: ignore[arg-type]


def judge(
    policy: LossPolicy, watch: LossWatch | None, metrics: dict[str, Array]
) -> tuple[Bool[Array, ""] | None, LossWatch | None, dict[str, Array]]:
    """Whether a step is to be skipped, the watch after it, and what the host wants to know of both.

    Args:
        policy: of the experiment.
        watch: before the step.
        metrics: of the step, with "loss", "gradient_norm" and "update_norm".

    Returns:
        None in place of a verdict if the policy never skips. Then the metrics "spike_limit", and "spike" and "skipped"
        (1 or 0), as far as the policy makes use of them.
    """
    told: dict[str, Array] = {}
    finite = jnp.array(True)
    for name in ("loss", "gradient_norm", "update_norm"):
        finite &= jnp.isfinite(metrics[name])
    skipped = ~finite if policy.nonfinite == "skip" else jnp.array(False)
    if watch is not None:
        limit = watch.limit(policy.spike_factor)
        spike = finite & (watch.steps >= policy.spike_steps) & (metrics["loss"] > limit)
        watch = choose(finite & ~spike, watch.after(metrics["loss"], policy.spike_steps), watch)
        told |= {"spike": spike.astype(jnp.float32), "spike_limit": limit}
        if policy.spike == "skip":
            skipped |= spike
    if not policy.skips:
        return None, watch, told
    return skipped, watch, told | {"skipped": skipped.astype(jnp.float32)}


def choose(condition: Bool[Array, ""], this: PyTree, other: PyTree) -> PyTree:
    """One of two trees, element by element, so that it is fused with what computes them."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), this, other)
