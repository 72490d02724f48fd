"""Remote shards are copied once, compared with their checksum, and never taken half."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from data_pipelines.manifest import read_manifest
from data_pipelines.prepare.shards import write_set
from data_pipelines.sources import ArrayRecords, open_source, source_for
from data_pipelines.sources.shard_cache import ShardCache, default_cache
from vlm_jax.errors import UserError


@pytest.fixture
def directory(tmp_path) -> Path:
    place = tmp_path / "origin"
    write_set(place, ({"id": str(number), "text": "слово"} for number in range(20)), config={}, shards=2)
    return place


def copies(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def test_a_shard_is_fetched_when_it_is_needed_and_once(directory: Path, tmp_path) -> None:
    config = ArrayRecords(str(directory), cache=str(tmp_path / "cache"))
    source = open_source(config)
    assert copies(tmp_path / "cache") == []
    first = source[0]
    assert len(copies(tmp_path / "cache")) == 1
    everything = [source[index] for index in range(20)]
    for path in directory.glob("*.arrayrecord"):
        path.unlink()
    assert [open_source(config)[index] for index in range(20)] == everything
    assert everything[0] == first
    assert len(copies(tmp_path / "cache")) == 2


def test_a_copy_that_differs_from_the_manifest_is_not_kept(directory: Path, tmp_path) -> None:
    file = read_manifest(directory).files[0]
    data = bytearray((directory / file.name).read_bytes())
    data[100] ^= 1
    (directory / file.name).write_bytes(data)
    with pytest.raises(UserError, match="sha256 differs"):
        ShardCache(str(directory), str(tmp_path / "cache")).fetch(file)
    assert copies(tmp_path / "cache") == []


def test_a_shard_that_is_gone_is_named(directory: Path, tmp_path) -> None:
    file = read_manifest(directory).files[0]
    (directory / file.name).unlink()
    with pytest.raises(UserError, match=rf"{file.name}: cannot be copied into the cache"):
        ShardCache(str(directory), str(tmp_path / "cache")).fetch(file)


def test_a_truncated_copy_is_fetched_again(directory: Path, tmp_path) -> None:
    file = read_manifest(directory).files[0]
    cache = ShardCache(str(directory), str(tmp_path / "cache"))
    place = Path(cache.fetch(file))
    place.write_bytes(place.read_bytes()[:100])
    assert Path(ShardCache(str(directory), str(tmp_path / "cache")).fetch(file)).stat().st_size == file.bytes


def test_the_cache_follows_the_desktops_custom(monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == "/somewhere/vlm-jax/shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == os.path.expanduser("~/.cache/vlm-jax/shards")


@pytest.fixture
def store(monkeypatch) -> Iterator[Callable[[type], None]]:
    """Puts a file system of fsspec where the client of gs:// would be."""
    clients = sys.modules["fsspec.registry"]._registry
    monkeypatch.setitem(clients, "gcs", MemoryFileSystem)

    def install(client: type) -> None:
        clients["gcs"] = client
        epath.backend.fsspec_backend._get_filesystem.cache_clear()

    install(MemoryFileSystem)
    yield install
    MemoryFileSystem.store.clear()
    epath.backend.fsspec_backend._get_filesystem.cache_clear()


@pytest.fixture
def bucket(directory: Path, store) -> str:
    """The set in an object store, which is in memory here."""
    place = epath.Path("gs://bucket/captions/birds/train")
    place.mkdir(parents=True)
    for path in directory.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return str(place)


def test_an_object_store_is_read_through_the_cache(bucket: str, directory: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    source, local = open_source(source_for(bucket)), open_source(ArrayRecords(str(directory)))
    assert source.name == "captions/birds"
    assert [source[index] for index in range(20)] == [local[index] for index in range(20)]
    assert len(copies(tmp_path / "home/vlm-jax/shards")) == 2


class NoEntry(MemoryFileSystem):
    """A store that lets nobody in."""

    def info(self, path: str, **_: object) -> dict:
        raise PermissionError(f"{path}:\nno credentials")

    _open = info


def test_a_store_that_refuses_is_one_line(store) -> None:
    store(NoEntry)
    for attempt in (lambda path: open_source(ArrayRecords(path)), source_for):
        with pytest.raises(UserError, match="gs://bucket/nowhere") as caught:
            attempt("gs://bucket/nowhere")
        assert "\n" not in str(caught.value)
