"""From the step's sums on the device to lines of metrics.jsonl; and the watch for numbers that are not finite."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from vlm_jax.batch import BatchInfo
from vlm_jax.errors import RunError
from vlm_jax.training.loop import Event
from vlm_jax.training.step import Metrics

Line = dict[str, Any]
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


Figures = Callable[[Interval], Mapping[str, Any]]
"""Gives further keys of a line."""

_WATCHED = ("loss", "gradient_norm", "update_norm")
"""A step that made one of these infinite or not a number ends the run, and is not saved."""


class Recorder:
    """A hook that writes one line a logged step, over all steps since the line before.

    Losses are Σ w·ce / Σ w over those steps; accuracy is the share of targets that the model finds most likely.
    """

    def __init__(
        self,
        workdir: epath.Path,
        stage: str,
        sources: Sequence[str],
        every: Sequence[int],
        sinks: Sequence[Sink],
        last_line: Line | None = None,
        figures: Sequence[Figures] = (),
    ) -> None:
        """Args:
        workdir: nonfinite.json is written there.
        stage: the stage's name.
        sources: names of the mixture's entries, in the order of the sums.
        every: a line is due at multiples of any of these steps.
        sinks: called with each line.
        last_line: of the part of the run that came before; its totals are continued.
        figures: what else stands in a line; asked in this order, on the host, only when a line is due.
        """
        self._workdir, self._stage, self._sources = workdir, stage, sources
        self._every, self._sinks, self._figures = every, sinks, figures
        self._pending: list[tuple[int, Metrics, BatchInfo]] = []
        self._settled: list[Mapping[str, np.ndarray]] = []
        before = last_line or {}
        self._tokens, self._images = before.get("tokens_seen", 0), before.get("images_seen", 0)
        self._seconds = before.get("seconds", 0.0)
        self._clock = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Takes note of a step; writes a line if one is due."""
        self._pending.append((event.step, event.metrics, event.info))
        if event.last or event.extras or any(event.step % every == 0 for every in self._every):
            self.write(event)

    def settle(self) -> None:
        """Waits for the steps so far and makes sure that all their numbers are finite.

        Raises:
            RunError: if one is not; nonfinite.json then lists the batch's examples.
        """
        for (step, _, info), values in zip(
            self._pending, jax.device_get([m for _, m, _ in self._pending]), strict=True
        ):
            if not all(np.isfinite(values[name]) for name in _WATCHED):
                self._stop(step, values, info)
            self._settled.append(values)
        self._pending.clear()

    def _stop(self, step: int, values: Mapping[str, np.ndarray], info: BatchInfo) -> None:
        path = self._workdir / "nonfinite.json"
        report = {
            "stage": self._stage,
            "step": step,
            **{name: str(values[name]) for name in _WATCHED},
            "example_ids": [list(row) for row in info.example_ids],
        }
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        raise RunError(
            f"stage {self._stage}, step {step}: loss {values['loss']}, gradient norm {values['gradient_norm']}; the "
            f"batch's examples are listed in {path}; look at them or lower the learning rate, then run again"
        )

    def write(self, event: Event) -> None:
        """Writes a line over all steps since the last one, if there are any; raises like `settle`."""
        self.settle()
        if not self._settled:
            return
        sums = {key: np.sum([values[key] for values in self._settled], axis=0) for key in self._settled[0]}
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
            **{name: float(sums[name]) / len(self._settled) for name in ("gradient_norm", "update_norm")},
            "sources": {
                name: {
                    **_ratios(
                        {key: np.atleast_1d(sums[key])[i] for key in ("cross_entropy", "weight", "correct", "targets")}
                    ),
                    "tokens": round(float(sums["tokens"][i])),
                    "examples_seen": event.info.examples_seen.get(name, 0),
                    "epochs_seen": round(event.info.epochs_seen.get(name, 0.0), 4),
                }
                for i, name in enumerate(self._sources)
            },
            "tokens_per_second": tokens / elapsed,
            "images_per_second": images / elapsed,
            "padding_share": 1 - tokens / float(sums["positions"]),
            "tokens_seen": self._tokens,
            "images_seen": self._images,
            "quarantined": dict(event.info.quarantined),
            "cut": dict(event.info.cut),
            "seconds": round(self._seconds, 3),
            **event.extras,
        }
        interval = Interval(len(self._settled), elapsed, sums, event)
        for figures in self._figures:
            line |= figures(interval)
        self._settled.clear()
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


class MetricsFile:
    """A sink that appends lines to WORKDIR/metrics.jsonl."""

    def __init__(self, path: epath.Path) -> None:
        self._path = path

    def __call__(self, line: Line) -> None:
        """Appends one line."""
        with self._path.open("a") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_metrics(path: epath.Path) -> list[Line]:
    """Lines of a metrics file; half a line at the end, which a kill can leave, is dropped."""
    if not path.exists():
        return []
    lines: list[Line] = []
    for text in path.read_bytes().split(b"\n"):
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def rewind_metrics(path: epath.Path, finished: Sequence[str], stage: str, step: int) -> Line | None:
    """Drops lines of steps that a resumed run will do again.

    Args:
        path: WORKDIR/metrics.jsonl.
        finished: stages that are done.
        stage: where the run goes on, after so many steps.
        step: see above.

    Returns:
        The last line that stays.
    """
    kept = [x for x in read_metrics(path) if x["stage"] in finished or (x["stage"] == stage and x["step"] <= step)]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
    partial.replace(path)
    return kept[-1] if kept else None
