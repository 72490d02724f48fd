"""Prepared sets as TFDS data sets: written and read without TensorFlow, equal records, readable by anybody."""

import io
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from data_pipelines.examples import Image
from data_pipelines.manifest import MANIFEST
from data_pipelines.prepare.shards import write_splits
from data_pipelines.prepare.tfds_builder import write_tfds
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources import TFDS, ArrayRecords, SourceConfig, open_source, source_for
from vlm_jax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    """Neither writing nor reading asks the network for anything."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def picture(number: int, mode: str = "RGB", kind: str = "PNG") -> Image:
    file = io.BytesIO()
    PIL.Image.new(mode, (8 + number, 6)).save(file, kind)
    return Image(data=file.getvalue())


def prepare(place: Path, kind: str, count: int = 24) -> Path:
    forms = (("RGB", "PNG"), ("RGBA", "PNG"), ("L", "JPEG"), ("P", "PNG"), ("CMYK", "JPEG"))
    records = []
    for number in range(count):
        image = picture(number, *forms[number % 5])
        fields: dict[str, Any] = {
            "captions": {"image": image, "captions": [{"text": "Утка.", "language": "ru"}][: number % 2]},
            "interleaved": {"language": "ru", "segments": [{"text": "раз"}, {"image": image}, {"text": "два"}]},
            "instruct": {"images": [image] * (number % 3), "messages": [{"role": "user", "content": "Что тут?"}]},
            "text_only": {"text": "слово " * number},
        }
        records.append(("test" if number % 4 == 0 else "train", {"id": f"д/{number}", "real": ["r"], **fields[kind]}))
    about = {"licences": ["MIT"], "about": "Утки и слова."}
    write_splits(place / kind / "birds", records, config={}, about=about)  # type: ignore[arg-type]
    return place / kind / "birds"


def everything(config: SourceConfig) -> dict[str, dict]:
    source = open_source(config)
    return {record["id"]: record for record in map(source.__getitem__, range(len(source)))}


@pytest.mark.parametrize("kind", ["captions", "interleaved", "instruct", "text_only"])
def test_a_set_comes_back_record_for_record(tmp_path, kind: str) -> None:
    prepared = prepare(tmp_path, kind)
    built = write_tfds(prepared, tmp_path / "tfds", kind=kind)
    assert built == tmp_path / "tfds" / f"{kind}_birds" / "1.0.0"
    for split in ("train", "test"):
        expected = everything(ArrayRecords(str(prepared / split)))
        assert everything(TFDS(str(built), split=split)) == expected
    assert everything(TFDS(f"{kind}_birds", "train+test", data_dir=str(tmp_path / "tfds"))).keys() == {
        f"д/{number}" for number in range(24)
    }
    assert sorted(os.listdir(tmp_path / "tfds" / f"{kind}_birds")) == ["1.0.0"]


def test_sub_splits_are_parts_of_the_split(tmp_path) -> None:
    built = str(write_tfds(prepare(tmp_path, "captions"), tmp_path / "tfds", kind="captions"))
    whole = open_source(TFDS(built))
    parts = [open_source(TFDS(built, split=split)) for split in ("train[:30%]", "train[30%:]")]
    assert [part[index] for part in parts for index in range(len(part))] == [whole[i] for i in range(len(whole))]
    assert len(open_source(TFDS(built, split="train[2:5]+test"))) == 9
    with pytest.raises(IndexError):
        parts[0][len(parts[0])]


def test_anybody_reads_it(tmp_path) -> None:
    built = write_tfds(prepare(tmp_path, "captions"), tmp_path / "tfds", kind="captions")
    builder = tfds.builder_from_directory(str(built))
    assert builder.info.description == "Утки и слова."
    assert (built / "LICENSE").read_text() == "MIT"
    examples = list(builder.as_data_source("train"))
    assert len(examples) == 18
    for example in examples:
        number = int(example["id"].decode().split("/")[1])
        assert example["image"].shape[:2] == (6, 8 + number)
        assert example["image"].dtype == np.uint8
        assert [text.decode() for text in example["captions"]["text"]] == ["Утка."][: number % 2]


def test_it_is_written_again_only_when_the_set_has_changed(tmp_path) -> None:
    prepared = prepare(tmp_path, "text_only")
    built = write_tfds(prepared, tmp_path / "tfds", kind="text_only")
    first = (built / "dataset_info.json").stat().st_mtime_ns
    write_tfds(prepared, tmp_path / "tfds", kind="text_only")
    assert (built / "dataset_info.json").stat().st_mtime_ns == first
    write_splits(prepared, [("train", {"id": "a", "text": "b"})], config={"version": 2})
    (built.parent / "incomplete.ABC_1.0.0").mkdir()  # what a killed build leaves
    write_tfds(prepared, tmp_path / "tfds", kind="text_only")
    assert everything(TFDS(str(built))) == {"a": {"id": "a", "text": "b"}}
    assert os.listdir(built.parent) == ["1.0.0"]


def test_what_cannot_be_written_says_why(tmp_path) -> None:
    with pytest.raises(UserError, match="no prepared split"):
        write_tfds(tmp_path / "nowhere", tmp_path / "tfds", kind="captions")
    with pytest.raises(UserError, match="'preference' cannot be written"):
        write_tfds(prepare(tmp_path, "text_only"), tmp_path / "tfds", kind="preference")
    with pytest.raises(UserError, match="about one picture"):
        write_tfds(prepare(tmp_path, "text_only"), tmp_path / "tfds", kind="captions")
    assert not (tmp_path / "tfds/text_only_birds/1.0.0").exists()


def test_a_truncated_file_is_never_a_short_split(tmp_path) -> None:
    built = write_tfds(prepare(tmp_path, "captions"), tmp_path / "tfds", kind="captions")
    (shard,) = built.glob("*-train.*")
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    source = open_source(TFDS(str(built)))
    with pytest.raises(UserError, match="has 0 records instead of 18"):
        source[0]
    assert open_source(TFDS(str(built), split="test"))[0]["id"]


def test_damaged_examples_are_bad_records_by_place(tmp_path) -> None:
    built = write_tfds(prepare(tmp_path, "captions"), tmp_path / "tfds", kind="captions")
    source = open_source(TFDS(str(built)))
    (shard,) = built.glob("*-train.*")
    data = bytearray(shard.read_bytes())
    place = data.find("Утка.".encode())
    data[place : place + 4] = b"\0\0\0\0"
    shard.write_bytes(data)
    bad = []
    for index in range(len(source)):
        try:
            source[index]
        except BadRecord as error:
            bad.append(error.record_id)
    assert len(bad) == 1
    assert bad[0].startswith(f"{shard.name}#")


def test_paths_tell_what_they_are(tmp_path) -> None:
    prepared = prepare(tmp_path, "text_only")
    built = write_tfds(prepared, tmp_path / "tfds", kind="text_only")
    assert source_for(str(built)) == TFDS(str(built))
    assert source_for(str(prepared / "train")) == ArrayRecords(str(prepared / "train"))
    with pytest.raises(UserError, match=r"give one of those below it: test, train, validation$"):
        source_for(str(prepared))
    with pytest.raises(UserError, match="there is no such file"):
        source_for(str(tmp_path / "nowhere"))
    (prepared / "train" / MANIFEST).unlink()
    assert source_for(str(prepared / "train")) == ArrayRecords(str(prepared / "train/*.arrayrecord"), unchecked=True)


def test_tensorflow_is_not_imported(tmp_path) -> None:
    program = (
        "import sys; from pathlib import Path; from data_pipelines.prepare.tfds_builder import write_tfds\n"
        "from data_pipelines.sources import TFDS, open_source\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        "built = write_tfds(Path(sys.argv[1]), Path(sys.argv[2]), kind='captions')\n"
        "source = open_source(TFDS(str(built))); [source[i] for i in range(len(source))]\n"
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(prepare(tmp_path, "captions")), str(tmp_path / "tfds")],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
