"""WebDataset tars: every record by its number, and what becomes of tars that are cut off or damaged."""

import io
import json
import os
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_pipelines.examples import Image
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources import WebDataset, open_source, source_for, tar_index
from data_pipelines.sources.limits import RECORD_LIMIT
from vlm_jax.errors import UserError


def write(path, members, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if data is None:
                member.type = tarfile.DIRTYPE
                tar.addfile(member)
                continue
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def members(*numbers, folder=""):
    for number in numbers:
        yield f"{folder}{number:04d}.jpg", f"picture {number}".encode()
        yield f"{folder}{number:04d}.txt", f"Утка {number}".encode()
        yield f"{folder}{number:04d}.json", json.dumps({"language": "ru", "number": number}).encode()


@pytest.fixture
def open_tar(tmp_path):
    def open_tar(path, **options):
        return open_source(WebDataset(str(path), **{"name": "birds", "cache": str(tmp_path / "cache"), **options}))

    return open_tar


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_with_one_key_are_a_record(tmp_path, open_tar, format):
    folder = "птицы/" + "a" * (60 if format == tarfile.USTAR_FORMAT else 300) + "/"
    listed = [("птицы", None), *members(0, 1, folder=folder), ("README", b"no record"), *members(2)]
    write(tmp_path / "a.tar", listed, format)
    opened = open_tar(tmp_path / "a.tar")
    assert [opened[number]["id"] for number in range(len(opened))] == [
        f"birds/0:{folder}0000",
        f"birds/1:{folder}0001",
        "birds/2:0002",
    ]
    assert opened[1]["image"] == Image(data=b"picture 1")
    assert opened[1]["captions"] == [{"text": "Утка 1", "language": "ru"}]
    with pytest.raises(IndexError):
        opened[3]


def test_several_tars_in_any_order_and_from_threads(tmp_path, open_tar):
    (tmp_path / "tars").mkdir()
    for tar in range(3):
        write(tmp_path / "tars" / f"{tar}.tar", members(*range(tar * 20, tar * 20 + 20)))
    opened = open_tar(tmp_path / "tars")
    asked = random.Random(0).choices(range(60), k=2000)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(opened.__getitem__, asked))
    assert [record["image"].data for record in made] == [f"picture {number}".encode() for number in asked]


def test_a_tar_is_indexed_once_and_anew_when_it_changed(tmp_path, open_tar, monkeypatch):
    path = write(tmp_path / "a.tar", members(0, 1))
    first = open_tar(path)
    scan = tar_index._scan
    monkeypatch.setattr(tar_index, "_scan", None)
    again = open_tar(path)
    assert [again[number] for number in range(2)] == [first[number] for number in range(2)]
    monkeypatch.setattr(tar_index, "_scan", scan)
    write(path, members(0, 1, 2))
    os.utime(path, ns=(0, 0))
    assert len(open_tar(path)) == 3
    for index in (tmp_path / "cache" / "tars").iterdir():
        index.write_text("{damaged")
    assert len(open_tar(path)) == 3


def test_an_index_that_cannot_be_kept_does_no_harm(tmp_path, open_tar):
    path = write(tmp_path / "a.tar", members(0))
    (tmp_path / "file").touch()
    assert len(open_tar(path, cache=str(tmp_path / "file"))) == 1


