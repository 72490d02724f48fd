"""Prepared sets are read as they were written, from any thread, and a damaged one is never taken for a short one."""

import contextlib
import os
import random
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipelines.examples import Image
from data_pipelines.kinds import TextOnly
from data_pipelines.loader import Loader, make_loader
from data_pipelines.manifest import Manifest, ShardFile, shard_file, write_manifest
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.prepare.shards import write_set, write_shard
from data_pipelines.quarantine import BadRecord
from data_pipelines.records import encode_record
from data_pipelines.sources import ArrayRecords, Source, open_source
from vlm_jax.errors import UserError


def record(number: int) -> dict:
    return {"id": f"a/{number}", "image": Image(data=bytes([number % 256]) * number), "text": "ёж " * (number % 7)}


@pytest.fixture
def directory(tmp_path) -> Path:
    """100 records in 4 files."""
    place = tmp_path / "prepared/captions/hedgehogs/train"
    write_set(place, map(record, range(100)), config={}, shards=4)
    return place


def everything(source: Source) -> dict[str, dict]:
    return {entry["id"]: entry for entry in map(source.__getitem__, range(len(source)))}


def test_records_come_back_by_index(directory: Path) -> None:
    source = open_source(ArrayRecords(str(directory)))
    assert (len(source), source.name) == (100, "captions/hedgehogs")
    assert everything(source) == {f"a/{number}": record(number) for number in range(100)}
    for index in (-1, 100):
        with pytest.raises(IndexError):
            source[index]


def test_many_threads_read_what_one_reads(directory: Path) -> None:
    alone = open_source(ArrayRecords(str(directory)))
    expected = [alone[index] for index in range(100)]
    together = open_source(ArrayRecords(str(directory)))
    order = random.Random(0).choices(range(100), k=4000)
    with ThreadPoolExecutor(16) as pool:
        for index, found in zip(order, pool.map(together.__getitem__, order), strict=True):
            assert found == expected[index]


def test_thousands_of_files_open_without_being_opened(tmp_path) -> None:
    """More files than the system lets a process keep open; opening the source reads none of them."""
    count = 700
    original = tmp_path / "one.arrayrecord"
    write_shard(original, [encode_record(record(7))])
    files = []
    for number in range(count):
        path = tmp_path / f"shard-{number:05d}.arrayrecord"
        os.link(original, path)
        files.append(path)
    entry = shard_file(original, 1)
    write_manifest(tmp_path, Manifest(tuple(ShardFile(path.name, 1, entry.bytes, entry.sha256) for path in files)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
    try:
        source = open_source(ArrayRecords(str(tmp_path)))
        for path in files[1:]:
            path.unlink()  # so it can only have looked at the list
        assert len(source) == count
        assert source[0] == record(7)
        for path in files[1:]:
            os.link(original, path)
        assert all(source[index] == record(7) for index in range(count))
        assert len(os.listdir("/proc/self/fd")) < 500
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("cut", [0, 100, 0.5, -1])
def test_a_truncated_file_is_refused_when_the_set_is_opened(directory: Path, cut: float) -> None:
    path = directory / "shard-00002-of-00004.arrayrecord"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut) if isinstance(cut, float) else cut])
    with pytest.raises(UserError, match=r"shard-00002-of-00004\.arrayrecord has .* bytes instead of .*prepare the set"):
        open_source(ArrayRecords(str(directory)))


def test_a_missing_file_too(directory: Path) -> None:
    (directory / "shard-00003-of-00004.arrayrecord").unlink()
    with pytest.raises(UserError, match=r"shard-00003-of-00004\.arrayrecord is missing"):
        open_source(ArrayRecords(str(directory)))


def test_a_file_of_the_right_size_with_other_records_is_refused_at_its_first_record(directory: Path, tmp_path) -> None:
    path = directory / "shard-00001-of-00004.arrayrecord"
    size = path.stat().st_size
    path.write_bytes(bytes(size))
    source = open_source(ArrayRecords(str(directory)))
    assert source[24]["id"]
    with pytest.raises(UserError, match=r"shard-00001-of-00004\.arrayrecord has 0 records instead of 25"):
        source[25]


