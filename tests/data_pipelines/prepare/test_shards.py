"""Prepared sets: the same records give the same files, and nothing that is unfinished looks finished."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.examples import Image
from data_pipelines.manifest import read_manifest, verify
from data_pipelines.prepare.shards import SetWriter, write_set, write_splits
from data_pipelines.prepare.splits import Split
from data_pipelines.sources import ArrayRecords, open_source
from vlm_jax.errors import UserError

CONFIG = {"version": 1, "languages": ("en", "ru")}
ABOUT = {"licences": ["MIT"], "versions": {"birds": "2.1"}, "kind": "captions"}


def records(count: int = 40, seed: int = 0) -> list[dict]:
    made = [
        {
            "id": f"птицы/{number}",
            "image": Image(data=bytes([number]) * (10 + number)),
            "captions": [{"text": f"Утка номер {number}.", "language": "ru"}],
            "real": [f"picture {number // 2}", "shared"],
        }
        for number in range(count)
    ]
    random.Random(seed).shuffle(made)
    return made


def never() -> Iterator[Any]:
    raise AssertionError("the records of a set that is there are not touched")
    yield


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def read(directory: Path) -> dict[str, dict]:
    source = open_source(ArrayRecords(str(directory)))
    return {record["id"]: record for record in map(source.__getitem__, range(len(source)))}


def test_every_record_comes_back_once(tmp_path) -> None:
    manifest = write_set(tmp_path / "train", records(), config=CONFIG, about=ABOUT, shards=3)
    assert [file.records for file in manifest.files] == [13, 13, 14]
    assert read(tmp_path / "train") == {record["id"]: record for record in records()}
    assert list(verify(tmp_path / "train")) == [(file.name, "") for file in manifest.files]


def test_files_do_not_depend_on_the_order_of_records_nor_on_the_place(tmp_path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        write_set(tmp_path / name, records(seed=seed), config=CONFIG, about=ABOUT, shards=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_manifest_says_what_the_set_is(tmp_path) -> None:
    manifest = write_set(tmp_path / "train", records(), config=CONFIG, about=ABOUT)
    assert read_manifest(tmp_path / "train") == manifest
    assert manifest.counts == {"distinct_real_pairs": 21, "bad_records": 0}
    assert manifest.licences == ("MIT",)
    assert manifest.versions["birds"] == "2.1"
    assert "array_record" in manifest.versions
    assert manifest.about == {"kind": "captions"}
    assert manifest.config["languages"] == ["en", "ru"]


def test_a_set_that_is_there_is_not_written_again(tmp_path) -> None:
    first = write_set(tmp_path / "train", records(), config=CONFIG, about=ABOUT)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "train").iterdir()}
    assert write_set(tmp_path / "train", never(), config=CONFIG, about=ABOUT) == first
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "train").iterdir()} == times


def test_a_new_description_alone_changes_the_manifest_only(tmp_path) -> None:
    first = write_set(tmp_path / "train", records(), config=CONFIG, about=ABOUT)
    again = write_set(tmp_path / "train", never(), config=CONFIG, about={"kind": "captions", "title": "Птицы"})
    assert again.files == first.files
    assert read_manifest(tmp_path / "train").about["title"] == "Птицы"


@pytest.mark.parametrize("cause", ["config", "shards", "code", "damage", "missing", "manifest"])
def test_anything_else_is_written_anew(tmp_path, monkeypatch, cause: str) -> None:
    place, config, shards = tmp_path / "train", CONFIG, 2
    first = write_set(place, records(), config=config, shards=shards)
    shard = place / first.files[0].name
    if cause == "config":
        config = {**CONFIG, "version": 2}
    elif cause == "shards":
        shards = 3
    elif cause == "code":
        monkeypatch.setattr("data_pipelines.prepare.shards.code_hash", lambda: "other")
    elif cause == "damage":
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    elif cause == "missing":
        shard.unlink()
    else:
        (place / "manifest.json").write_text("{")
    again = write_set(place, records(30), config=config, shards=shards)
    assert again.records == 30 == len(read(place))
    assert sorted(os.listdir(tmp_path)) == ["train"]


@pytest.mark.parametrize("record", [{"id": "птицы/3"}, {"id": ""}, {"id": 3}, {}])
def test_ids_are_there_and_distinct(tmp_path, record: dict) -> None:
    with pytest.raises(UserError, match="id"):
        write_set(tmp_path / "train", [*records(), record], config=CONFIG)
    assert os.listdir(tmp_path) == []


def test_bad_records_are_listed_beside_the_shards_and_stop_the_build_when_they_are_many(tmp_path) -> None:
    bad = [{"id": f"bad/{number}", "image": Image(path=f"/nowhere/{number}.png")} for number in range(4)]
    manifest = write_set(tmp_path / "train", [*records(), *bad[:2]], config=CONFIG)
    assert manifest.counts["bad_records"] == 2
    assert manifest.records == 40
    lines = [json.loads(line) for line in (tmp_path / "train/quarantine.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["bad/0", "bad/1"]
    assert "/nowhere/0.png" in lines[0]["reason"]
    with pytest.raises(UserError, match="unusable"):
        write_set(tmp_path / "test", [*bad, {**bad[0], "id": "bad/4"}, *records()], config=CONFIG)
    assert not (tmp_path / "test").exists()


def test_a_failure_leaves_the_old_set_as_it_was(tmp_path) -> None:
    write_set(tmp_path / "train", records(), config=CONFIG)
    before = contents(tmp_path / "train")

    def failing() -> Iterator[dict]:
        yield from records(10)
        raise RuntimeError("the corpus ends in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_set(tmp_path / "train", failing(), config={"version": 2})
    assert contents(tmp_path / "train") == before
    assert os.listdir(tmp_path) == ["train"]


def test_somebody_elses_directory_is_not_replaced(tmp_path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/thesis.odt").write_text("years of work")
    with pytest.raises(UserError, match="it is no prepared set; remove it yourself"):
        write_set(tmp_path / "train", records(), config=CONFIG)
    with pytest.raises(UserError, match="it is no prepared set"):
        SetWriter(tmp_path / "train", config=CONFIG)
    assert os.listdir(tmp_path / "train") == ["thesis.odt"]


def test_two_builds_of_one_set_do_not_meet(tmp_path) -> None:
    with SetWriter(tmp_path / "train", config=CONFIG) as writer:
        for record in records():
            writer.add(record)
        with pytest.raises(UserError, match="another process is writing this set"):
            write_set(tmp_path / "train", records(), config=CONFIG)
        assert writer.finish().records == 40
    assert len(read(tmp_path / "train")) == 40


def test_no_records_are_an_empty_set_that_a_source_refuses(tmp_path) -> None:
    assert write_set(tmp_path / "test", [], config=CONFIG, shards=4).files == ()
    with pytest.raises(UserError, match="has no records"):
        open_source(ArrayRecords(str(tmp_path / "test")))


def test_a_place_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/train: cannot be written"):
        write_set(tmp_path / "file/train", records(), config=CONFIG)
    with pytest.raises(UserError, match="local"):
        write_set(Path("gs://bucket/train"), records(), config=CONFIG)


def test_splits_are_written_from_one_pass(tmp_path) -> None:
    made: list[tuple[Split, dict]] = [
        ("test" if int(record["id"].split("/")[1]) % 4 == 0 else "train", record) for record in records()
    ]
    manifests = write_splits(tmp_path / "birds", iter(made), config=CONFIG, about=ABOUT)
    assert {split: manifest.records for split, manifest in manifests.items()} == {
        "train": 30,
        "validation": 0,
        "test": 10,
    }
    assert not read(tmp_path / "birds/train").keys() & read(tmp_path / "birds/test").keys()
    assert write_splits(tmp_path / "birds", never(), config=CONFIG, about=ABOUT) == manifests


def test_a_record_in_two_splits_is_refused(tmp_path) -> None:
    record = records()[0]
    with pytest.raises(UserError, match="is in test and in train"):
        write_splits(tmp_path / "birds", [("train", record), ("test", record)], config=CONFIG)
    with pytest.raises(UserError, match="'dev'"):
        write_splits(tmp_path / "birds", [("dev", record)], config=CONFIG)  # type: ignore[list-item]
    assert os.listdir(tmp_path / "birds") == []


KILLED = """
import sys
from pathlib import Path
from typing import Any
from data_pipelines.prepare.shards import write_set
def records():
    print("begun", flush=True)
    for number in range(4000):
        yield {"id": f"{number}", "text": f"{number} " * 200}
