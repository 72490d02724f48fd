"""Pictures that are variants of each other share a family, others do not."""

import cv2
import numpy as np

from data_pipelines.examples import Image
from data_pipelines.prepare.corpora.pictures.families import families, stem


def picture(pixels: np.ndarray) -> Image:
    return Image(data=cv2.imencode(".png", pixels)[1].tobytes())


def scene(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return cv2.resize(coarse, (96, 96), interpolation=cv2.INTER_CUBIC)


def test_names() -> None:
    assert (stem("people/body_parts/eye_green_left"), stem("space/rocket2"), stem("9")) == (
        "people/body_parts/eye_green",
        "space/rocket",
        "9",
    )
    assert stem("a/note_012_a") == "a/note"
    assert stem("a/banana") == "a/banana"


def test_variants_by_name_by_looks_and_mirrored_are_one_family() -> None:
    one, other = scene(1), scene(2)
    louder = cv2.convertScaleAbs(one, alpha=1.05, beta=4)
    framed = cv2.copyMakeBorder(one, 20, 20, 60, 5, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    found = families(
        [
            ("b/duck", picture(one)),
            ("b/copy", picture(cv2.resize(louder, (60, 60), interpolation=cv2.INTER_AREA))),
            ("b/mirror", picture(one[:, ::-1])),
            ("b/margin", picture(framed)),
            ("b/goose", picture(other)),
            ("b/goose2", picture(scene(3))),
            ("b/swan", picture(scene(4))),
        ]
    )
    assert {name: family for name, family in found.items() if family == "b/copy"}.keys() == {
        "b/copy",
        "b/duck",
        "b/mirror",
        "b/margin",
    }
    assert found["b/goose"] == found["b/goose2"] == "b/goose"
    assert found["b/swan"] == "b/swan"


def test_flags_of_one_pattern_in_other_colours_are_apart() -> None:
    def flag(*stripes: tuple[int, int, int]) -> Image:
        return picture(np.repeat(np.array(stripes, np.uint8)[:, None], 30, axis=1).repeat(10, axis=0))

    found = families(
        [("it", flag((0, 140, 0), (255, 255, 255), (200, 0, 0))), ("x", flag((0, 0, 140), (90, 90, 90), (0, 0, 9)))]
    )
    assert len(set(found.values())) == 2


def test_the_order_does_not_matter() -> None:
    pictures = [(f"{name}", picture(scene(seed))) for name, seed in (("c", 1), ("a", 1), ("b", 2))]
    assert families(pictures) == families(reversed(pictures)) == {"a": "a", "b": "b", "c": "a"}
