"""Records as public data sets write them become canonical records, which the kinds take."""

import numpy as np
import pytest

from data_pipelines.examples import Image, Text
from data_pipelines.kinds import Captions, Instruct, Interleaved, Preference, to_example
from data_pipelines.layouts import Layout, guess_layout
from data_pipelines.quarantine import BadRecord
from data_pipelines.records import decode_record, encode_record
from vlm_jax.errors import UserError

PNG = b"\x89PNG a picture's bytes"
A, B = Image(data=b"a"), Image(data=b"b")


def folder(path):
    return Image(path=f"folder/{path}")


def record(native, name="plain", **options):
    return Layout(name, **options).record(native, "set/7", folder)


def refused(native, name="plain", **options):
    with pytest.raises(BadRecord) as caught:
        record(native, name, **options)
    assert caught.value.record_id == "set/7"
    return str(caught.value)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (PNG, Image(data=PNG)),
        ({"bytes": PNG, "path": "a.png"}, Image(data=PNG)),
        ({"bytes": None, "path": "a.png"}, Image(path="folder/a.png")),
        ("a.png", Image(path="folder/a.png")),
        ([PNG], Image(data=PNG)),
    ],
)
def test_pictures_come_as_bytes_or_as_paths(picture, expected):
    made = record({"image": picture, "text": "Утка."}, "pairs", language="ru")
    assert made == {"id": "set/7", "image": expected, "captions": [{"text": "Утка.", "language": "ru"}]}


def test_pairs_may_have_other_names_several_captions_and_an_id():
    native = {"jpg": PNG, "info": {"caption": ["A duck.", b"A bird."], "lang": "en"}, "id": 42}
    fields = (("image", "jpg"), ("text", "info.caption"), ("language", "info/lang"))
    made = record(native, "pairs", fields=fields, language="ru")
    assert made["id"] == "set/7:42"
    assert made["captions"] == [{"text": "A duck.", "language": "en"}, {"text": "A bird.", "language": "en"}]
    assert len(to_example(made, Captions(), np.random.default_rng(0)).branches) == 2


@pytest.mark.parametrize(
    ("native", "reason"),
    [
        ({"text": "a"}, "no field 'image'"),
        ({"image": PNG, "text": None}, "no field 'text'"),
        ({"image": PNG, "text": float("nan")}, "no field 'text'"),
        ({"image": PNG, "text": "Утка".encode("cp1251")}, "not UTF-8"),
        ({"image": PNG, "text": 7}, "a text is of type int"),
        ({"image": 7, "text": "a"}, "a picture is of type int"),
        ({"image": np.zeros((2, 2, 3), np.uint8), "text": "a"}, "a picture is of type ndarray"),
        ({"image": [PNG, PNG], "text": "a"}, "2 pictures in 'image' instead of one"),
    ],
)
def test_what_is_no_pair_is_bad(native, reason):
    assert reason in refused(native, "pairs")


def test_questions_with_one_or_several_answers():
    native = {"image": PNG, "query": "What?", "answer": ["duck", "a duck"]}
    made = record(native, "questions", fields=(("question", "query"),), language="en")
    (entry,) = made["questions"]
    assert entry == {"question": "What?", "answer": "duck", "answers": ["duck", "a duck"], "language": "en"}
    assert to_example(made, Instruct(), np.random.default_rng(0)).images == (Image(data=PNG),)
    assert "images" not in record({"question": "1 + 1?", "answer": "2"}, "questions")
    assert "no answer" in refused({"question": "1 + 1?", "answer": []}, "questions")


def llava(*values, image=None):
    turns = [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]
    return {"id": "0001", "conversations": turns} | ({} if image is None else {"image": image})


def test_llava_puts_pictures_where_the_marks_stand():
    made = record(
        llava("<image>\nWhat is this?", "A duck.", "And <image>?", "Гусь.", image=["a.png", "b.png"]), "llava"
    )
    assert made["id"] == "set/7:0001"
    assert to_example(made, Instruct(), np.random.default_rng(0)).trunk == (
        folder("a.png"),
        Text("What is this?", role="user"),
        Text("A duck.", loss=True, role="assistant"),
        folder("b.png"),
        Text("And ?", role="user"),
        Text("Гусь.", loss=True, role="assistant"),
    )
    assert record(llava("Hi", "Hello"), "llava")["messages"][0]["content"] == "Hi"


