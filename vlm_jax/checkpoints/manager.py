"""Checkpoints of one stage: parameters, optimiser state, and the small files that make a step directory self-contained.

    WORKDIR/checkpoints/STAGE/STEP/params/      every parameter, trained and frozen
                                   optimizer/   optimiser state of the trained ones
                                   files/       config.json, data.json, checksums.json, processor/…

A thin wrapper around orbax's v0 CheckpointManager: asynchronous, committed by one rename, so a step that has its final
name is whole.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from vlm_jax.checkpoints.checks import DamagedError, check_model, first_line, unread, verified_files, verify
from vlm_jax.checkpoints.checksums import file_checksum, seal, tree_checksums, unseal
from vlm_jax.checkpoints.files import FilesHandler, FilesSave
from vlm_jax.checkpoints.handoff import newest_step
from vlm_jax.checkpoints.retry import RefusedError, passing, try_again
from vlm_jax.errors import UserError
from vlm_jax.parallel.processes import count, gather_json, is_first, of_first, wait_for_all

log = logging.getLogger(__name__)

_LOOK_S = 1.0
"""How often processes ask each other whether their parts of a save are done."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What one step directory holds."""

    step: int
    params: PyTree
    optimizer: PyTree
    files: Mapping[str, bytes]

    @property
    def data(self) -> dict[str, Any]:
        """The loader's state."""
        return json.loads(self.files["data.json"])


