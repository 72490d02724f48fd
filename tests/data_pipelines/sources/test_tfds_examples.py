"""Records become typed examples and come back as they were, whatever else they have."""

import hypothesis
import pytest
from hypothesis import strategies as st

from data_pipelines.examples import Image
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources.tfds_examples import TYPED, from_example, to_example

PICTURE, OTHER = Image(data=b"one"), Image(data=b"two")
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
picture = st.binary(max_size=4).map(lambda data: Image(data=data))
value = st.recursive(
    st.none() | st.booleans() | st.integers() | text | picture,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
caption = st.fixed_dictionaries({}, optional={"text": text, "language": text, "source": text})
segment = st.fixed_dictionaries({"text": text}) | st.fixed_dictionaries(
    {"image": picture}, optional={"text_index": st.integers(0, 9), "caption": text}
)
question = st.fixed_dictionaries({"question": text, "answer": text}, optional={"language": text, "choices": value})
message = st.fixed_dictionaries({"role": text, "content": text | st.lists(segment, max_size=3)})
records: dict[str, dict[str, st.SearchStrategy]] = {
    "captions": {"image": picture, "captions": st.lists(caption, max_size=3)},
    "interleaved": {"segments": st.lists(segment, max_size=4), "language": text},
    "instruct": {
        "image": picture,
        "images": st.lists(picture, max_size=2),
        "questions": st.lists(question, max_size=2),
        "messages": st.lists(message, max_size=2),
    },
    "text_only": {"text": text, "language": text},
}
own = {"captions": ("image",)}


def back(record: dict, kind: str) -> dict:
    """Through what a file keeps of an example: bytes in, pictures out."""
    example = to_example(record, kind)
    if "image" in example:
        example["image"] = Image(data=example["image"])
    if "images" in example:
        example["images"] = [Image(data=data) for data in example["images"]]
    return from_example(example, kind)


@pytest.mark.parametrize("kind", TYPED)
@hypothesis.given(st.data())
def test_nothing_is_lost(kind: str, data: st.DataObject) -> None:
    fields = records[kind]
    required = {key: fields[key] for key in own.get(kind, ())}
    optional = {key: strategy for key, strategy in fields.items() if key not in required}
    more = data.draw(st.dictionaries(text, text | st.integers() | st.lists(text), max_size=2))
    record = more | data.draw(st.fixed_dictionaries({"id": text, **required}, optional=optional))
    assert back(record, kind) == record


def test_typed_fields_are_there_for_everybody() -> None:
    record = {
        "id": "p/1",
        "language": "ru",
        "segments": [{"text": "Утка."}, {"image": PICTURE, "text_index": 0}, {"image": OTHER}],
    }
    assert to_example(record, "interleaved") == {
        "id": "p/1",
        "language": "ru",
        "images": [b"one", b"two"],
        "segments": [
            {"text": "Утка.", "picture": -1, "text_index": -1},
            {"text": "", "picture": 0, "text_index": 0},
            {"text": "", "picture": 1, "text_index": -1},
        ],
        "other": "{}",
    }


@pytest.mark.parametrize(
    ("kind", "record", "reason"),
    [
        ("captions", {"id": "a", "captions": []}, "about one picture, and here are 0"),
        ("captions", {"id": "a", "image": PICTURE, "thumbnail": OTHER}, "about one picture, and here are 2"),
        ("text_only", {"id": "a", "text": "b", "image": PICTURE}, "text only, but it has a picture"),
        ("text_only", {"id": "a", "text": "\ud800"}, "surrogates not allowed"),
        ("text_only", {"id": "a", "text": "b", "data": b"bytes"}, "bytes is not JSON"),
        ("instruct", {"id": "a", "image": Image(path="/nowhere/a.png")}, "/nowhere/a.png"),
        ("interleaved", {"id": "a", "segments": [3]}, "cannot be written"),
    ],
)
def test_what_has_no_place_is_a_bad_record(kind: str, record: dict, reason: str) -> None:
    with pytest.raises(BadRecord, match=reason) as caught:
        to_example(record, kind)
    assert caught.value.record_id == "a"


@pytest.mark.parametrize("other", ["", "{", "3", '{"absent": ["z"]}', '{"fields": {"x": {"__picture__": 7}}}'])
def test_what_is_no_such_example_is_refused(other: str) -> None:
    with pytest.raises(BadRecord, match="not an example of kind text_only"):
        from_example({"id": "a", "language": "", "text": "", "other": other}, "text_only")
