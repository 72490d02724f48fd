"""Is a step directory whole, and of the model that is wanted? What is read from one is compared with its checksums."""

import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from vlm_jax.checkpoints.checksums import damaged_leaves, file_checksum, unseal
from vlm_jax.checkpoints.files import read_files
from vlm_jax.checkpoints.retry import passing, system_code
from vlm_jax.errors import UserError


class DamagedError(UserError):
    """A checkpoint that is not what was saved; one line that names what differs."""

    @property
    def what(self) -> str:
        """Which one, and what differs, without the mend."""
        return str(self).partition("; remove")[0]


_DECODING = (ValueError, LookupError, TypeError, AttributeError)
"""What is raised where bytes, or the JSON that describes arrays, read as something else than was written."""
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_STATUS = re.compile(r"([A-Z]+(?:_[A-Z]+)*): ")
_OF_DAMAGE = {"DATA_LOSS", "NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE"}
"""Statuses, with which messages of tensorstore begin, of bytes that are absent or cannot be decoded."""


def is_damage(error: BaseException) -> bool:
    """Whether an error of reading shows that files are absent or differ, and has no reason that lies elsewhere.

    No permission, too many open files, no memory: whoever reads them again may find the same files whole.
    """
    found: list[bool | None] = []
    reason: BaseException | None = error
    while reason is not None:
        found.append(_shows_damage(reason))
        reason = reason.__cause__ or reason.__context__
    return True in found and False not in found


def _shows_damage(error: BaseException) -> bool | None:
    """None: it says nothing, such as one of orbax that only wraps another."""
    if isinstance(error, DamagedError):
        return True
    if isinstance(error, OSError):
        return isinstance(error, _ABSENT)
    if (code := system_code(error)) is not None:
        return isinstance(OSError(code, ""), _ABSENT)
    if isinstance(error, ValueError) and (status := _STATUS.match(str(error))):
        return status[1] in _OF_DAMAGE
    return None if type(error) is Exception else isinstance(error, _DECODING)


def unread(where: epath.Path, error: BaseException, what: str = "") -> UserError:
    """The error of a checkpoint that could not be read: DamagedError if that is the reason, else one that says why.

    Args:
        where: the step directory.
        error: that was raised.
        what: the beginning of the reason.
    """
    reason = error
    while reason.__cause__ is not None:
        reason = reason.__cause__
    code = system_code(reason)  # tensorstore tells it at the end of many words
    why = what + (os.strerror(code) if code else f"{type(reason).__name__}: {first_line(reason)}")
    if is_damage(error):
        return damaged(where, why)
    return UserError(
        f"{where}: could not be read ({passing(error) or why}); it is left as it is; run again when it can"
    )


def read_step_files(step_directory: epath.PathLike) -> dict[str, bytes]:
    """The small files of a step directory: config.json, checksums.json, processor/… by relative path.

    Raises:
        UserError: if it is not a checkpoint, its files are damaged, or they cannot be read.
    """
    where = epath.Path(step_directory)
    if not (where / "files").is_dir():
        raise UserError(f"{where}: not a checkpoint of vlm-jax; give a workdir or a directory checkpoints/STAGE/STEP")
    try:
        return verified_files(where)
    except UserError:
        raise
    except Exception as error:
        raise unread(where, error, "files/: ") from error


def verified_files(where: epath.Path) -> dict[str, bytes]:
    """`read_step_files` of a directory that is a step's.

    Raises:
        DamagedError: if one is missing or differs.
        Exception: whatever reading them raises.
    """
    try:
        files = read_files(where / "files")
    except _ABSENT as error:
        raise damaged(where, f"files/ is not whole: {first_line(error)}") from error
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
        raise damaged(where, f"files/checksums.json: {first_line(error)}") from None


def verify(where: epath.Path, tree: PyTree, expected: Mapping[str, str]) -> None:
    """Raises UserError that names the leaves whose checksum is not the one written at saving."""
    bad = damaged_leaves(tree, expected)
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise damaged(where, f"checksum of {', '.join(bad[:3])}{more} differs")


def damaged(where: epath.PathLike, what: str) -> DamagedError:
    """The error of a checkpoint that cannot be used."""
    return DamagedError(f"{where}: damaged checkpoint ({what}); remove this directory to go on from the step before it")


def check_model(
    where: epath.Path, expected: Mapping[str, str], items: Mapping[str, PyTree], dtypes: bool = True
) -> None:
    """Compares what a step directory holds with what is wanted of it, before anything is read.

    Args:
        where: the step directory.
        expected: its checksums, whose names are those of its arrays, and which begin with their dtypes.
        items: "params", and maybe "optimizer": abstract arrays.
        dtypes: whether they must be the same.

    Raises:
        UserError: if an array is in only one of the two, or has another shape or dtype.
        Exception: whatever reading the shapes raises.
    """
    here = _leaves(dict(items))
    there = {path for path in expected if path.split("/")[0] in items}
    if strangers := sorted(set(here) ^ there):
        raise _another(where, f"{strangers[0]} is in only one of the two, of {len(strangers)} such")
    kept = {path: expected[path].partition(":")[0] for path in here}
    others = [path for path, leaf in here.items() if dtypes and kept[path] != str(leaf.dtype)]
    if others:
        raise _another(where, f"{others[0]} is {kept[others[0]]} there and {here[others[0]].dtype} here")
    found = _leaves({name: ocp.StandardCheckpointHandler().metadata(where / name).tree for name in items})
    for path, leaf in here.items():
        if path not in found:
            raise damaged(where, f"{path} is missing")
        if tuple(found[path].shape) != tuple(leaf.shape):
            raise _another(where, f"{path} is {list(found[path].shape)} there and {list(leaf.shape)} here")


def _another(where: epath.Path, what: str) -> UserError:
    return UserError(
        f"{where}: a checkpoint of another model or optimiser ({what}); use the experiment it was trained with, or "
        "another --workdir"
    )


def _leaves(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def first_line(error: BaseException) -> str:
    """What an error says, in one line that is not too long."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
