"""Several processes that train one model together: how they come together, agree, and part.

Every process runs the same program on the same global arrays (jax's multi-controller model), with devices of its own.
Like the devices, membership belongs to the process as a whole, so it is asked for by functions here.
"""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax._src import cloud_tpu_init, clusters  # jax tells nowhere else what it finds
from jax.experimental import multihost_utils

from vlm_jax.errors import Preempted, RunError, UserError, refused_by_disk, shown
from vlm_jax.parallel.meeting import PATIENCE_S, Place, meet
from vlm_jax.parallel.star import Star

SILENCE_S = 30.0
"""A process that gives no sign of life for longer is given up, and the run ends."""
_JAX_SILENCE_S = 60
"""The same of jax's own watch, which ends a process by a trap; ours is to be first."""
_LEAST_FOR_JAX_S = 10
"""For jax to join the processes that have met, of which one may have come at the last moment."""
_VERDICT_S = 10.0
"""After a failed collective: how long to wait for the news that another process is the reason."""

_star: Star | None = None


def find_place(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Place | None:
    """Which process this is: as told, else by the environment, else what a TPU slice says of itself.

    Args:
        coordinator: HOST:PORT of process 0; else JAX_COORDINATOR_ADDRESS.
        count: number of processes; else JAX_NUM_PROCESSES.
        index: of this one; else JAX_PROCESS_ID.
        environment: the variables.

    Returns:
        None where one process has all devices.

    Raises:
        UserError: if only some of the three are given, or they make no sense.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    words: list[Any] = [
        environment.get(name) if value is None else value
        for name, value in zip(names, (coordinator, count, index), strict=True)
    ]
    if any(word is not None for word in words):
        if None in words:
            flags = ("--coordinator", "--processes", "--process")
            missing = " and ".join(flag for flag, word in zip(flags, words, strict=True) if word is None)
            raise UserError(f"{missing} is missing: several processes need all of {', '.join(flags)}")
        place = Place(words[0], *(_number(name, word) for name, word in zip(names[1:], words[1:], strict=True)))
    elif cloud_tpu_init.running_in_cloud_tpu_vm:
        place = _place_in_slice()
    else:
        return None
    return place if place.count > 1 else None


def _number(name: str, word: Any) -> int:
    try:
        return int(word)
    except ValueError:
        raise UserError(f"{name}={word}: give a number") from None


def _place_in_slice() -> Place:
    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, int(PATIENCE_S))
    except Exception as error:
        raise UserError(
            f"this TPU VM does not say which hosts belong to its slice ({type(error).__name__}: {error}); give "
            "--coordinator HOST:PORT, --processes and --process (1 and 0 if it is the only one)"
        ) from None
    address, count, index, _ = found
    return Place(address or "localhost:8482", count or 1, index or 0)


@contextlib.contextmanager
def joined(place: Place | None, silence_s: float = SILENCE_S) -> Iterator[None]:
    """Inside, this process is one of several; None = it is alone.

    Whichever way one of them ends, all others end too, and say why: by its error, or that it died or fell silent.

    Args:
        place: which it is.
        silence_s: a process that gives no sign of life for longer is given up.

    Raises:
        UserError: if they do not come together, or a disk is full.
        RunError: if another of them has ended; what was raised here because of it is left out.
    """
    if place is None:
        yield
        return
    join(place, silence_s)
    try:
        yield
    except Preempted:
        leave()
        raise
    except (UserError, RunError, KeyboardInterrupt) as error:
        report_end(str(error) or "it was interrupted")
        raise
    except BaseException as error:
        if refused := refused_by_disk(error):
            report_end(str(refused))
            raise refused from error
        _end_for_unknown_reason(error)
    leave()


def join(place: Place, silence_s: float = SILENCE_S) -> None:
    """Comes together with the other processes; before anything touches a device.

    Raises:
        UserError: if they do not come, or do not agree on who they are.
    """
    global _star
    began = time.monotonic()
    met = meet(place)
    left = max(_LEAST_FOR_JAX_S, PATIENCE_S - (time.monotonic() - began))
    try:
        jax.distributed.initialize(
            met.coordinator,
            place.count,
            place.index,
            cluster_detection_method="deactivate",
            coordinator_bind_address=met.coordinator if place.loopback else None,
            initialization_timeout=round(left),
            heartbeat_timeout_seconds=_JAX_SILENCE_S,
            shutdown_timeout_seconds=int(SILENCE_S),
        )
    except RuntimeError as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"process {place.index} could not join the others at {met.coordinator} ({first}); they must reach each "
            "other on all ports"
        ) from None
    _star = Star(place.index, met, silence_s, lambda _: os._exit(1))


def leave() -> None:
    """Parts from the others when all have come to their end."""
    global _star
    if _star is not None:
        _star.gather(None, last=True)
        with contextlib.suppress(RuntimeError):  # all work is done
            jax.distributed.shutdown()
        _star.close()
        _star = None


def report_end(why: str) -> None:
    """Tells the others that this process is about to end before its work is done, and why; at most some seconds."""
    if _star is not None:
        _star.tell(why)


def _end_for_unknown_reason(error: BaseException) -> None:
    """An operation that needs all processes fails in any way when one is gone; exits of jax would wait for it."""
    assert _star is not None
    if verdict := _star.verdict(_VERDICT_S):
        raise RunError(verdict) from None
    traceback.print_exception(error)
    first = (str(error).strip().splitlines() or [""])[0][:200]
    _star.tell(f"{type(error).__name__}: {first}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def is_first() -> bool:
    """Whether this process is the one that writes what only one can write."""
    return _star is None or _star.index == 0


def count() -> int:
    """How many processes there are."""
    return 1 if _star is None else len(_star.names)


def gather_json(value: Any) -> list[Any]:
    """Every process's value, by its number; all must call this, in the same order. Touches no device.

    Args:
        value: JSON-able.

    Raises:
        RunError: if another process has ended.
    """
    return [value] if _star is None else _star.gather(value)


def gather_at_first(value: Any) -> list[Any]:
    """Every process's value in process 0, an empty list in the others; for what is large. Else as `gather_json`."""
    return [value] if _star is None else _star.gather(value, at_first=True)


def wait_for_all() -> None:
    """Returns when every process has come here; raises like `gather_json`."""
    gather_at_first(None)


def of_first(value: Any) -> Any:
    """The value that process 0 gives, for all; raises like `gather_json`."""
    return gather_json(value if is_first() else None)[0]


def first_does(act: Callable[[], Any]) -> None:
    """Does something in process 0 alone, while the others wait.

    Raises:
        UserError: in every process, if the act raises it, or finds a disk full.
    """
    error: UserError | None = None
    if is_first():
        try:
            act()
        except UserError as raised:
            error = raised
        except OSError as raised:
            error = refused_by_disk(raised)
            if error is None:
                raise
    told = of_first(None if error is None else str(error))
    if told is not None:
        raise error or UserError(told)


def agree(value: Any, what: str) -> None:
    """Makes sure that all processes have the same value.

    Args:
        value: JSON-able.
        what: names it, for the message.

    Raises:
        UserError: in every process, naming the first two that differ.
    """
    values = gather_json(value)
    for index, other in enumerate(values):
        if other != values[0]:
            raise UserError(
                f"{what}: process 0 has {shown(values[0])}, process {index} has {shown(other)}; start all alike"
            )


def preemption_requested(step: int) -> bool:
    """Whether all processes are to save after this step and leave, since one of them was sent SIGTERM.

    All must call this after every step with the same, ever growing number, which goes on counting from stage to stage;
    the answer is the same in all. jax's handler of SIGTERM must be in place, so none may be installed after `join`.
    Always False for a process that is alone.
    """
    return _star is not None and multihost_utils.reached_preemption_sync_point(step)
