"""GCompris' boards, puzzles and words become caption records in both languages."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_qt_files import write_qm, write_rcc

from data_pipelines.examples import Image
from data_pipelines.images import decode
from data_pipelines.prepare.corpora.pictures.gcompris import records
from data_pipelines.prepare.corpora.pictures.gcompris_puzzles import assembled

BOARD = """
property var tab: [
    { "image": "qrc:/x/key.svg", "title": qsTr("Horse"), "text": qsTr("It says \\"neigh\\"."),
      "image2": "qrc:/x/horse.webp", "text2": qsTr("Hooves"), "x": 0.1 },
    { "image": "qrc:/x/key.svg", "title": qsTr("Nothing"), "text": qsTr("No picture."), "image2": "qrc:/x/gone.webp" }
]
"""

PLANETS = """
return [ { "realImg": "qrc:/x/sun.webp", "bodyName": qsTr("Sun"), "bodySize": 1.3,
    "levels": [
        { "question": qsTr("How old?"), "options": [qsTr("1")] }
    ]
} ]
"""

PUZZLE = """
   property string instruction: qsTr("A painter, Two halves - 1888")
   property var levels : [
      { "pixmapfile" : "image/bg.svg", "type" : "SHAPE_BACKGROUND_IMAGE", "width": 80, "height": 60 },
      { "pixmapfile" : "image/left.webp", "x" : "0.25", "y" : "0.5" },
      { "pixmapfile" : "image/right.webp", "x" : "0.75", "y" : "0.5" }
   ]
"""


def picture(seed: int, size: tuple[int, int] = (48, 48)) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    pixels = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    root = tmp_path / "gcompris-qt-data/usr/share/gcompris-qt"
    (root / "rcc").mkdir(parents=True)
    (root / "translations").mkdir()
    write_qm(
        root / "translations/gcompris_ru.qm",
        [("b", "Horse", "Лошадь"), ("b", 'It says "neigh".', "Она ржёт."), ("b", "Sun", "Солнце")],
    )
    empty = {"x/a.txt": b""}
    boards = {"x/board1.qml": BOARD.encode(), "x/horse.webp": picture(1)}
    planets = {"x/Dataset.js": PLANETS.encode(), "x/sun.webp": picture(2)}
    puzzle = {
        "r/board/board1_0.qml": PUZZLE.encode(),
        "r/image/left.webp": picture(3, (40, 60)),
        "r/image/right.webp": picture(4, (40, 60)),
    }
    folder = "gcompris/src/activities/lang/resource"
    words = [
        {"image": "lion.webp", "description": "lion"},
        {"image": "animal.webp", "description": "animal"},
    ]
    lang = {
        f"{folder}/content-en.json": json.dumps({"lion.ogg": "lion", "animal.ogg": "animal"}).encode(),
        f"{folder}/content-ru.json": json.dumps({"lion.ogg": "лев", "animal.ogg": ""}).encode(),
        f"{folder}/words_sample.json": json.dumps([{"content": [{"name": "animal", "content": words}]}]).encode(),
        f"{folder}/words_sample/lion.webp": picture(5),
        f"{folder}/words_sample/animal.webp": picture(6),
    }
    files = {"explore_farm_animals": boards, "solar_system": planets, "paintings": puzzle, "lang": lang}
    for name in ("explore_monuments", "explore_world_animals", "explore_world_music", "louis-braille", "details"):
        files[name] = empty
    for name, content in files.items():
        write_rcc(root / f"rcc/{name}.rcc", content, packing="zstd")
    return tmp_path


def test_every_source_gives_its_pictures_and_texts(raw: Path) -> None:
    found = {record["id"]: record["captions"] for _, record in records(raw)}
    assert found == {
        "gcompris/explore_farm_animals/horse": [
            {"text": "Horse", "language": "en", "name": True},
            {"text": "Лошадь", "language": "ru", "name": True},
            {"text": 'It says "neigh".', "language": "en"},
            {"text": "Она ржёт.", "language": "ru"},
        ],
        "gcompris/solar_system/sun": [
            {"text": "Sun", "language": "en", "name": True},
            {"text": "Солнце", "language": "ru", "name": True},
        ],
        "gcompris/paintings/a-painter-two-halves-1888": [
            {"text": "A painter, Two halves - 1888", "language": "en", "name": True}
        ],
        "gcompris/words/lion": [
            {"text": "lion", "language": "en", "name": True},
            {"text": "лев", "language": "ru", "name": True},
        ],
    }


def test_a_puzzle_is_put_together_from_its_pieces() -> None:
    left, right = picture(3, (40, 60)), picture(4, (40, 60))
    files = {"r/board/b.qml": PUZZLE.encode(), "r/image/left.webp": left, "r/image/right.webp": right}
    ((_, title, whole),) = assembled(files)
    assert title == "A painter, Two halves - 1888"
    pixels = decode(whole)
    assert pixels.shape == (60, 80, 3)
    np.testing.assert_array_equal(pixels[:, :40], decode(Image(data=left)))
    np.testing.assert_array_equal(pixels[:, 40:], decode(Image(data=right)))


def test_a_board_without_its_pieces_is_left_out() -> None:
    assert list(assembled({"r/board/b.qml": PUZZLE.encode()})) == []
