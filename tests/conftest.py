"""Options and paths that all tests share."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]

# Compiling is most of the tests' time, and many tests and their subprocesses compile the same programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


# Tests carry no time limits: machines are shared, and the first example may compile. What a change is judged by depends
# on the change alone, so properties see the same examples every time; `--hypothesis-profile search` draws others.
hypothesis.settings.register_profile("patient", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, print_blob=True)
hypothesis.settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden config dumps anew")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's directory."""
    return ROOT


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Forgets compiled programs after a file of tests, once there are many.

    Each takes some memory maps, of which Linux gives a process 65,530 by default; one more, and XLA aborts.
    """
    yield
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        sys.modules["jax"].clear_caches()
        gc.collect()