def test_every_cut_is_noticed(tmp_path, open_tar):
    """In the middle of a member, between two, in a header."""
    whole = write(tmp_path / "a.tar", members(*range(4))).read_bytes()
    end = 4 * 3 * 1024
    for size in (1, 100, 512, 700, 1024, 2048, 5000, 3072, 6144, 6145, end - 1, end):
        (tmp_path / "a.tar").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"a\.tar is (cut off .* copy it again|no tar)"):
            open_tar(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(whole[: end + 512])
    assert len(open_tar(tmp_path / "a.tar")) == 4


def test_of_a_cut_tar_the_whole_records_may_be_taken(tmp_path, open_tar):
    path = write(tmp_path / "a.tar", members(*range(4)))
    path.write_bytes(path.read_bytes()[: 3 * 3 * 1024 + 515])
    opened = open_tar(path, take_cut=True)
    assert [opened[number]["captions"][0]["text"] for number in range(3)] == ["Утка 0", "Утка 1", "Утка 2"]
    assert len(opened) == 4
    with pytest.raises(BadRecord, match=r"'0003': the tar is cut off in the middle of '0003\.jpg'") as caught:
        opened[3]
    assert caught.value.record_id == "birds/3"


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path, open_tar):
    path = write(tmp_path / "a.tar", members(*range(4)))
    data = bytearray(path.read_bytes())
    data[2 * 3 * 1024] ^= 255
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"cut off at byte 6,144 of .*, after 2 records"):
        open_tar(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no tar, or damaged"),
        (b"not a tar" * 100, "no tar, or damaged"),
        (b"\x1f\x8b\x08 compressed", r"compressed.*unpack it \(gunzip\)"),
        (b"\0" * 1024, "holds no record"),
    ],
)
def test_what_is_no_tar_is_the_users_error(tmp_path, open_tar, data, reason):
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(UserError, match=reason):
        open_tar(tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        ([("a.txt", b"a")], "no field 'image'"),
        ([("a.jpg", b"a")], "no field 'text'"),
        ([("a.jpg", b"a"), ("a.txt", "Утка".encode("utf-16"))], "a text is not UTF-8"),
        ([("a.jpg", b"a"), ("a.jpg", b"b"), ("a.txt", b"c")], r"'a': two members '\.jpg'"),
        ([("a.jpg", b"a"), ("a.json", b"{")], r"its \.json is not JSON"),
        ([("a.jpg", b"a"), ("a.json", b"[1]")], r"its \.json is a list"),
        ([("a.jpg", b"a"), ("a.png", b"b"), ("a.txt", b"c")], "no field 'image'"),
        ([("a.json", b'{"image": "../b.jpg", "text": "a"}')], "no such member"),
    ],
)
def test_what_is_no_record_is_bad(tmp_path, open_tar, listed, reason):
    opened = open_tar(write(tmp_path / "a.tar", [*listed, *members(1)]))
    with pytest.raises(BadRecord, match=reason) as caught:
        opened[0]
    assert caught.value.record_id == "birds/0"
    assert opened[1]["image"].data == b"picture 1"


def test_a_record_of_100_mb_is_a_bad_record(tmp_path, open_tar):
    member = tarfile.TarInfo("big.jpg")
    member.size = 100_000_000
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(member.tobuf())
        file.truncate(512 + (100_000_000 + 511) // 512 * 512 + 1024)
    with pytest.raises(BadRecord, match=f"100,000,000 bytes; the limit is {RECORD_LIMIT:,}"):
        open_tar(path)[0]


def test_other_layouts_and_members_by_name(tmp_path, open_tar):
    turns = [{"from": "human", "value": "<image><image>Which?"}, {"from": "gpt", "value": "The left one."}]
    fields = {"conversations": turns, "image": ["0.left.png", "right.png"]}
    listed = [("0.left.png", b"l"), ("0.right.png", b"r"), ("0.json", json.dumps(fields).encode())]
    path = write(tmp_path / "a.tar", [*listed, ("0.txt", b"Birds")])
    made = open_tar(path, layout="llava")[0]
    assert made["messages"][0]["content"] == [
        {"image": Image(data=b"l")},
        {"image": Image(data=b"r")},
        {"text": "Which?"},
    ]
    made = open_tar(path, fields=(("image", "right.png"),))[0]
    assert (made["image"], made["captions"][0]["text"]) == (Image(data=b"r"), "Birds")


def test_the_layout_is_guessed_from_the_first_record(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    path = write(tmp_path / "a.tar", members(0))
    assert source_for(str(path)) == WebDataset(str(path), layout="pairs")
    assert (tmp_path / "home" / "vlm-jax" / "shards" / "tars").is_dir()
    path = write(tmp_path / "b.tar", [("0.json", b'{"text_list": ["a"], "image_info": []}')])
    assert source_for(str(path)).layout == "mmc4"


def test_names_that_are_not_utf8_do_no_harm(tmp_path, open_tar):
    listed = [("\udcd3.jpg", b"a"), ("\udcd3.txt", b"b")]
    opened = open_tar(write(tmp_path / "a.tar", [*listed, *members(1)], tarfile.GNU_FORMAT))
    assert [opened[number]["id"] for number in range(2)] == ["birds/0:?", "birds/1:0001"]
    assert opened[0]["image"].data == b"a"
