"""`vlm data inspect` and `vlm data stats` read every format that training reads, and say what cannot be read."""

import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.examples import Image
from data_pipelines.prepare.shards import write_set
from data_pipelines.prepare.tfds_builder import write_tfds
from vlm_jax.cli import run as run_command

COUNT = 6


def png(number):
    return cv2.imencode(".png", np.full((20, 30, 3), (number, 9 * number, 200), np.uint8))[1].tobytes()


def text(number):
    return f"утка {number}"


def as_shards(place):
    records = (
        {"id": str(n), "image": Image(data=png(n)), "captions": [{"text": text(n), "language": "ru"}]}
        for n in range(COUNT)
    )
    write_set(place / "shards", records, shards=2, config={}, about={"kind": "captions"})
    return place / "shards"


def as_tfds(place):
    (place / "birds").mkdir()
    as_shards(place).rename(place / "birds" / "train")
    return write_tfds(place / "birds", place / "tfds", kind="captions", name="birds")


def as_lines(place):
    (place / "pictures").mkdir()
    for n in range(COUNT):
        (place / "pictures" / f"{n}.png").write_bytes(png(n))
    lines = [json.dumps({"image": f"pictures/{n}.png", "text": text(n)}, ensure_ascii=False) for n in range(COUNT)]
    (place / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return place / "a.jsonl"


def as_llava(place):
    as_lines(place)
    turns = [[{"from": "human", "value": "<image>\nЧто это?"}, {"from": "gpt", "value": text(n)}] for n in range(COUNT)]
    plain = [{"id": str(n), "image": f"pictures/{n}.png", "conversations": turns[n]} for n in range(COUNT)]
    (place / "a.json").write_text(json.dumps(plain), encoding="utf-8")
    return place / "a.json"


def as_table(place):
    images = [{"bytes": png(n), "path": None} for n in range(COUNT)]
    pq.write_table(pa.table({"image": images, "text": [text(n) for n in range(COUNT)]}), place / "a.parquet")
    return place / "a.parquet"


def as_tar(place):
    with tarfile.open(place / "a.tar", "w") as tar:
        for n in range(COUNT):
            for ending, data in (("png", png(n)), ("txt", text(n).encode())):
                member = tarfile.TarInfo(f"{n:03d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return place / "a.tar"


FORMATS = {"shards": as_shards, "tfds": as_tfds, "lines": as_lines, "llava": as_llava, "table": as_table, "tar": as_tar}


@pytest.fixture
def vlm(capsys, tmp_path):
    def call(command, path):
        code = run_command(["data", command, str(path), "--output", str(tmp_path / "pages")])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out, Path(captured.out.strip().splitlines()[-1])

    return call


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_shown_and_counted(name, tmp_path, vlm):
    path = FORMATS[name](tmp_path)
    out, page = vlm("inspect", path)
    shown = page.read_text(encoding="utf-8")
    assert shown.count("<img ") == COUNT
    assert all(text(n) in shown and text(n) in out for n in range(COUNT))
    _, page = vlm("stats", path)
    figures = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert (figures["records"], figures["bad_records"], figures["pictures"]["distinct"]) == (COUNT, 0, COUNT)
    assert sum(each["texts"] for each in figures["languages"].values()) == COUNT * (2 if name == "llava" else 1)
    assert figures["pairs"] == COUNT + (COUNT if name == "llava" else 0)
    assert figures["pictures"]["sizes"] == [[30, 20]] * COUNT


def test_bad_records_are_shown_with_their_reasons_and_counted(tmp_path, vlm):
    path = as_lines(tmp_path)
    with path.open("a", encoding="utf-8") as file:
        bad = [
            '{"image": "../secret.png", "text": "x"}',
            "no JSON",
            '{"image": "pictures/0.png", "text": "\\u202eabc"}',
        ]
        file.write("\n" + "\n".join(bad))
    (tmp_path / "pictures" / "1.png").write_bytes(png(1)[:50])
    _, page = vlm("inspect", path)
    shown = page.read_text(encoding="utf-8")
    for words in ("not JSON", "truncated", "‹U+202E›abc"):
        assert words in shown
    out, page = vlm("stats", path)
    figures = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert figures["bad_records"] == sum(figures["bad"].values()) >= 1
    assert figures["counted"] == COUNT + 3
    assert next(reason for reason in figures["bad"] if "not JSON" in reason)[:40] in out
