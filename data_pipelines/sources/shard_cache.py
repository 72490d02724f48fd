"""Copies of remote shards on the local disk: each fetched once, checked, and kept for the next run."""

import os
import shutil
import threading
from pathlib import Path

from etils import epath

from data_pipelines.manifest import ShardFile, sha256_of
from vlm_jax.errors import UserError


def default_cache() -> str:
    """$XDG_CACHE_HOME/vlm-jax/shards."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "vlm-jax", "shards")


class ShardCache:
    """Local copies of one directory's shards, named by their checksums.

    Several processes may share a cache: a copy appears under its name only when it is whole. Nothing is ever deleted.
    """

    def __init__(self, directory: str, cache: str) -> None:
        """Takes the directory to copy from and the one to copy to; neither is touched yet."""
        self._directory = epath.Path(directory)
        self._cache = Path(cache)
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def fetch(self, file: ShardFile) -> str:
        """The local path of a shard, which is copied and compared with its checksum if it is not there.

        Raises:
            UserError: if it cannot be copied, or what arrives is not what the manifest says.
        """
        # Sets that share a shard share its copy; the start of the name keeps the listing readable.
        place = self._cache / file.sha256[:2] / f"{file.sha256}-{file.name}"
        with self._lock:
            own = self._locks.setdefault(file.name, threading.Lock())
        with own:
            if not (place.exists() and place.stat().st_size == file.bytes):
                self._copy(file, place)
        return os.fspath(place)

    def _copy(self, file: ShardFile, place: Path) -> None:
        origin = self._directory / file.name
        partial = place.with_name(f".{place.name}.{os.getpid()}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                with origin.open("rb") as stream, partial.open("wb") as copy:
                    shutil.copyfileobj(stream, copy, 1 << 20)
                if sha256_of(partial) != file.sha256:
                    raise UserError(f"{origin}: is not what its manifest says (sha256 differs); copy the set again")
                partial.replace(place)  # whichever process is last: the contents are the same
            finally:
                partial.unlink(missing_ok=True)
        except UserError:
            raise
        except Exception as error:  # clients of object stores raise what they like
            reason = " ".join(str(error).split())
            raise UserError(
                f"{origin}: cannot be copied into the cache {self._cache} ({reason}); free space, "
                "mend the address, or set `cache`"
            ) from None
