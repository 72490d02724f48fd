"""Where pages and pictures come from, and that no page can show what lies outside its folder."""

import contextlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.prepare.web.funnel import READ, SAMPLES, WRITTEN, Tally, funnel_table
from data_pipelines.prepare.web.inputs import find_tasks, input_facts, page_address, picture_location, read_bytes
from data_pipelines.prepare.web.warc import CutWarc, warc_record, warc_responses
from vlm_jax.errors import UserError


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    folder = tmp_path / "pages"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.html", "deep/б в.htm", "deep/picture.png", "notes.txt"):
        (folder / name).write_bytes(b"x")
    (tmp_path / "secret.png").write_bytes(b"secret")
    return folder


def test_pages_are_found_in_order_and_pictures_by_their_address(pages: Path) -> None:
    (task,) = find_tasks([str(pages)])
    assert task == {"folder": str(pages), "name": "pages", "files": ["a.html", "deep/б в.htm"]}
    address = page_address("pages", "deep/picture.png")
    location = picture_location(address, {"pages": str(pages)})
    assert location == [str(pages / "deep/picture.png"), -1]
    assert read_bytes(location, 10) == b"x"


@pytest.mark.parametrize(
    "url",
    [
        "file://pages/../secret.png",
        "file://pages/deep/../../secret.png",
        "file://pages/%2e%2e/secret.png",
        "file://pages//secret.png/../../secret.png",
        "file://other/a.html",
        "file:///secret.png",
        "https://pages/a.html",
        "file://pages/out.png",
        "file://pages/outside/secret.png",
        "file://pages/a%00.png",
        "file://[bad",
    ],
)
def test_pictures_cannot_leave_their_folder(pages: Path, url: str) -> None:
    (pages / "out.png").symlink_to(pages.parent / "secret.png")
    (pages / "outside").symlink_to(pages.parent)
    location = picture_location(url, {"pages": str(pages)})
    assert location is None or read_bytes(location, 10) != b"secret"
    assert location is None or location[0].startswith(f"{pages}{os.sep}")


def test_loops_of_links_end(pages: Path) -> None:
    (pages / "deep/loop").symlink_to(pages)
    (pages / "self.html").symlink_to(pages / "self.html")
    (task,) = find_tasks([str(pages)])
    assert task["files"] == ["a.html", "deep/б в.htm"]
    location = picture_location("file://pages/self.html", {"pages": str(pages)})
    assert location is None or read_bytes(location, 10) is None


def test_names_that_are_no_utf8_work(pages: Path) -> None:
    name = os.fsdecode(b"caf\xe9.html")
    (pages / name).write_bytes(b"bytes")
    (task,) = find_tasks([str(pages)])
    assert name in task["files"]
    address = page_address(task["name"], name)
    address.encode()
    location = picture_location(address, {"pages": str(pages)})
    assert location is not None
    assert read_bytes(location, 9) == b"bytes"


def test_folders_of_one_name_get_longer_names(tmp_path: Path) -> None:
    for name in ("en/help", "ru/help"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.html").write_text("")
    assert [task["name"] for task in find_tasks([str(tmp_path / "en/help"), str(tmp_path / "ru/help")])] == [
        "en-help",
        "ru-help",
    ]


def test_facts_change_with_the_files(pages: Path) -> None:
    before = input_facts(find_tasks([str(pages)]))
    (pages / "a.html").write_bytes(b"other")
    assert input_facts(find_tasks([str(pages)])) != before


@pytest.mark.parametrize("suffix", [".warc", ".warc.gz"])
def test_warc_records_are_read_in_order_and_again_by_offset(
    tmp_path: Path, write_warc: Callable[..., Path], suffix: str
) -> None:
    files = {"a.html": b"<p>a</p>" * 100, "b.png": bytes(range(256)) * 500, "c.json": b"{}", "d.html": b""}
    path = str(write_warc(files, tmp_path / f"w{suffix}"))
    found = list(warc_responses(path, 1000))
    assert [(r.url, r.is_page, r.charset) for r in found] == [
        ("https://example.org/a.html", True, "utf-8"),
        ("https://example.org/b.png", False, ""),
        ("https://example.org/d.html", True, "utf-8"),
    ]
    assert [len(r.body) for r in found] == [800, 1001, 0]
    again = warc_record(path, found[1].offset, 10**6)
    assert again is not None
    assert again.body == files["b.png"]
    assert warc_record(path, 7, 10) is None


def test_only_pages_that_were_there_are_taken(tmp_path: Path, write_warc: Callable[..., Path]) -> None:
    path = write_warc({"a.html": b"gone"}, tmp_path / "w.warc.gz", status="404 Not Found")
    assert list(warc_responses(str(path), 100)) == []


@pytest.mark.parametrize("suffix", [".warc", ".warc.gz"])
def test_a_warc_cut_anywhere_gives_whole_records_only(
    tmp_path: Path, write_warc: Callable[..., Path], suffix: str
) -> None:
    rng = random.Random(0)
    files = {f"{i}.html": rng.randbytes(300) for i in range(4)}
    path = write_warc(files, tmp_path / f"w{suffix}")
    whole = path.read_bytes()
    offsets = [response.offset for response in warc_responses(str(path), 1000)]
    for cut in [*rng.sample(range(1, len(whole)), 40), *offsets[1:]]:
        path.write_bytes(whole[:cut])
        found = []
        with contextlib.suppress(CutWarc):
            for response in warc_responses(str(path), 1000):
                found.append(response.body)
        assert found == list(files.values())[: len(found)]
        assert len(found) >= sum(offset < cut for offset in offsets) - 1


def test_what_is_no_warc_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.warc").write_bytes(b"something else" * 100)
    with pytest.raises(CutWarc):
        list(warc_responses(str(tmp_path / "x.warc"), 100))
    with pytest.raises(UserError, match="no such file"):
        find_tasks([str(tmp_path / "y.warc")])


def test_tallies_add_up_in_any_order() -> None:
    events = [([1, 0, i, 10 * i], {"id": f"page{i}", "text": str(i)}) for i in range(30)]
    tally = Tally()
    straight = tally.empty()
    for event in events:
        straight = tally.add(straight, event)
    rng = random.Random(1)
    for _ in range(5):
        rng.shuffle(events)
        parts = [tally.empty() for _ in range(4)]
        for index, event in enumerate(events):
            parts[index % 4] = tally.add(parts[index % 4], event)
        assert tally.merge(parts) == straight
    assert straight[0] == [30, 0, 435, 4350]
    assert len(straight[1]) == SAMPLES


def test_a_funnel_that_does_not_add_up_is_a_fault() -> None:
    read, short, written = [[3, 0, 2, 90], []], [[1, 0, 0, 5], []], [[2, 0, 2, 85], []]
    table = funnel_table({READ: read, "too_short": short, WRITTEN: written})
    assert table["rules"][-1]["left"] == {"pages": 2, "passages": 0, "pictures": 2, "words": 85}
    with pytest.raises(ValueError, match="does not add up"):
        funnel_table({READ: read, WRITTEN: written})
