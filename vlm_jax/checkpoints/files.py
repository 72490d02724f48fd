"""An orbax item that holds small files, such as the config and the tokenizer, under their own names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from vlm_jax.parallel.processes import is_first


class FilesHandler(ocp.CheckpointHandler):
    """Writes {relative path: bytes} into the item's directory and reads it back."""

    def save(self, directory: epath.Path, args: "FilesSave") -> None:
        """Writes the files, in the first process; orbax commits them together with the step's other items."""
        for name, content in args.files.items() if is_first() else ():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def restore(self, directory: epath.Path, args: "FilesRestore | None" = None) -> dict[str, bytes]:
        """All files of the item."""
        return read_files(directory)


@ocp.args.register_with_handler(FilesHandler, for_save=True)
@dataclasses.dataclass
class FilesSave(ocp.args.CheckpointArgs):
    """What to write: relative path -> content."""

    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


@ocp.args.register_with_handler(FilesHandler, for_restore=True)
@dataclasses.dataclass
class FilesRestore(ocp.args.CheckpointArgs):
    """Takes no argument."""

    item: Any = None


def read_files(directory: epath.PathLike) -> dict[str, bytes]:
    """{relative path: content} of all files below a directory."""
    root = epath.Path(directory)
    found: dict[str, bytes] = {}

    def walk(path: epath.Path, prefix: str) -> None:
        for entry in sorted(path.iterdir(), key=lambda p: p.name):
            name = f"{prefix}{entry.name}"
            if entry.is_dir():
                walk(entry, f"{name}/")
            else:
                found[name] = entry.read_bytes()

    walk(root, "")
    return found
