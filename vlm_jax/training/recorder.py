"""From the step's sums on the device to lines of metrics.jsonl; those of skipped steps left out."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vlm_jax.batch import BatchInfo
from vlm_jax.training.lines import Line
from vlm_jax.training.loop import Event
from vlm_jax.training.loss_policy import LossGuard
from vlm_jax.training.step import Metrics

Sink = Callable[[Line], None]


@dataclasses.dataclass(frozen=True)
class Interval:
    """The steps that one line covers, for figures that other parts add to it."""

    steps: int
    """How many."""
    seconds: float
    """Since the line before, or since the stage began or was resumed."""
    sums: Mapping[str, np.ndarray]
    """Metrics of the step, added up over the steps."""
    event: Event
    """Of the last of them."""
    skipped: int = 0
    """How many of the steps changed nothing."""


Figures = Callable[[Interval], Mapping[str, Any]]
"""Gives further keys of a line."""

_OF_COUNTED_STEPS = ("cross_entropy", "weight", "targets", "correct", "gradient_norm", "update_norm")
"""Sums to which a skipped step adds nothing; its tokens and pictures were read all the same."""


class Recorder:
    """A hook that writes one line a logged step, over all steps since the line before.

    Losses are Σ w·ce / Σ w over those steps; accuracy is the share of targets that the model finds most likely.
    """

    def __init__(
        self,
        guard: LossGuard,
        stage: str,
        sources: Sequence[str],
        every: Sequence[int],
        sinks: Sequence[Sink],
        last_line: Line | None = None,
        figures: Sequence[Figures] = (),
    ) -> None:
        """Args:
        guard: judges every step.
        stage: the stage's name.
        sources: names of the mixture's entries, in the order of the sums.
        every: a line is due at multiples of any of these steps.
        sinks: called with each line.
        last_line: of the part of the run that came before; its totals are continued.
        figures: what else stands in a line; asked in this order, on the host, only when a line is due.
        """
        self._guard, self._stage, self._sources = guard, stage, sources
        self._every, self._sinks, self._figures = every, sinks, figures
        self._pending: list[tuple[int, Metrics, BatchInfo]] = []
        self._settled: list[Mapping[str, np.ndarray]] = []
        self._skipped = 0
        before = last_line or {}
        self._tokens, self._images = before.get("tokens_seen", 0), before.get("images_seen", 0)
        self._seconds = before.get("seconds", 0.0)
        self._clock = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Takes note of a step, unless it was passed over; writes a line if one is due."""
        if event.metrics:
            self._pending.append((event.step, event.metrics, event.info))
        if event.last or event.extras or any(event.step % every == 0 for every in self._every):
            self.write(event)

    def settle(self) -> None:
        """Waits for the steps so far and makes sure that the policy lets all of them pass.

        Raises:
            RunError: if one is at fault and the run is to stop.
            RollBack: if it is to go back to a checkpoint.
        """
        fetched = jax.device_get([metrics for _, metrics, _ in self._pending])
        for (step, _, info), values in zip(self._pending, fetched, strict=True):
            if not self._guard.passes(step, values, info):
                finite = {name: np.where(np.isfinite(value), value, 0) for name, value in values.items()}
                values = finite | {name: np.zeros_like(values[name]) for name in _OF_COUNTED_STEPS}
                self._skipped += 1
            self._settled.append(values)
        self._pending.clear()

    def write(self, event: Event) -> None:
        """Writes a line over all steps since the last one, if there are any; raises like `settle`."""
        self.settle()
        if not self._settled:
            return
        info = event.sum_up(event.info)
        sums = {key: np.sum([values[key] for values in self._settled], axis=0) for key in self._settled[0]}
        counted = max(len(self._settled) - self._skipped, 1)
        now = time.monotonic()
        elapsed, self._clock = now - self._clock, now
        self._seconds += elapsed
        tokens, images = float(sums["tokens"].sum()), float(sums["images"])
        self._tokens += round(tokens)
        self._images += round(images)
        line: Line = {
            "stage": self._stage,
            "step": event.step,
            **_ratios(sums),
            "learning_rate": float(self._settled[-1]["learning_rate"]),
            **{name: float(sums[name]) / counted for name in ("gradient_norm", "update_norm")},
            "sources": {
                name: {
                    **_ratios(
                        {key: np.atleast_1d(sums[key])[i] for key in ("cross_entropy", "weight", "correct", "targets")}
                    ),
                    "tokens": round(float(sums["tokens"][i])),
                    "examples_seen": info.examples_seen.get(name, 0),
                    "epochs_seen": round(info.epochs_seen.get(name, 0.0), 4),
                }
                for i, name in enumerate(self._sources)
            },
            "tokens_per_second": tokens / elapsed,
            "images_per_second": images / elapsed,
            "padding_share": 1 - tokens / float(sums["positions"]),
            "tokens_seen": self._tokens,
            "images_seen": self._images,
            "quarantined": dict(info.quarantined),
            "cut": dict(info.cut),
            **self._guard.figures(event.step),
            "seconds": round(self._seconds, 3),
            **event.extras,
        }
        interval = Interval(len(self._settled), elapsed, sums, event, self._skipped)
        for figures in self._figures:
            line |= figures(interval)
        self._settled.clear()
        self._skipped = 0
        for sink in self._sinks:
            sink(line)


def _ratios(sums: Mapping[str, Any]) -> dict[str, float]:
    """Loss and answer-token accuracy from sums, over all sources; None-like 0 targets give 0."""
    weight, targets = float(np.sum(sums["weight"])), float(np.sum(sums["targets"]))
    return {
        "loss": float(np.sum(sums["cross_entropy"])) / weight if weight else 0.0,
        "accuracy": float(np.sum(sums["correct"])) / targets if targets else 0.0,
    }


def summarise(sums: Mapping[str, np.ndarray], sources: Sequence[str]) -> dict[str, Any]:
    """{"loss", "accuracy", "sources": {name: {"loss", "accuracy"}}} of an objective's sums."""
    parts = {
        name: _ratios({key: sums[key][i] for key in ("cross_entropy", "weight", "correct", "targets")})
        for i, name in enumerate(sources)
    }
    return {**_ratios(sums), "sources": parts}
