"""Texts set into pictures: readable, the whole text, the same every time; faces and wordings held out."""

import io
from pathlib import Path

import matplotlib
import numpy as np
import PIL.Image
import pytest

from data_pipelines.images import decode
from data_pipelines.prepare.corpora.transcription.fonts import FONT_PACKAGES, Face, faces, faces_for
from data_pipelines.prepare.corpora.transcription.sets import REQUESTS, chosen, transcriptions
from data_pipelines.prepare.corpora.transcription.text_pictures import (
    CONTRAST,
    PATTERNS,
    Style,
    contrast,
    draw_style,
    render,
)
from data_pipelines.prepare.splits import template_split
from vlm_jax.errors import UserError

FONTS = Path(matplotlib.get_data_path()) / "fonts/ttf"
SANS = FONTS / "DejaVuSans.ttf"
PLAIN = Style(SANS, 32, (0, 0, 0), (255, 255, 255), "plain", 1.5, 1.2, False, 0.0, 0.0, 0.0, 0)


@pytest.fixture(scope="module")
def every_face() -> tuple[Face, ...]:
    return tuple(Face(path.stem, path) for path in sorted(FONTS.glob("DejaVuS*.ttf")))


def ink(pixels: np.ndarray) -> np.ndarray:
    return pixels.min(axis=2) < 128


def test_the_whole_text_is_on_the_picture() -> None:
    """The same ink as the text's words set alone, within smoothing: none is cut, none is missing."""
    text = "Нажмите кнопку «Да» и подождите: the program (GIMP) will start."
    pixels = decode(render(text, PLAIN, np.random.default_rng(0)))
    dark = ink(pixels)
    alone = sum(ink(decode(render(word, PLAIN, np.random.default_rng(1)))).sum() for word in text.split())
    assert abs(dark.sum() - alone) < 0.03 * alone
    for edge in (dark[0], dark[-1], dark[:, 0], dark[:, -1]):
        assert not edge.any()


def test_turned_text_keeps_its_ink_and_its_margins() -> None:
    text = "Turned a little"
    straight = ink(decode(render(text, PLAIN, np.random.default_rng(0))))
    for degrees in (-7.0, 7.0):
        style = Style(**{**PLAIN.__dict__, "turn": degrees})
        pixels = ink(decode(render(text, style, np.random.default_rng(0))))
        assert abs(pixels.sum() - straight.sum()) < 0.1 * straight.sum()
        for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert not edge.any()


def test_contrast_is_that_of_the_guidelines() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((9, 99, 200), (9, 99, 200)) == 1
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)  # a known near miss


def test_styles_vary_and_can_be_read() -> None:
    styles = [draw_style(np.random.default_rng(seed), SANS, 20) for seed in range(300)]
    assert {style.pattern for style in styles} == set(PATTERNS)
    assert all(contrast(style.ink, style.ground) >= CONTRAST for style in styles)
    for what in ("turn", "blur", "noise", "quality"):
        none = sum(not getattr(style, what) for style in styles)
        assert 0.1 < none / len(styles) < 0.9, what


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_leave_the_ink_apart_from_the_ground(pattern: str) -> None:
    style = Style(**{**PLAIN.__dict__, "pattern": pattern, "ground": (200, 200, 230)})
    pixels = decode(render("Текст на узоре", style, np.random.default_rng(3)))
    clean = decode(render("Текст на узоре", Style(**{**PLAIN.__dict__}), np.random.default_rng(3)))
    written = ink(clean)
    assert pixels[written].mean() + 80 < pixels[~written].mean()


def test_records(every_face: tuple[Face, ...]) -> None:
    texts = [("train", f"Sentence number {number}.") for number in range(60)]
    texts += [("test", f"Held out sentence {number}.") for number in range(60)]
    made = list(transcriptions(texts, "en", every_face))  # type: ignore[arg-type]
    assert [record["questions"][0]["answer"] for _, record in made] == [text for _, text in texts]
    assert len({record["id"] for _, record in made}) == 120
    assert not any("real" in record for _, record in made)  # nobody wrote these pictures' texts for them
    trained = {face.name for face in faces_for("train", every_face)}
    assert trained < {face.name for face in every_face}
    assert {record["face"] for split, record in made if split == "train"} <= trained
    assert {record["face"] for split, record in made if split == "test"} - trained
    for split, record in made:
        (entry,) = record["questions"]
        held_out = template_split(entry["question"]) != "train"
        assert entry["held_out"] == held_out
        assert not (held_out and split == "train")
    assert {entry["question"] in REQUESTS["ru"] for _, record in made for entry in record["questions"]} == {True, False}
    formats = {PIL.Image.open(io.BytesIO(record["image"].data)).format for _, record in made}
    assert formats == {"PNG", "JPEG"}


def test_a_function_of_text_and_seed_alone(every_face: tuple[Face, ...]) -> None:
    one = list(transcriptions([("train", "Утка."), ("train", "Гусь.")], "ru", every_face))
    again = list(transcriptions([("train", "Гусь.")], "ru", every_face))
    assert again == one[1:]
    other = list(transcriptions([("train", "Гусь.")], "ru", every_face, seed=1))
    assert other[0][1]["image"] != again[0][1]["image"]


def test_choosing_does_not_depend_on_the_order() -> None:
    texts = [("train", str(number)) for number in range(50)]
    assert chosen(texts, 20) == chosen(texts[::-1], 20)  # type: ignore[arg-type]
    assert chosen(texts, 10) == chosen(texts, 20)[:10]  # type: ignore[arg-type]


def test_faces_are_those_with_both_alphabets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vlm data fetch"):
        faces(tmp_path / "nothing")
    for package in FONT_PACKAGES:
        (tmp_path / package / "usr/share/fonts").mkdir(parents=True)
    folder = tmp_path / FONT_PACKAGES[0] / "usr/share/fonts"
    for name in ("DejaVuSans", "STIXNonUni", "cmr10"):
        (folder / f"{name}.ttf").write_bytes((FONTS / f"{name}.ttf").read_bytes())
    (folder / "DejaVuSans-ExtraLight.ttf").write_bytes(SANS.read_bytes())
    (folder / "broken.otf").write_bytes(b"nothing")
    assert [face.name for face in faces(tmp_path)] == ["DejaVuSans"]
