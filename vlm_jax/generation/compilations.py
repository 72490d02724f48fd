"""Compilations: how many there were, and where compiled programs are kept between runs."""

import os
from pathlib import Path
from typing import NamedTuple

import jax

from vlm_jax.errors import UserError

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_HIT_EVENT = "/jax/compilation_cache/cache_hits"
_ENVIRONMENT = "JAX_COMPILATION_CACHE_DIR"


class Compilations(NamedTuple):
    """What this process has done since it began; the difference of two counts is what was done between them."""

    compiled: int
    """Programs compiled."""
    loaded: int
    """Programs read from the cache on disk instead."""
    seconds: float
    """Both together."""

    def __str__(self) -> str:
        return f"{self.compiled} programs compiled and {self.loaded} read from the cache in {self.seconds:.1f} s"


_events = {"asked": 0, "hits": 0, "seconds": 0.0}


def _on_duration(event: str, duration_secs: float, **_: object) -> None:
    if event == _COMPILE_EVENT:  # jax reports it for programs from the cache too
        _events["asked"] += 1
        _events["seconds"] += duration_secs


def _on_event(event: str, **_: object) -> None:
    if event == _HIT_EVENT:
        _events["hits"] += 1


jax.monitoring.register_event_duration_secs_listener(_on_duration)
jax.monitoring.register_event_listener(_on_event)


def compilations() -> Compilations:
    """The compilations of this process, of whatever program, since this module was imported."""
    hits = int(_events["hits"])
    return Compilations(int(_events["asked"]) - hits, hits, _events["seconds"])


def keep_compiled(directory: str | None = None) -> None:
    """Keeps compiled programs on disk, so that the next process needs not compile them again.

    Args:
        directory: where; 'none' = nowhere; None = what JAX_COMPILATION_CACHE_DIR names, or vlm-jax in the user's cache
            directory ($XDG_CACHE_HOME or ~/.cache).

    Raises:
        UserError: if the directory cannot be written.
    """
    if directory == "none":
        jax.config.update("jax_compilation_cache_dir", None)
        return
    if directory is None and os.environ.get(_ENVIRONMENT):
        return
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    path = Path(directory) if directory else caches / "vlm-jax"
    try:
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK)
    except OSError:
        writable = False
    if writable:
        jax.config.update("jax_compilation_cache_dir", str(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    elif directory:
        raise UserError(f"--compile-cache {directory}: cannot be written; name another directory, or none")