class _OrbaxManager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never: asking jax counts as a step done, and the run asks once a step, with numbers of its own."""
        return False


def _barrier(key: str, timeout_ms: int) -> None:
    """Waits for the other processes; but in the thread that ends a save, what has failed is raised: they are told it.

    Orbax would wait before it is: for processes that wait for this one, as long as the longest save may take.
    """
    error = sys.exc_info()[1]
    if error is not None and threading.current_thread().name == "save_finalize":
        raise error
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


class CheckpointManager:
    """Saves and restores the steps of one stage. Close it: a save may still be under way."""

    def __init__(
        self,
        directory: epath.PathLike,
        keep_last: int = 2,
        keep_every: int = 0,
        retry_seconds: float = 0.0,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Opens the directory of a stage, WORKDIR/checkpoints/STAGE, and clears what a killed save left there.

        Args:
            directory: made if it is not there.
            keep_last: the newest so many steps are kept.
            keep_every: multiples of this are kept for good; 0 = none.
            retry_seconds: how long a save is tried that a full disk or an unreachable bucket refuses.
            alive: called again and again while it is tried.
        """
        self._retry_seconds, self._alive, self._refused = retry_seconds, alive, False
        self._bad: dict[int, DamagedError] = {}
        self.directory = epath.Path(directory).resolve()
        policies: list[Any] = [ocp.checkpoint_managers.LatestN(keep_last)]
        if keep_every:
            policies.append(ocp.checkpoint_managers.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            create=True,
            async_options=ocp.options.AsyncOptions(barrier_sync_fn=_barrier),
        )
        handlers = {
            "params": ocp.StandardCheckpointHandler(),
            "optimizer": ocp.StandardCheckpointHandler(),
            "files": FilesHandler(),
        }
        self._manager = _OrbaxManager(self.directory, item_handlers=handlers, options=options)

    def latest_step(self) -> int | None:
        """The newest step with a name of its own, or None. It is whole, unless it was damaged since."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        params: PyTree,
        optimizer: PyTree,
        data: Mapping[str, Any],
        files: Mapping[str, bytes],
        wait: bool = False,
    ) -> None:
        """Starts saving a step; arrays are copied first, so they may be donated afterwards.

        If the disk refused the step before, which is noticed only now, that step is given up in favour of this one,
        which is then waited for and tried until the disk takes it.

        Args:
            step: steps done in this stage.
            params, optimizer: trees of arrays.
            data: the loader's state after the last batch that went into the parameters.
            files: config.json, the processor's files and so on, by relative path.
            wait: return when it is on disk.

        Raises:
            UserError: if the disk refuses for longer than `retry_seconds`.
        """
        small = {**files, "data.json": _json(data)}
        sums = {
            **_prefixed("params", params),
            **_prefixed("optimizer", optimizer),
            **{f"files/{name}": file_checksum(content) for name, content in small.items()},
        }
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            optimizer=ocp.args.StandardSave(optimizer),
            files=FilesSave({**small, "checksums.json": seal(sums)}),
        )
        # Orbax lets processes wait for each other in a save, so one of several cannot begin it anew by itself.
        patience = self._retry_seconds if count() == 1 else 0.0
        wait |= self._lost_one(patience)

        def attempt() -> None:
            try:
                self._manager.save(step, args=items, force=True)
                if wait:
                    self._finish()
            except Exception:
                self._clear()
                raise

        try:
            try_again(attempt, f"{self.directory}: saving step {step}", patience, self._alive)
        except RefusedError:
            raise
        except Exception as error:
            raise self._unsaved(step, error) from error

    def _lost_one(self, patience: float) -> bool:
        """Waits for the save before, if it is under way still; whether the disk refused it."""
        try:
            self._finish()
        except Exception as error:
            why = passing(error)
            if not why or not patience:
                raise self._unsaved(None, error) from error
            log.warning("%s: the last save failed (%s); saving the present step in its place", self.directory, why)
            self._clear()
            return True
        return False

    def _clear(self) -> None:
        """Makes room of what a failed save has written, and forgets what it was about to delete."""
        if count() == 1:
            for leftover in self.directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
                with contextlib.suppress(Exception):
                    leftover.rmtree()
            self._manager.reload()

    def _finish(self) -> None:
        """Returns when the save under way is on disk; of several processes all raise what one of them met."""
        if count() == 1:
            self._finish_own()
            return
        own: concurrent.futures.Future[None] = concurrent.futures.Future()

        def finish() -> None:  # waits for the others, who may never come
            try:
                self._finish_own()
                own.set_result(None)
            except Exception as error:
                own.set_exception(error)

        threading.Thread(target=finish, name="save", daemon=True).start()
        while True:
            done = bool(concurrent.futures.wait([own], timeout=_LOOK_S).done)
            error = own.exception() if done else None
            told = gather_json([done, error and _why(error)])
            for process, (_, why) in enumerate(told):
                if why:
                    raise self._refusal(None, f"process {process}: {why[0]}", why[1]) from error
            if all(done for done, _ in told):
                return

    def _finish_own(self) -> None:
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns when the save under way, if any, is on disk; raises like `save`."""
        try:
            self._finish()
        except RefusedError:
            raise
        except Exception as error:
            raise self._unsaved(None, error) from error

    def give_up(self) -> None:
        """The run ends because something was refused; of several processes none waits for the others in a save."""
        self._refused = True

    def close(self) -> None:
        """Waits, then frees what the manager holds. A refusal that was told before is not told again."""
        if self._refused and count() > 1:
            return
        try:
            self.wait()
        except UserError:
            if not self._refused:
                raise
        finally:
            try:
                self._manager.close()
            except Exception:
                if not self._refused:
                    raise

    def restore_newest(self, params: PyTree, optimizer: PyTree) -> Snapshot | None:
        """Reads the newest step that is whole; damaged ones after it are set aside under the name STEP.damaged.

        Args:
            params, optimizer: abstract trees, as for `restore`.

        Returns:
            None if nothing was saved.

        Raises:
            UserError: if all steps are damaged (nothing is renamed then), or the newest belongs to another model.
        """
        self._manager.reload()
        steps: list[int] = of_first(sorted(self._manager.all_steps()))
        self._bad = bad = dict[int, DamagedError]()
        for step in reversed(steps):
            try:
                snapshot = self.restore(step, params, optimizer)
            except DamagedError as error:
                bad[step] = error
            else:
                for older, error in bad.items():
                    self._set_aside(older, error, f"step {step} is used")
                return snapshot
        if bad:
            raise bad[steps[-1]]
        return None

    def set_aside_all(self, instead: str) -> None:
        """Renames every step, after `restore_newest` found that all are damaged.

        Args:
            instead: what is used in their place.
        """
        for step, error in self._bad.items():
            self._set_aside(step, error, instead)

    def _set_aside(self, step: int, error: DamagedError, instead: str) -> None:
        where, number = self.directory / str(step), 1
        while (aside := self.directory / (f"{step}.damaged" + (f"-{number}" if number > 1 else ""))).exists():
            number += 1
        if is_first():
            log.warning("%s; it is set aside as %s, and %s", error.what, aside.name, instead)
        wait_for_all()  # none may be reading it still
        if is_first():
            try:
                where.rename(aside)
            except OSError as problem:
                raise UserError(f"{error} (it cannot be renamed: {first_line(problem)})") from problem
        wait_for_all()
        self._manager.reload()

    def restore(self, step: int, params: PyTree, optimizer: PyTree) -> Snapshot:
        """Reads a step into the given abstract trees (shape, dtype, sharding) and verifies every checksum.

        Each process reads what its own devices hold; then all know whether any found damage.

        Raises:
            DamagedError: if a file is damaged.
            UserError: if the checkpoint belongs to another model or optimiser, or cannot be read for another reason.
        """
        where, items = self.directory / str(step), {"params": params, "optimizer": optimizer}
        found: tuple[Mapping[str, bytes], dict[str, PyTree]] | None = None
        own: UserError | None = None
        try:
            found = try_again(lambda: _read(where, items), f"reading {where}", self._retry_seconds, self._alive)
        except UserError as error:
            own = error
        except Exception as error:
            log.debug("%s: could not be read", where, exc_info=error)
            own = unread(where, error)
        _agree(own)
        assert found is not None
        files, trees = found
        verify(where, trees, unseal(files["checksums.json"]))
        return Snapshot(step, trees["params"], trees["optimizer"], files)

    def _unsaved(self, step: int | None, error: Exception) -> UserError:
        return self._refusal(step, *_why(error))

    def _refusal(self, step: int | None, why: str, mend: str) -> RefusedError:
        self._refused = True
        which = "a checkpoint" if step is None else f"step {step}"
        last = newest_step(self.directory)  # orbax may count the step that was refused
        kept = f"step {last} is whole" if last is not None else "nothing was saved before"
        return RefusedError(f"{self.directory}: could not save {which} ({why}); {kept}; {mend}")


