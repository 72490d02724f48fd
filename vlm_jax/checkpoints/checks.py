"""Is a step directory whole, and of the model that is wanted? What is read from one is compared with its checksums."""

from collections.abc import Mapping

import jax
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from vlm_jax.checkpoints.checksums import damaged_leaves, file_checksum, unseal
from vlm_jax.checkpoints.files import FilesHandler
from vlm_jax.errors import UserError


class DamagedError(UserError):
    """A checkpoint that is not what was saved; one line that names what differs."""

    @property
    def what(self) -> str:
        """Which one, and what differs, without the mend."""
        return str(self).partition("; remove")[0]


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
        raise damaged(where, f"files/: {first_line(error)}") from error
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
        raise damaged(where, f"params: {first_line(error)}") from error
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


def first_line(error: BaseException) -> str:
    """What an error says, in one line that is not too long."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