@pytest.mark.parametrize(
    ("native", "reason"),
    [
        (llava("<image>", "A duck."), "more places of pictures ('<image>') than pictures, of which there are 0"),
        (llava("What?", "A duck.", image="a.png"), "0 places of pictures ('<image>') for 1 pictures"),
        (llava("<image>", "A duck.", image=["a.png", "b.png"]), "1 places of pictures ('<image>') for 2 pictures"),
        ({"conversations": "What?"}, "messages are of type str"),
        ({"conversations": ["What?"]}, "a message is of type str"),
        ({"conversations": [{"from": "human"}]}, "a text is of type NoneType"),
        ({"image": "a.png"}, "no field 'conversations'"),
    ],
)
def test_what_is_no_conversation_is_bad(native, reason):
    assert reason in refused(native, "llava")


@pytest.mark.parametrize(
    ("content", "images"),
    [
        ([{"type": "image"}, {"type": "text", "text": "What?"}], [b"a"]),
        ([{"type": "image", "image": b"a"}, {"type": "text", "text": "What?"}], []),
        # As tables write it, with every field everywhere.
        ([{"type": "image", "text": None}, {"type": "text", "text": "What?"}], [{"bytes": b"a", "path": None}]),
        ("<image>\nWhat?", [b"a"]),
        ("What?", [b"a"]),
    ],
)
def test_messages_in_all_their_forms(content, images):
    native = {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A duck."}],
        "images": images,
    }
    trunk = to_example(record(native, "messages"), Instruct(), np.random.default_rng(0)).trunk
    assert trunk == (A, Text("What?", role="user"), Text("A duck.", loss=True, role="assistant"))


def test_a_mark_without_pictures_is_a_word():
    native = {"messages": [{"role": "user", "content": "What does <image> mean?"}]}
    assert record(native, "messages")["messages"][0]["content"] == "What does <image> mean?"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([{"type": "image"}, {"type": "image"}], "more places"),
        ([{"type": "video"}], "of type 'video'"),
        ([7], "a part of a message is of type int"),
        (7, "a text is of type int"),
    ],
)
def test_what_is_no_message_is_bad(content, reason):
    assert reason in refused({"messages": [{"role": "user", "content": content}], "images": [b"a"]}, "messages")


def test_obelics_and_mmc4_keep_pictures_in_their_places():
    obelics = record({"images": [None, b"a", None, "b.png"], "texts": ["Birds", None, "A duck.", None]}, "obelics")
    assert obelics["segments"] == [{"text": "Birds"}, {"image": A}, {"text": "A duck."}, {"image": folder("b.png")}]
    info = [
        {"image_name": "b.png", "matched_text_index": 1, "raw_url": "http://example.org/b.png"},
        {"image_name": "a.png", "matched_text_index": 0},
    ]
    mmc4 = record({"text_list": ["A duck.", "A goose."], "image_info": info}, "mmc4", language="en")
    assert mmc4["segments"] == [
        {"image": folder("a.png"), "text_index": 0},
        {"text": "A duck."},
        {"image": folder("b.png"), "text_index": 1},
        {"text": "A goose."},
    ]
    after = to_example(mmc4, Interleaved("after"), np.random.default_rng(0)).trunk
    assert [getattr(part, "text", None) for part in after] == ["A duck.", None, "A goose.", None]


