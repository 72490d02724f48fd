"""Documents become running text and pictures, each once, wherever the pictures are put."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.examples import Image, Text
from data_pipelines.kinds import Interleaved, to_example
from data_pipelines.quarantine import BadRecord

DUCK, GOOSE = Image(path="duck.png"), Image(path="goose.png")
SEGMENTS = [
    {"text": "Water birds"},
    {"image": DUCK},
    {"text": "A duck."},
    {"image": GOOSE, "text_index": 2},
    {"text": "A goose."},
]


def trunk(segments, seed=0, **options):
    record = {"id": "page", "segments": segments}
    return to_example(record, Interleaved(**options), np.random.default_rng(seed), "web").trunk


def words(made):
    return [segment.text if isinstance(segment, Text) else segment.path for segment in made]


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("as_is", ["Water birds", "duck.png", "A duck.", "goose.png", "A goose."]),
        ("before", ["Water birds", "duck.png", "A duck.", "goose.png", "A goose."]),
        ("after", ["Water birds\n\nA duck.", "duck.png", "A goose.", "goose.png"]),
    ],
)
def test_pictures_are_put_where_the_option_says(placement, expected):
    made = trunk(SEGMENTS, placement=placement)
    assert words(made) == expected
    assert all(segment.loss and segment.role is None for segment in made if isinstance(segment, Text))


def test_a_picture_behind_its_text_is_brought_before_it():
    segments = [{"text": "A duck."}, {"text": "A goose."}, {"image": DUCK, "text_index": 0}, {"image": GOOSE}]
    assert words(trunk(segments, placement="before")) == ["duck.png", "A duck.", "goose.png", "A goose."]
    assert words(trunk(segments, placement="after")) == ["A duck.", "duck.png", "A goose.", "goose.png"]


def test_random_is_one_of_the_two_and_one_for_the_whole_document():
    drawn = {trunk(SEGMENTS, seed, placement="random") for seed in range(30)}
    assert drawn == {trunk(SEGMENTS, placement="before"), trunk(SEGMENTS, placement="after")}


def test_documents_split_unless_told_otherwise():
    assert to_example({"id": "p", "segments": SEGMENTS}, Interleaved(), np.random.default_rng()).when_long == "split"
    refused = to_example({"id": "p", "segments": SEGMENTS}, Interleaved(when_long="refuse"), np.random.default_rng())
    assert refused.when_long == "refuse"


segments_of = st.lists(
    st.one_of(
        st.fixed_dictionaries({"text": st.text("аb \n", max_size=4)}),
        st.integers(0, 99).map(lambda number: {"image": Image(path=f"{number}.png")}),
    ),
    max_size=8,
)


@given(segments_of, st.data())
def test_no_text_and_no_picture_is_lost_or_doubled(segments, data):
    texts = [segment["text"] for segment in segments if "text" in segment]
    if texts:
        for segment in segments:
            if "image" in segment and data.draw(st.booleans()):
                segment["text_index"] = data.draw(st.integers(0, len(texts) - 1))
    for placement in ("as_is", "before", "after", "random"):
        if not "".join(texts).strip():
            with pytest.raises(BadRecord, match="a document without text"):
                trunk(segments, placement=placement)
            continue
        made = trunk(segments, placement=placement, separator="|")
        pictures = sorted(segment.path for segment in made if isinstance(segment, Image))
        assert pictures == sorted(segment["image"].path for segment in segments if "image" in segment)
        written = "|".join(segment.text for segment in made if isinstance(segment, Text))
        assert written == "|".join(text for text in texts if text.strip())


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        ([], "without text"),
        (None, "without text"),
        ([{"image": DUCK}], "without text"),
        ([{"text": " \n"}, {"image": DUCK}], "without text"),
        ([{"text": "a"}, {"picture": DUCK}], "neither"),
        ([{"text": "a"}, {"image": "duck.png"}], "neither"),
        ([{"text": 7}], "neither"),
        (["a"], "neither"),
        ([{"text": "a"}, {"image": DUCK, "text_index": 1}], "belongs to text 1"),
        ([{"text": "a"}, {"image": DUCK, "text_index": "0"}], "belongs to text '0'"),
    ],
)
def test_what_is_no_document_is_bad(segments, reason):
    with pytest.raises(BadRecord, match=reason) as caught:
        trunk(segments)
    assert caught.value.record_id == "page"
