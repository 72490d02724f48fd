"""Open Clip Art's drawings come with the titles that say what is drawn, and only those."""

from pathlib import Path

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

from data_pipelines.prepare.corpora.pictures.openclipart import clean_title, records


def drawing(raw: Path, name: str, seed: int, size: int = 64, **texts: str) -> None:
    path = raw / "openclipart-png/usr/share/openclipart/png" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    info = PIL.PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    PIL.Image.fromarray(coarse).resize((size, size)).save(path, pnginfo=info)


@pytest.mark.parametrize(
    ("title", "clean"),
    [
        ("Cherry Pie (B and W)", "Cherry Pie, black and white"),
        ("padlock_silhouette", "padlock"),
        ("Lemon SVG theme", ""),
        ("Clipart by Somebody - fc23", ""),
        ("baloon1_04", "baloon"),
        ("Peace symbol (transparent fix)", "Peace symbol"),
        ("g8", ""),
        ("Zürich", ""),
    ],
)
def test_titles(title: str, clean: str) -> None:
    assert clean_title(title) == clean


def test_records(tmp_path: Path) -> None:
    drawing(tmp_path, "animals/duck_01", 1, Title="Wild duck", Description="A duck that swims on a lake")
    drawing(tmp_path, "animals/cat_architetto_01", 2, Title="gatto")
    drawing(tmp_path, "animals/dog", 3, Title="dog", Author="Architetto Francesco")
    drawing(tmp_path, "animals/huge", 4, size=2100, Title="A huge one")
    drawing(tmp_path, "animals/none", 5)
    for number in range(13):
        drawing(tmp_path, f"stars/s{chr(97 + number)}x", 10 + number, Title="gridwork")
    (tmp_path / "openclipart-png/usr/share/openclipart/png/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    ((_, record),) = records(tmp_path)
    assert record["id"] == "openclipart/animals/duck_01"
    assert record["captions"] == [
        {"text": "Wild duck", "language": "en", "name": True},
        {"text": "A duck that swims on a lake", "language": "en"},
    ]
    assert len(record["real"]) == 2