def _why(error: BaseException) -> tuple[str, str]:
    """The reason why a save failed, and the mend."""
    if why := passing(error):
        return why, "free space or choose another --workdir, then run again"
    return first_line(error), "run again when that is mended"  # no permission, no memory


def _read(where: epath.Path, items: Mapping[str, PyTree]) -> tuple[Mapping[str, bytes], dict[str, PyTree]]:
    """(files, arrays) of a step directory, without a word to other processes."""
    files = verified_files(where)
    check_model(where, unseal(files["checksums.json"]), items)
    alone = ocp.options.MultiprocessingOptions(primary_host=jax.process_index(), active_processes={jax.process_index()})
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return files, {
        name: handler.restore(where / name, args=ocp.args.StandardRestore(tree)) for name, tree in items.items()
    }


def _agree(own: UserError | None) -> None:
    """Raises in every process what one of them found, damage before anything else."""
    found = gather_json(None if own is None else [isinstance(own, DamagedError), str(own)])
    errors = [error for error in found if error is not None]
    if own is not None and len(found) == 1:
        raise own
    if errors:
        is_damage, message = max(errors, key=lambda error: error[0])
        raise DamagedError(message) if is_damage else UserError(message)


def _prefixed(prefix: str, tree: PyTree) -> dict[str, str]:
    return tree_checksums({prefix: tree})


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
