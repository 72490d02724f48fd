"""Tux Paint's stamps become caption records in both languages."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipelines.prepare.corpora.pictures.tuxpaint import SETS, records
from data_pipelines.records import decode_record, encode_record
from vlm_jax.errors import UserError


def stamp(raw: Path, name: str, texts: str | None, seed: int, ending: str = "png") -> None:
    path = raw / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps" / f"{name}.{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if ending == "svg":
        path.write_text(
            '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M1 1h5v7z"/></svg>', encoding="utf-8"
        )
    else:
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
        cv2.imwrite(str(path), cv2.resize(coarse, (64, 64), interpolation=cv2.INTER_CUBIC))
    if texts is not None:
        path.with_suffix(".txt").write_text(texts, encoding="utf-8")


def test_texts_in_both_languages_families_and_what_is_left_out(tmp_path: Path) -> None:
    stamp(tmp_path, "birds/duck", "A duck.\nde.utf8=Eine Ente.\nru.utf8=Утка.\n", 1)
    stamp(tmp_path, "birds/duck2", "A  duck that swims.\nru.utf8=\n", 2)
    stamp(tmp_path, "birds/duck", "", 1, "svg")  # the PNG is taken
    (tmp_path / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps/birds/duck.txt").write_text(
        "A duck.\nde.utf8=Eine Ente.\nru.utf8=Утка.\n", encoding="utf-8"
    )
    stamp(tmp_path, "hats/cap", "A cap.\nru.utf8=Кепка.\n", 3, "svg")
    stamp(tmp_path, "hats/no-text", None, 4)
    found = {record["id"]: (split, record) for split, record in records(tmp_path)}
    assert set(found) == {"tuxpaint/birds/duck", "tuxpaint/birds/duck2", "tuxpaint/hats/cap"}
    split, duck = found["tuxpaint/birds/duck"]
    assert duck["captions"] == [{"text": "A duck.", "language": "en"}, {"text": "Утка.", "language": "ru"}]
    assert duck["real"] == ["tuxpaint/birds/duck en 0", "tuxpaint/birds/duck ru 0"]
    assert duck["topic"] == "birds"
    assert duck["image"].path.endswith("duck.png")
    assert found["tuxpaint/birds/duck2"][1]["captions"] == [{"text": "A duck that swims.", "language": "en"}]
    assert found["tuxpaint/birds/duck2"][1]["family"] == duck["family"]
    assert found["tuxpaint/birds/duck2"][0] == split
    assert found["tuxpaint/hats/cap"][1]["image"].data.startswith(b"\x89PNG")
    assert all(decode_record(encode_record(record))["id"] == record["id"] for _, record in found.values())


def test_without_the_package_it_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tuxpaint-stamps-default.*vlm data fetch"):
        list(SETS[0].build(tmp_path))
