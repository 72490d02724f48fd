"""Files of a source, and pictures that its records name: a record may not lead out of the directory of its pictures."""

import errno
import glob
import hashlib
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from data_pipelines.examples import Image
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources.shard_cache import default_cache
from vlm_jax.errors import UserError


class ImageFolder:
    """The directory that records' picture paths start from, local or remote."""

    def __init__(self, root: str) -> None:
        """Takes the directory; '' = the records have no paths of pictures."""
        self.root = root
        self._real = "" if "://" in root else os.path.realpath(root)

    def image(self, path: str) -> Image:
        """The picture at a path in the directory; it is read when it is decoded.

        Raises:
            BadRecord: if the path is absolute, has '..', leads out of the directory through a symbolic link, goes
                round in circles, or is not a file's.
        """
        if not self.root:
            raise BadRecord(f"picture '{path}': a path, and no directory of pictures is set (`images`)")
        if "://" in path:
            raise BadRecord(f"picture '{path}': an address, and nothing is fetched from a network: fetch it first")
        # Windows' separators and drives too: what is a name here must not be a path there.
        parts = path.replace("\\", "/").split("/")
        if "\0" in path or not path.strip() or not parts[0] or parts[0].endswith(":"):
            raise BadRecord(f"picture '{path}': not a relative path below {self.root}")
        if ".." in parts:
            raise BadRecord(f"picture '{path}': leads out of {self.root}; only what lies below it is read")
        if "://" in self.root:
            return Image(path=os.fspath(epath.Path(self.root) / path))
        return Image(path=self._local(path))

    def _local(self, path: str) -> str:
        try:
            # Strictly: a loop of links, or nothing there, is an error instead of a guess.
            real = os.path.realpath(os.path.join(self._real, path), strict=True)
            mode = os.stat(real).st_mode
        except OSError as error:
            why = "its symbolic links form a loop" if error.errno == errno.ELOOP else error.strerror or str(error)
            raise BadRecord(f"picture '{path}' in {self.root}: {why}") from None
        if os.path.commonpath((self._real, real)) != self._real:
            raise BadRecord(f"picture '{path}': a symbolic link leads it out of {self.root}")
        if not stat.S_ISREG(mode):
            raise BadRecord(f"picture '{path}' in {self.root}: not a file")
        return real


def list_files(path: str | tuple[str, ...], suffixes: Sequence[str], name: str) -> list[str]:
    """The files that a source's `path` means: files, patterns ('shards/*.tar'), directories with such files.

    Args:
        path: One or several of them, local or remote.
        suffixes: How the files in a directory end.
        name: The source's, for messages.

    Returns:
        Paths, each once; those of a pattern or directory in the order of their names.

    Raises:
        UserError: if one of them means no file.
    """
    found: list[str] = []
    given = (path,) if isinstance(path, str) else path
    if not given or not all(given):
        raise UserError(f"source '{name}': no path is given; set `path`")
    for one in given:
        try:
            files = _list_remote(one, suffixes) if "://" in one else _list_local(one, suffixes)
        except OSError as error:
            raise UserError(f"source '{name}': {one}: cannot be read ({error.strerror or error})") from None
        if not files:
            what = f"holds no *{', *'.join(suffixes)}" if os.path.isdir(one) else "there is no such file"
            raise UserError(f"source '{name}': {one}: {what}; mend `path`")
        found += files
    return list(dict.fromkeys(found))


def _list_local(path: str, suffixes: Sequence[str]) -> list[str]:
    if os.path.isdir(path):
        return sorted(entry.path for entry in os.scandir(path) if entry.name.endswith(tuple(suffixes)))
    if os.path.exists(path):
        return [path]
    return sorted(glob.glob(path, recursive=True))


def _list_remote(path: str, suffixes: Sequence[str]) -> list[str]:
    directory, _, last = path.rpartition("/")
    if glob.has_magic(last):
        return sorted(os.fspath(file) for file in epath.Path(directory).glob(last))
    place = epath.Path(path)
    if place.is_dir():
        return sorted(os.fspath(file) for file in place.iterdir() if file.name.endswith(tuple(suffixes)))
    return [path] if place.exists() else []


def local_copy(path: str, cache: str = "") -> str:
    """A local file with the bytes of a remote one, copied the first time; a local path is itself.

    A file that changed (its size or its time) is copied anew. Several processes may share a cache.

    Args:
        path: The file.
        cache: Directory of the copies; '' = $XDG_CACHE_HOME/vlm-jax/shards.

    Raises:
        UserError: if it cannot be copied.
    """
    if "://" not in path:
        return path
    try:
        return copy_once(epath.Path(path), Path(cache or default_cache()))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be copied into the cache ({error.strerror or error}); mend the address, free space, or "
            "set `cache`"
        ) from None


def copy_once(origin: epath.Path, cache: Path) -> str:
    """Copies a file into a cache, unless it is there already: see `local_copy`.

    Raises:
        OSError: if it cannot be read or written.
    """
    about = origin.stat()
    digest = hashlib.sha256(f"{origin} {about.length} {about.mtime}".encode()).hexdigest()
    place = cache / "files" / f"{digest[:32]}-{origin.name}"
    if place.exists() and place.stat().st_size == about.length:
        return os.fspath(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        with origin.open("rb") as stream, partial.open("wb") as copy:
            shutil.copyfileobj(stream, copy, 1 << 20)
        if partial.stat().st_size != about.length:
            raise OSError(f"{partial.stat().st_size:,} of {about.length:,} bytes arrived")
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)
    return os.fspath(place)
