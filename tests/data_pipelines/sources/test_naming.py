"""What a source is called."""

import pytest

from data_pipelines.sources import TFDS, ArrayRecords, EasyVQA, JSONLines, Parquet, source_name


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (ArrayRecords("prepared/captions/birds/train"), "captions/birds"),
        (ArrayRecords("gs://bucket/captions/birds/test/"), "captions/birds"),
        (ArrayRecords("train"), "train"),
        (ArrayRecords("../.."), "ArrayRecords"),
        (ArrayRecords("prepared/captions/birds/train", name="utki"), "utki"),
        (TFDS("tfds/captions_birds/1.0.0"), "tfds/captions_birds"),
        (Parquet("a/b.parquet"), "a/b"),
        (JSONLines("photos.jsonl"), "photos"),
        (EasyVQA(), "easy_vqa"),
    ],
)
def test_by_its_name_or_else_by_the_end_of_its_path(config: object, name: str) -> None:
    assert source_name(config) == name
