"""Where pages and pictures come from: WARC files, or folders of HTML files with their pictures beside them.

Pages of a folder NAME have addresses file://NAME/path/in/the/folder.html, so that links between them work out.
"""

import hashlib
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from etils import epath

from data_pipelines.prepare.web.documents import parts_of
from data_pipelines.prepare.web.warc import WARC_SUFFIXES, warc_record
from vlm_jax.errors import UserError

PAGE_SUFFIXES = (".html", ".htm", ".xhtml")
_PAGES_A_TASK = 64

Task = dict[str, Any]
"""A piece of work: {"warc": file} or {"folder": path, "name": NAME, "files": [relative path, …]}."""


def find_tasks(inputs: Sequence[str]) -> list[Task]:
    """The pieces of work in the inputs, in a fixed order.

    Raises:
        UserError: if an input is neither a WARC file nor a directory, or holds no pages.
    """
    tasks: list[Task] = []
    folders = [path for path in inputs if not path.endswith(WARC_SUFFIXES)]
    names = _names(folders)
    for path in inputs:
        if path.endswith(WARC_SUFFIXES):
            if not epath.Path(path).exists():
                raise UserError(f"{path}: no such file; give a WARC file or a directory")
            tasks.append({"warc": path})
            continue
        place = epath.Path(path)
        if not place.is_dir():
            raise UserError(f"{path}: neither a directory nor a WARC file (*{', *'.join(WARC_SUFFIXES)})")
        files = sorted(files_below(path))
        pages = [file for file in files if file.lower().endswith(PAGE_SUFFIXES)]
        archives = [file for file in files if file.endswith(WARC_SUFFIXES)]
        if not pages and not archives:
            raise UserError(f"{path}: no page lies there (*{', *'.join((*PAGE_SUFFIXES, *WARC_SUFFIXES))})")
        tasks += [{"warc": os.path.join(path, file)} for file in archives]
        for start in range(0, len(pages), _PAGES_A_TASK):
            tasks.append({"folder": path, "name": names[path], "files": pages[start : start + _PAGES_A_TASK]})
    return tasks


def input_facts(tasks: Iterable[Task]) -> list[list[Any]]:
    """[name, bytes, time of the last change] of every input file: another list means another build."""
    facts = []
    for task in tasks:
        named = (
            [(task["warc"], task["warc"])]
            if "warc" in task
            else [(f"{task['name']}/{file}", os.path.join(task["folder"], file)) for file in task["files"]]
        )
        for name, path in named:
            stat = epath.Path(path).stat()
            facts.append([name, stat.length, int(stat.mtime)])
    return facts


def task_key(task: Task) -> str:
    """A file name for what is kept of a task."""
    return hashlib.sha256(repr(sorted(task.items())).encode("utf-8", "surrogatepass")).hexdigest()[:24]


def page_address(name: str, file: str) -> str:
    """The address of a file of the folder called NAME."""
    return f"file://{_quoted(name)}/{_quoted(file)}"


def picture_location(url: str, folders: Mapping[str, str]) -> list[Any] | None:
    """[file, -1] of a picture of an input folder, or None if the address is of elsewhere or leaves its folder.

    Links (symbolic ones too) that lead out of the folder are refused: a page could show any file of this machine.
    """
    parts = parts_of(url)
    root = folders.get(_unquoted(parts.netloc))
    if parts.scheme != "file" or root is None:
        return None
    inside = posixpath.normpath(_unquoted(parts.path).lstrip("/"))
    if inside.startswith(("..", "/")) or "\0" in inside:
        return None
    if "://" in root:
        return [os.path.join(root, inside), -1]
    path = os.path.realpath(os.path.join(root, inside))
    return [path, -1] if path.startswith(os.path.realpath(root) + os.sep) else None


def read_bytes(location: Sequence[Any], most: int) -> bytes | None:
    """The bytes at a location, of longer ones the first `most` + 1; None if they cannot be read."""
    path, offset = location
    if offset >= 0:
        record = warc_record(path, offset, most + 1)
        return None if record is None else record.body
    try:
        with epath.Path(path).open("rb") as file:
            return file.read(most + 1)
    except OSError:  # also a directory, and a loop of links
        return None


def files_below(root: str) -> Iterator[str]:
    """Paths in a directory and below; links to directories are not followed, so loops of them end nowhere."""
    if "://" in root:
        for path in epath.Path(root).iterdir():
            if path.is_dir():
                yield from (f"{path.name}/{file}" for file in files_below(os.fspath(path)))
            else:
                yield path.name
        return
    for folder, _, files in os.walk(root):
        for file in files:
            path = Path(folder, file)
            if path.exists():  # a link may lead nowhere, or round and round
                yield path.relative_to(root).as_posix()


def _quoted(name: str) -> str:
    """File names may be bytes that are no UTF-8; they come back as they were."""
    return quote(name, errors="surrogateescape")


def _unquoted(name: str) -> str:
    return unquote(name, errors="surrogateescape")


def _names(folders: Sequence[str]) -> dict[str, str]:
    """A name for each folder: the end of its path, as much of it as tells it from the others."""
    if len(set(folders)) < len(folders):
        twice = next(path for path in folders if folders.count(path) > 1)
        raise UserError(f"{twice}: given twice; give every input once")
    parts = {path: [part for part in os.path.abspath(path).split(os.sep) if part] or ["root"] for path in folders}
    for length in range(1, max(map(len, parts.values()), default=0) + 1):
        names = {path: "-".join(steps[-length:]) for path, steps in parts.items()}
        if len(set(names.values())) == len(names):
            return names
    return {}
