"""What the host makes of steps that were at fault: events, their limits, and the way back to a checkpoint."""

import json
import logging
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from etils import epath

from vlm_jax.batch import BatchInfo
from vlm_jax.checkpoints.retry import append_line
from vlm_jax.config import LossPolicy
from vlm_jax.errors import RunError
from vlm_jax.parallel.processes import gather_json, is_first, of_first
from vlm_jax.training.lines import read_lines, write_lines

log = logging.getLogger(__name__)

Event = dict[str, Any]

_WATCHED = ("loss", "gradient_norm", "update_norm")
"""A step that made one of these infinite or not a number is at fault."""

_DONE = {"stop": "the run stops", "skip": "its step changes nothing", "roll_back": "rolling back to do without it"}


class RollBack(Exception):  # noqa: N818
    """The newest checkpoint is to be restored, and the steps after it done again without the one at fault."""


class LossGuard:
    """Judges steps by their metrics as the policy says, in every process alike, and keeps WORKDIR/events.jsonl.

    A line of it is an event: "event" (stop, skip, roll_back), "cause" (nonfinite, spike), "stage", "step", the values,
    and "example_ids", rows of the first process first. What was rolled back once is left out from then on, so the file
    is read again when the run is resumed.
    """

    def __init__(
        self, policy: LossPolicy, workdir: epath.Path, stage: str, done: int = 0, retry_seconds: float = 0.0
    ) -> None:
        """Args:
        policy: of the experiment.
        workdir: of the run.
        stage: the stage's name.
        done: steps of it that are done; skips after it will be met again, and are forgotten.
        retry_seconds: how long a full disk is put up with.
        """
        self._policy, self._workdir, self._stage, self._retry_seconds = policy, workdir, stage, retry_seconds
        self._path = workdir / "events.jsonl"
        events = [event for event in of_first(read_lines(self._path)) if not self._comes_again(event, done)]
        mine = [event for event in events if event.get("stage") == stage]
        self.left_out: Collection[int] = frozenset(e["step"] for e in mine if e["event"] == "roll_back")
        """Steps to pass over."""
        self._skipped = {e["step"] for e in mine if e["event"] == "skip"} | set(self.left_out)
        if self._path.exists() and is_first():
            write_lines(self._path, events)

    def _comes_again(self, event: Event, done: int) -> bool:
        return event.get("stage") == self._stage and event["event"] != "roll_back" and event["step"] > done

    def skipped_until(self, step: int) -> int:
        """Steps of the stage, up to this one, that changed nothing."""
        return sum(skipped <= step for skipped in self._skipped)

    def passes(self, step: int, values: Mapping[str, np.ndarray], info: BatchInfo) -> bool:
        """Whether a step counts: False if it was skipped.

        Args:
            step: its number.
            values: its metrics.
            info: of its batch.

        Raises:
            RunError: if the policy says stop, or there are too many such steps.
            RollBack: if the policy says so.
        """
        if not all(np.isfinite(values[name]) for name in _WATCHED):
            cause, action = "nonfinite", str(self._policy.nonfinite)
        elif values.get("spike", 0):
            cause, action = "spike", str(self._policy.spike)
        else:
            return True
        event = self._note(action, cause, step, values, info)
        if action == "stop":
            raise self._stop(event)
        self._skipped.add(step)
        self._check_limits(step)
        if action == "roll_back":
            raise RollBack
        return False

    def _note(self, action: str, cause: str, step: int, values: Mapping[str, np.ndarray], info: BatchInfo) -> Event:
        of_processes = gather_json(info.example_ids)
        # Processes that hold the same rows give the same ids.
        rows = [row for i, own in enumerate(of_processes) if own not in of_processes[:i] for row in own]
        names = (*_WATCHED, *(("spike_limit",) if "spike_limit" in values else ()))
        event: Event = {
            "event": action,
            "cause": cause,
            "stage": self._stage,
            "step": step,
            **{name: _number(values[name]) for name in names},
            "example_ids": rows,
        }
        ids = [name for row in rows for name in row]
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more, see {self._path}" if len(ids) > 8 else "")
        if is_first():
            log.warning("stage %s, step %d: %s; %s; examples %s", self._stage, step, _told(event), _DONE[action], shown)
            append_line(self._path, json.dumps(event, ensure_ascii=False), self._retry_seconds)
        return event

    def _stop(self, event: Event) -> RunError:
        path = self._path
        if event["cause"] == "nonfinite":
            path = self._workdir / "nonfinite.json"
            report = {
                key: str(x) if key in _WATCHED else x for key, x in event.items() if key not in ("event", "cause")
            }
            if is_first():
                path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        return RunError(
            f"stage {self._stage}, step {event['step']}: {_told(event)}; the batch's examples are listed in {path}; "
            "look at them; then run again, with another loss-policy, or with a lower learning rate and "
            "--allow-config-change"
        )

    def _check_limits(self, step: int) -> None:
        in_a_row = next(n for n in range(1, step + 2) if step - n not in self._skipped)
        limits = (
            (in_a_row, self._policy.most_in_a_row, " in a row", "most-in-a-row"),
            (self.skipped_until(step), self._policy.most, "", "most"),
        )
        for count, most, how, field in limits:
            if count > most:
                raise RunError(
                    f"stage {self._stage}: {count} steps{how} were at fault, the last of them step {step}, and "
                    f"loss-policy.{field} is {most}; look at the examples listed in {self._path}; then raise it, or "
                    "lower the learning rate with --allow-config-change"
                )

    def figures(self, step: int) -> dict[str, int]:
        """What a line of metrics.jsonl says of them, unless the policy is never to skip one."""
        return {"skipped": self.skipped_until(step)} if self._policy.skips or self._policy.rolls_back else {}


def _number(value: np.ndarray) -> float | str:
    """JSON has no name for what is not finite."""
    return float(value) if math.isfinite(value) else str(float(value))


def _told(event: Event) -> str:
    if event["cause"] == "spike":
        return f"loss {event['loss']:.6g}, a spike (the limit was {event['spike_limit']:.6g})"
    return ", ".join(f"{name.replace('_', ' ')} {event[name]}" for name in _WATCHED)