@pytest.mark.parametrize(
    ("name", "native", "reason"),
    [
        ("obelics", {"images": [None], "texts": []}, "1 places of pictures and 0 of texts"),
        ("obelics", {"images": [b"a"], "texts": ["a"]}, "a picture and a text at place 0"),
        ("obelics", {"images": "a", "texts": "b"}, "'images' is of type str"),
        ("mmc4", {"text_list": ["a"], "image_info": [{"matched_text_index": 0}]}, "without 'image_name'"),
        ("mmc4", {"text_list": ["a"], "image_info": [{"image_name": "a", "matched_text_index": 1}]}, "text 1 of 1"),
        ("mmc4", {"text_list": ["a"], "image_info": [{"image_name": "a"}]}, "text None of 1"),
        ("mmc4", {"text_list": ["a"]}, "no field 'image_info'"),
    ],
)
def test_what_is_no_document_is_bad(name, native, reason):
    assert reason in refused(native, name)


USER, GOOD, POOR = (
    {"role": role, "content": text}
    for role, text in (("user", "What?"), ("assistant", "Duck."), ("assistant", "Goose."))
)


@pytest.mark.parametrize(
    "native",
    [
        {"prompt": "What?", "chosen": "Duck.", "rejected": "Goose.", "image": b"a"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [POOR], "images": [b"a"]},
        {"chosen": [USER, GOOD], "rejected": [USER, POOR], "images": [b"a"]},
        {"prompt": "What?", "chosen": [USER, GOOD], "rejected": [USER, POOR], "image": b"a"},
        {"prompt": "<image>What?", "chosen": "Duck.", "rejected": "Goose.", "image": b"a"},
    ],
)
def test_preferences_in_all_their_forms(native):
    example = to_example(record(native, "preference"), Preference(), np.random.default_rng(0))
    assert example.trunk == (A, Text("What?", role="user"))
    assert [turn.text for branch in example.branches for turn in branch] == ["Duck.", "Goose."]


def test_what_is_no_preference_is_bad():
    assert "no prompt" in refused({"chosen": "a", "rejected": "b"}, "preference")
    assert "no field 'rejected'" in refused({"prompt": "a", "chosen": "b"}, "preference")
    assert "more places" in refused(
        {"prompt": "<image><image>", "chosen": "b", "rejected": "c", "image": b"a"}, "preference"
    )


def test_plain_records_come_back_as_they_were():
    original = {
        "id": "pages/duck",
        "language": "ru",
        "segments": [{"text": "Утка."}, {"image": A, "text_index": 0}],
        "captions": [{"text": "A duck.", "language": "en"}],
        "messages": [{"role": "user", "content": [{"image": B}, {"text": "?"}]}],
        "images": [A, B],
        "real": ["duck"],
    }
    bare = {
        **original,
        "images": [b"a", {"bytes": b"b", "path": None}],
        "segments": [
            {"text": "Утка.", "image": None, "text_index": None},
            {"image": b"a", "text_index": 0, "text": None},
        ],
        "messages": [{"role": "user", "content": [{"image": b"b", "text": None}, {"text": "?", "image": None}]}],
    }
    assert record(bare) == original == decode_record(encode_record(original))


def test_plain_records_may_be_renamed():
    made = record({"id": 3, "body": b"\xd0\xa3", "other": 1}, fields=(("text", "body"),), language="ru")
    assert made == {"language": "ru", "id": "3", "text": "У"}
    assert record({"text": "a"})["id"] == "set/7"
    assert "no field 'body'" in refused({"text": "a"}, fields=(("text", "body"),))


def test_the_layout_is_guessed_from_the_fields():
    assert guess_layout(llava("a")) == "llava"
    assert guess_layout({"images": [], "texts": []}) == "obelics"
    assert guess_layout({"id": "1", "text_list": [], "image_info": []}) == "mmc4"
    assert guess_layout({"messages": [], "images": []}) == "messages"
    assert guess_layout({"prompt": "", "chosen": "", "rejected": ""}) == "preference"
    assert guess_layout({"image": b"", "text": ""}) == "pairs"
    assert guess_layout({"image": b"", "question": "", "answer": ""}) == "questions"
    assert guess_layout({"id": "a", "image": b"", "captions": []}) == guess_layout({"text": ""}) == "plain"


def test_an_unknown_layout_is_the_users_error():
    with pytest.raises(UserError, match="layout 'lava' is not known; there are plain, pairs"):
        Layout("lava")
