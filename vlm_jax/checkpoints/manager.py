"""Checkpoints of one stage: parameters, optimiser state, and the small files that make a step directory self-contained.

    WORKDIR/checkpoints/STAGE/STEP/params/      every parameter, trained and frozen
                                   optimizer/   optimiser state of the trained ones
                                   files/       config.json, data.json, checksums.json, processor/…

A thin wrapper around orbax's v0 CheckpointManager: asynchronous, committed by one rename, so a step that has its final
name is whole.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from vlm_jax.checkpoints.checksums import damaged_leaves, file_checksum, seal, tree_checksums, unseal
from vlm_jax.checkpoints.files import FilesHandler, FilesRestore, FilesSave
from vlm_jax.errors import UserError


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


class CheckpointManager:
    """Saves and restores the steps of one stage. Close it: a save may still be under way."""

    def __init__(self, directory: epath.PathLike, keep_last: int = 2, keep_every: int = 0) -> None:
        """Opens the directory of a stage, WORKDIR/checkpoints/STAGE, and clears what a killed save left there.

        Args:
            directory: made if it is not there.
            keep_last: the newest so many steps are kept.
            keep_every: multiples of this are kept for good; 0 = none.
        """
        self.directory = epath.Path(directory).resolve()
        policies: list[Any] = [ocp.checkpoint_managers.LatestN(keep_last)]
        if keep_every:
            policies.append(ocp.checkpoint_managers.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            create=True,
        )
        handlers = {
            "params": ocp.StandardCheckpointHandler(),
            "optimizer": ocp.StandardCheckpointHandler(),
            "files": FilesHandler(),
        }
        self._manager = ocp.CheckpointManager(self.directory, item_handlers=handlers, options=options)

    def latest_step(self) -> int | None:
        """The newest whole step, or None."""
        return self._manager.latest_step()

    def save(
        self, step: int, params: PyTree, optimizer: PyTree, data: Mapping[str, Any], files: Mapping[str, bytes]
    ) -> None:
        """Starts saving a step; arrays are copied first, so they may be donated afterwards.

        Args:
            step: steps done in this stage.
            params, optimizer: trees of arrays.
            data: the loader's state after the last batch that went into the parameters.
            files: config.json, the processor's files and so on, by relative path.

        Raises:
            UserError: if the disk refused this save or the one before.
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
        try:
            self._manager.save(step, args=items, force=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unsaved(step, error) from error

    def wait(self) -> None:
        """Returns when the save under way, if any, is on disk; raises like `save`."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unsaved(None, error) from error

    def close(self) -> None:
        """Waits, then frees what the manager holds."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def restore(self, step: int, params: PyTree, optimizer: PyTree) -> Snapshot:
        """Reads a step into the given abstract trees (shape, dtype, sharding) and verifies every checksum.

        Raises:
            UserError: if a file is damaged, or the checkpoint belongs to another model or optimiser.
        """
        where = self.directory / str(step)
        files = read_step_files(where)
        expected = unseal(files["checksums.json"])
        check_model(where, expected, {"params": params, "optimizer": optimizer})
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(params),
            optimizer=ocp.args.StandardRestore(optimizer),
            files=FilesRestore(),
        )
        try:
            restored = self._manager.restore(step, args=items)
        except Exception as error:
            raise damaged(where, f"{type(error).__name__}: {_first_line(error)}") from error
        verify(where, {"params": restored.params, "optimizer": restored.optimizer}, expected)
        return Snapshot(step, restored.params, restored.optimizer, files)

    def _unsaved(self, step: int | None, error: Exception) -> UserError:
        which = "a checkpoint" if step is None else f"step {step}"
        last = self.latest_step()
        kept = f"step {last} is whole" if last is not None else "nothing was saved before"
        cause = _first_line(error)
        if "ENOSPC" in cause or "No space left" in cause or "RESOURCE_EXHAUSTED" in cause:
            cause = "the disk is full"
        return UserError(
            f"{self.directory}: could not save {which} ({cause}); {kept}; "
            "free space or choose another --workdir, then run again"
        )


def read_step_files(step_directory: epath.PathLike) -> dict[str, bytes]:
    """The small files of a step directory: config.json, checksums.json, processor/… by relative path.

    Raises:
        UserError: if it is not a checkpoint, or its files are damaged.
    """
    where = epath.Path(step_directory)
    if not (where / "files").is_dir():
        raise UserError(f"{where}: not a checkpoint of vlm-jax; give a workdir or a directory checkpoints/STAGE/STEP")
    try:
        files = FilesHandler().restore(where / "files")
    except OSError as error:
        raise damaged(where, f"files/: {_first_line(error)}") from error
    sums = _checksums_of(where, files)
    for name in ("config.json", *(name.removeprefix("files/") for name in sums if name[:6] == "files/")):
        if name not in files:
            raise damaged(where, f"files/{name} is missing")
        if file_checksum(files[name]) != sums.get(f"files/{name}", file_checksum(files[name])):
            raise damaged(where, f"checksum of files/{name} differs")
    return files


def _checksums_of(where: epath.Path, files: Mapping[str, bytes]) -> dict[str, str]:
    try:
        return unseal(files["checksums.json"])
    except KeyError:
        raise damaged(where, "files/checksums.json is missing") from None
    except ValueError as error:
        raise damaged(where, f"files/checksums.json: {_first_line(error)}") from None


def verify(where: epath.Path, tree: PyTree, expected: Mapping[str, str]) -> None:
    """Raises UserError that names the leaves whose checksum is not the one written at saving."""
    bad = damaged_leaves(tree, expected)
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise damaged(where, f"checksum of {', '.join(bad[:3])}{more} differs")


def damaged(where: epath.PathLike, what: str) -> UserError:
    """The error of a checkpoint that cannot be used."""
    return UserError(f"{where}: damaged checkpoint ({what}); remove this directory to go on from the step before it")


def check_model(where: epath.Path, expected: Mapping[str, str], items: Mapping[str, PyTree]) -> None:
    """Compares what a step directory holds with what is wanted of it, before anything is read.

    Args:
        where: the step directory.
        expected: its checksums, whose names are those of its arrays.
        items: "params", and maybe "optimizer": abstract arrays.

    Raises:
        UserError: if an array is in only one of the two, or a parameter has another shape.
    """
    there = {path for path in expected if path.split("/")[0] in items}
    strangers = sorted(set(_paths(dict(items))) ^ there)
    if strangers:
        raise _another(where, f"{strangers[0]} is in only one of the two, of {len(strangers)} such")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            found = _shapes({"params": checkpointer.metadata(where / "params").item_metadata.tree})
    except Exception as error:
        raise damaged(where, f"params: {_first_line(error)}") from error
    for path, shape in _shapes({"params": items["params"]}).items():
        if found.get(path) != shape:
            raise _another(where, f"{path} is {list(found.get(path, ()))} there and {list(shape)} here")


def _another(where: epath.Path, what: str) -> UserError:
    return UserError(
        f"{where}: a checkpoint of another model or optimiser ({what}); use the experiment it was trained with, or "
        "another --workdir"
    )


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _paths(tree: PyTree) -> list[str]:
    return [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _prefixed(prefix: str, tree: PyTree) -> dict[str, str]:
    return tree_checksums({prefix: tree})


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
