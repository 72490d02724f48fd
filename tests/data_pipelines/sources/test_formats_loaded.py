"""From files to batches: the same data in every format give the same batches, and bad records go into quarantine."""

import contextlib
import io
import json
import tarfile
from types import SimpleNamespace

import cv2
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.kinds import Captions, Instruct
from data_pipelines.loader import make_loader
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.quarantine import Quarantine
from data_pipelines.sources import JSONLines, Parquet, WebDataset

COUNT = 24
SIZES = {"rows": 4, "length": 160, "images": 4, "examples": 12, "window": 12}


def png(number):
    return cv2.imencode(".png", np.full((9, 7, 3), (number, 9 * number, 200), np.uint8))[1].tobytes()


@pytest.fixture
def formats(tmp_path):
    """The same captioned pictures as JSON lines, a table, and a tar."""
    (tmp_path / "pictures").mkdir()
    texts = [f"да {number}?" for number in range(COUNT)]
    pictures = [png(number) for number in range(COUNT)]
    for number, picture in enumerate(pictures):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(picture)
    lines = [json.dumps({"image": f"pictures/{number}.png", "text": text}) for number, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    images = [{"bytes": picture, "path": None} for picture in pictures]
    pq.write_table(pa.table({"image": images, "text": texts}), tmp_path / "a.parquet", row_group_size=5)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, members in enumerate(zip(pictures, map(str.encode, texts), strict=True)):
            for ending, data in zip(("png", "txt"), members, strict=True):
                member = tarfile.TarInfo(f"{number:03d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    common = {"layout": "pairs", "language": "ru", "name": "birds"}
    return (
        JSONLines(str(tmp_path / "a.jsonl"), **common),
        Parquet(str(tmp_path / "a.parquet"), memory=0, **common),
        WebDataset(str(tmp_path / "a.tar"), cache=str(tmp_path / "cache"), **common),
    )


def batches(source, kind, processor, count, quarantine=None):
    stage = SimpleNamespace(name="captions", data=DataConfig((MixtureEntry(source, kind),), virtual_shards=2, **SIZES))
    quarantine = quarantine or Quarantine(limit=0.0)
    with contextlib.closing(make_loader(stage, processor, seed=3, quarantine=quarantine)) as loader:
        return [jax.tree.map(np.asarray, next(loader)[0]) for _ in range(count)]


def test_every_format_gives_the_same_batches(formats, processor):
    lines, table, tar = (batches(source, Captions(), processor, 4) for source in formats)
    assert len({image.tobytes() for batch in lines for row in batch.images for image in row}) >= COUNT
    for other in (table, tar):
        for expected, batch in zip(lines, other, strict=True):
            jax.tree.map(np.testing.assert_array_equal, expected, batch)


def test_what_cannot_be_read_is_quarantined_and_the_rest_is_learned(tmp_path, processor):
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "damaged.png").write_bytes(png(1)[:40])
    (tmp_path / "round.png").symlink_to("round.png")

    def line(path, asked="<image>да?"):
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "no"}]
        return json.dumps({"image": path, "conversations": turns})

    bad = [
        (line("../secret.png"), "leads out of"),
        (line("round.png"), "loop"),
        (line("damaged.png"), "damaged"),
        (line("a.png", "да?"), "0 places of pictures"),
        ("{", "not JSON"),
        (line("a.png", "<image>да\0"), "NUL"),
        (line("a.png", "<image>\ud800"), "surrogate"),
    ]
    good = [line("a.png", f"<image>да \u200d שלום {number}?") for number in range(COUNT)]
    (tmp_path / "a.jsonl").write_text("\n".join([*good, *(text for text, _ in bad)]))
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", limit=1.0)
    source = JSONLines(str(tmp_path / "a.jsonl"), layout="llava", name="birds")
    batches(source, Instruct(), processor, 12, quarantine)
    listed = [json.loads(entry) for entry in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    reasons = {entry["id"]: entry["reason"] for entry in listed}
    assert sorted(reasons) == sorted(f"birds/{COUNT + number}" for number in range(len(bad)))
    for number, (_, reason) in enumerate(bad):
        assert reason in reasons[f"birds/{COUNT + number}"]
