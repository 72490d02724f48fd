"""Emoji: names and keywords from the locale data, pictures from a font, variants in one split."""

from pathlib import Path

import matplotlib
import pytest

from data_pipelines.images import decode
from data_pipelines.prepare.corpora.pictures import emoji
from data_pipelines.prepare.corpora.pictures.cldr import Annotation, annotations
from vlm_jax.errors import UserError

DERIVED = "<ldml><annotations/></ldml>"


def locale(raw: Path, language: str, entries: str) -> None:
    root = raw / "unicode-cldr-core/usr/share/unicode/cldr/common"
    for folder, text in (
        ("annotations", f"<ldml><annotations>{entries}</annotations></ldml>"),
        ("annotationsDerived", DERIVED),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / f"{language}.xml").write_text(text, encoding="utf-8")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    locale(
        tmp_path,
        "en",
        '<annotation cp="♥">heart | love</annotation><annotation cp="♥" type="tts">heart suit</annotation>'
        '<annotation cp="☺">smile</annotation><annotation cp="☺" type="tts">smiling face</annotation>'
        '<annotation cp="x">inherited</annotation><annotation cp="x" type="tts">↑↑↑</annotation>'
        '<annotation cp="&#xe123;" type="tts">not in any font</annotation>',
    )
    locale(tmp_path, "ru", '<annotation cp="♥" type="tts">сердце</annotation>')
    font = tmp_path / "fonts-noto-color-emoji/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    font.parent.mkdir(parents=True)
    font.write_bytes((Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf").read_bytes())
    return tmp_path


def test_names_and_keywords(raw: Path) -> None:
    assert annotations(raw, "en") == {
        "♥": Annotation("heart suit", ("heart", "love")),
        "☺": Annotation("smiling face", ("smile",)),
        "\ue123": Annotation("not in any font"),
    }


def test_records_are_those_that_the_font_draws(raw: Path) -> None:
    found = {record["id"]: record for _, record in emoji.records(raw)}
    assert set(found) == {"emoji/2665", "emoji/263a"}
    heart = found["emoji/2665"]
    assert heart["captions"] == [
        {"text": "heart suit", "language": "en", "name": True},
        {"text": "сердце", "language": "ru", "name": True},
    ]
    assert heart["keywords"] == {"en": ["heart", "love"], "ru": []}
    assert decode(heart["image"]).shape == (128, 136, 3)


@pytest.mark.parametrize(("one", "other"), [("👋🏻", "👋🏿"), ("👩🏽‍🚀", "👨‍🚀"), ("🏃‍♂", "🏃🏾"), ("🧑🏻‍🌾", "👩‍🌾")])
def test_skin_tones_and_men_and_women_of_an_occupation_are_a_family(one: str, other: str) -> None:
    assert emoji._family(one) == emoji._family(other)


def test_other_emoji_are_not() -> None:
    assert len({emoji._family(each) for each in ("👋", "👩‍🚀", "👩‍🌾", "👩", "🏃", "🇫🇷", "🇮🇹")}) == 7


def test_damaged_locale_data_are_refused(raw: Path) -> None:
    path = raw / "unicode-cldr-core/usr/share/unicode/cldr/common/annotations/en.xml"
    path.write_text("<ldml><annot", encoding="utf-8")
    with pytest.raises(UserError, match=r"annotations/en\.xml: not whole XML"):
        annotations(raw, "en")