write_set(Path(sys.argv[1]), records(), config={"version": int(sys.argv[2])}, shards=40)
print("done", flush=True)
"""


def test_a_killed_build_leaves_nothing_and_the_next_one_is_as_if_it_had_not_been(tmp_path) -> None:
    """SIGKILL at several moments of a build, among them while files are written and put into place."""

    def start(place: Path, version: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", KILLED, str(place), str(version)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    begun = start(tmp_path / "straight", 1)
    assert begun.stdout is not None
    assert begun.stdout.readline() == "begun\n"
    since = time.monotonic()
    assert begun.communicate()[0] == "done\n"
    took = time.monotonic() - since
    for share in (0.05, 0.5, 0.8, 0.95):
        child = start(tmp_path / "killed", 1)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(share * took)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        if (tmp_path / "killed").exists():
            assert all(problem == "" for _, problem in verify(tmp_path / "killed"))
    assert start(tmp_path / "killed", 1).communicate()[0] in ("begun\ndone\n", "done\n")
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")
    assert sorted(os.listdir(tmp_path)) == ["killed", "straight"]


FULL = """
import os, resource, signal, sys
from pathlib import Path
from data_pipelines.examples import Image
from data_pipelines.prepare.shards import write_set
from vlm_jax.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
records = ({"id": str(number), "image": Image(data=os.urandom(900))} for number in range(1000))
try:
    write_set(Path(sys.argv[1]), records, config={})
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [100_000, 940_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, limit: int) -> None:
    """The first limit stops the collecting of records, the second the writing of shards, which are padded."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "train"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "train: cannot be written" in done.stdout
    assert done.stdout.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_kill_between_the_two_renames_costs_the_set_but_not_the_next_build(tmp_path) -> None:
    write_set(tmp_path / "train", records(), config=CONFIG)
    (tmp_path / "train").rename(tmp_path / ".train.old")
    (tmp_path / ".train.partial").mkdir()
    (tmp_path / ".train.partial/shard-00000-of-00001.arrayrecord").write_bytes(b"half")
    write_set(tmp_path / "train", records(), config=CONFIG)
    assert len(read(tmp_path / "train")) == 40
    assert os.listdir(tmp_path) == ["train"]


def test_a_kill_after_the_two_renames_leaves_rubbish_that_the_next_build_clears(tmp_path) -> None:
    for name in (".train.old", "train"):
        write_set(tmp_path / name, records(), config=CONFIG)
    write_set(tmp_path / "train", records(30), config={"version": 2})
    assert len(read(tmp_path / "train")) == 30
    assert os.listdir(tmp_path) == ["train"]
