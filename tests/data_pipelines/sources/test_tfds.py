"""Data sets that others built with TFDS: their examples become records through a layout."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from data_pipelines.examples import Image
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources import TFDS, open_source
from vlm_jax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")


def png(number: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (4 + number, 3)).save(file, "PNG")
    return file.getvalue()


class Foreign(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc, call-arg]
    """Features of many kinds, as public data sets have them."""

    VERSION = tfds.core.Version("2.1.0")
    url_infos = None

    def _info(self) -> Any:
        features = tfds.features
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(None, None, 3)),
                    "captions": features.Sequence({"text": features.Text(), "score": np.float32}),
                    "texts": features.Sequence(features.Text()),
                    "photo": {"thumbnail": features.Image(shape=(None, None, 3)), "year": np.int64},
                    "label": features.ClassLabel(names=["утка", "гусь"]),
                    "frames": features.Sequence({"picture": features.Image(shape=(None, None, 3))}),
                    "box": features.BBoxFeature(),
                    "question": features.Text(),
                    "answer": features.Text(),
                }
            ),
        )

    def _split_generators(self, _: Any) -> dict:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        for number in range(5):
            yield (
                number,
                {
                    "image": io.BytesIO(png(number)),
                    "captions": [{"text": f"Утка {number}", "score": 0.5}],
                    "texts": ["a", "б"][: number % 3],
                    "photo": {"thumbnail": io.BytesIO(png(9)), "year": 2000 + number},
                    "label": number % 2,
                    "frames": [{"picture": io.BytesIO(png(1))} for _ in range(number % 3)],
                    "box": tfds.features.BBox(0.0, 0.25, 0.5, 1.0),
                    "question": "Кто это?",
                    "answer": "утка",
                },
            )


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    Foreign(data_dir=place, file_format="array_record").download_and_prepare(download_dir=str(place / "downloads"))
    return place


def records(config: TFDS) -> dict[int, dict]:
    """By the width of the picture, since TFDS shuffles and knows no ids."""
    source = open_source(config)
    made = [source[index] for index in range(len(source))]
    assert len({record["id"] for record in made}) == len(made)
    known = {png(number): number for number in range(5)}
    return {known[(record.get("image") or record["images"][0]).data]: record for record in made}


def test_features_become_plain_values_and_pictures(built: Path) -> None:
    by_number = records(TFDS("foreign", data_dir=str(built)))
    record = by_number[3]
    assert record.pop("id").startswith("foreign/foreign-train.array_record-00000-of-00001#")
    assert record == {
        "image": Image(data=png(3)),
        "captions": [{"text": "Утка 3", "score": 0.5}],
        "texts": [],
        "photo": {"thumbnail": Image(data=png(9)), "year": 2003},
        "label": "гусь",
        "frames": [],
        "box": [0.0, 0.25, 0.5, 1.0],
        "question": "Кто это?",
        "answer": "утка",
    }
    assert by_number[2]["frames"] == [{"picture": Image(data=png(1))}] * 2
    assert by_number[2]["texts"] == ["a", "б"]


def test_a_layout_says_what_they_are(built: Path) -> None:
    path = str(built / "foreign/2.1.0")
    pairs = records(TFDS(path, layout="pairs", fields=(("text", "label"),), language="ru"))
    assert pairs[1]["captions"] == [{"text": "гусь", "language": "ru"}]
    asked = records(TFDS(path, layout="questions", language="ru"))
    assert asked[0]["questions"] == [{"question": "Кто это?", "answer": "утка", "language": "ru"}]
    nested = open_source(TFDS(path, fields=(("image", "photo/thumbnail"), ("year", "photo/year"))))
    assert nested[0]["image"] == Image(data=png(9))
    assert nested[0].keys() == {"id", "image", "year"}


def test_ids_do_not_depend_on_the_sub_split(built: Path) -> None:
    whole = open_source(TFDS("foreign", data_dir=str(built)))
    part = open_source(TFDS("foreign", "train[3:]", data_dir=str(built)))
    assert [part[index]["id"] for index in range(2)] == [whole[index]["id"] for index in (3, 4)]


def test_a_record_without_the_field_is_bad_by_place(built: Path) -> None:
    source = open_source(TFDS("foreign", data_dir=str(built), layout="pairs", fields=(("text", "caption"),)))
    with pytest.raises(BadRecord, match="no field 'caption'") as caught:
        source[2]
    assert caught.value.record_id == "foreign/foreign-train.array_record-00000-of-00001#2"


def test_a_path_in_the_place_of_a_picture_is_refused(built: Path) -> None:
    source = open_source(TFDS("foreign", data_dir=str(built), fields=(("image", "question"),)))
    with pytest.raises(BadRecord, match="is a path"):
        source[0]


@pytest.mark.parametrize(
    ("path", "split", "reason"),
    [
        ("foreign", "dev", "split 'dev'.*there are train"),
        ("foreign", "train[5:]", "has no examples"),
        ("foreign/9.9.9", "train", "is no built data set of TFDS"),
        ("nothing", "train", "is no built data set of TFDS"),
    ],
)
def test_what_is_not_there_is_one_line(built: Path, path: str, split: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        open_source(TFDS(path, split, data_dir=str(built)))
    assert "\n" not in str(caught.value)


def test_other_file_formats_are_refused_with_the_mend(built: Path, tmp_path) -> None:
    place = tmp_path / "foreign/2.1.0"
    place.mkdir(parents=True)
    for path in (built / "foreign/2.1.0").iterdir():
        data = path.read_bytes()
        (place / path.name).write_bytes(data.replace(b'"array_record"', b'"tfrecord"'))
    with pytest.raises(UserError, match=r"in tfrecord files.*file_format='array_record'"):
        open_source(TFDS(str(place)))


def test_without_the_library_the_extra_is_named(built: Path, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"install the extra \[formats\]"):
        open_source(TFDS("foreign", data_dir=str(built)))