def test_flipped_bytes_cost_a_record_and_no_more(directory: Path) -> None:
    """ArrayRecord has a checksum a record; which one is bad, the error says."""
    path = directory / "shard-00000-of-00004.arrayrecord"
    expected = everything(open_source(ArrayRecords(str(directory))))
    data = bytearray(path.read_bytes())
    middle = data.find(bytes([60]) * 40)  # inside some record's picture
    middle = middle if middle >= 0 else 2000
    data[middle : middle + 8] = b"\xff" * 8
    path.write_bytes(data)
    source = open_source(ArrayRecords(str(directory)))
    bad, good = [], {}
    for index in range(100):
        try:
            good[source[index]["id"]] = source[index]
        except BadRecord as error:
            bad.append(error.record_id)
    assert 1 <= len(bad) <= 2
    assert all(name.startswith("shard-00000-of-00004.arrayrecord#") for name in bad)
    assert good.items() <= expected.items()
    assert len(good) == 100 - len(bad)


def test_bytes_that_are_no_record_are_a_bad_record(tmp_path) -> None:
    write_shard(tmp_path / "a.arrayrecord", [b"\xc1", encode_record(record(3))])
    source = open_source(ArrayRecords(str(tmp_path), unchecked=True))
    with pytest.raises(BadRecord, match="not a record") as caught:
        source[0]
    assert caught.value.record_id == "a.arrayrecord#0"
    assert source[1] == record(3)


def test_files_without_a_manifest_need_a_word(directory: Path, tmp_path) -> None:
    expected = everything(open_source(ArrayRecords(str(directory))))
    (directory / "manifest.json").unlink()
    with pytest.raises(UserError, match="no manifest"):
        open_source(ArrayRecords(str(directory)))
    assert everything(open_source(ArrayRecords(str(directory), unchecked=True))) == expected
    pattern = ArrayRecords(str(directory / "shard-0000[01]*.arrayrecord"), unchecked=True)
    assert len(open_source(pattern)) == 50
    (directory / "shard-00000-of-00004.arrayrecord").write_bytes(b"")
    with pytest.raises(UserError, match="has no records, or is truncated"):
        open_source(pattern)
    with pytest.raises(UserError, match="no file matches"):
        open_source(ArrayRecords(str(tmp_path / "*.arrayrecord"), unchecked=True))


def test_a_set_in_another_format_is_refused(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace('"array_record"', '"parquet"', 1))
    with pytest.raises(UserError, match="holds parquet, not ArrayRecord"):
        open_source(ArrayRecords(str(directory)))


def test_numbers_of_numpy_are_numbers(directory: Path) -> None:
    source = open_source(ArrayRecords(str(directory)))
    assert source[np.int64(30)] == source[30]  # type: ignore[index]


def test_a_run_is_not_resumed_on_other_records(tmp_path, processor) -> None:
    """As many of them, under the same name: only their digest tells."""

    def loader(text: str) -> Loader:
        made = ({"id": f"{number}", "language": "en", "text": f"{text} {number}?"} for number in range(12))
        write_set(tmp_path / "words", made, config={"text": text})
        entry = MixtureEntry(ArrayRecords(str(tmp_path / "words")), TextOnly())
        data = DataConfig((entry,), rows=2, length=64, images=1, examples=8, virtual_shards=2)
        return make_loader(SimpleNamespace(name="stage", data=data), processor, seed=0)

    with contextlib.closing(loader("question")) as first:
        next(first)
        state = first.get_state()
    with contextlib.closing(loader("question")) as same:
        same.set_state(state)
    with contextlib.closing(loader("questions")) as other, pytest.raises(UserError, match="saved data position"):
        other.set_state(state)
