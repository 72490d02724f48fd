"""What cannot be learned from is refused with a reason; what is only unusual passes."""

import dataclasses

import numpy as np
import pytest

from data_pipelines import checks
from data_pipelines.checks import check_example, check_slots, is_visible
from data_pipelines.examples import Example, Image, Text
from data_pipelines.images import FILE_LIMIT
from data_pipelines.quarantine import BadRecord

USER, ANSWER = Text("Что это?", role="user"), Text("кот", loss=True, role="assistant")
PICTURE = Image(data=b"file")


def dialogue(answer="кот", question="Что это?", **fields):
    branch = (Text(question, role="user"), Text(answer, loss=True, role="assistant"))
    return Example((PICTURE,), (branch,), source="s", id="s/1", **fields)


@pytest.mark.parametrize(
    "text",
    [
        "שלום, עולם",  # right to left
        "مرحبا \u200fworld\u200e (٣)",  # both directions, with marks
        "نمی\u200cخواهم",  # a zero-width non-joiner that spelling asks for
        "👩\u200d🔬 \U0001f3f3\ufe0f\u200d🌈",  # joined by zero-width joiners
        "\ufeffтекст",  # a byte-order mark that was left
        "e\u0301 й и\u0306",  # composed and not
        "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U000e0067",
        "tab\tnewline\r\n\x0b\x1b[0m",
        "Ð¿Ñ€Ð¸Ð²ÐµÑ‚ \ufffd",  # wrongly decoded is text too: a filter's business
        "—",
    ],
)
def test_unusual_texts_pass(text):
    check_example(dialogue(text, text))
    check_example(Example((Text(text, loss=True), PICTURE, Text(text))))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a\0b", "segment 3: NUL at character 1"),
        ("ко\ud83dт", "segment 3: half of a surrogate pair at character 2"),
        ("x" * (checks.TEXT_LIMIT + 1), "segment 3: a text of 1,000,001 characters; at most 1,000,000"),
        (b"bytes", "segment 3: its text is a bytes"),
        (None, "segment 3: its text is a NoneType"),
        (7, "segment 3: its text is an int"),
        ("", "the assistant's turn is empty"),
        (" \n\t\u00a0\u3000", "the assistant's turn is empty"),
        ("\u200b\u200f\u2060\ufeff", "the assistant's turn is empty"),
        ("\u3164\ufe0f\u2800", "the assistant's turn is empty"),
    ],
)
def test_bad_texts_are_refused_by_record_and_place(text, reason):
    with pytest.raises(BadRecord, match=reason) as error:
        check_example(dialogue(text))
    assert error.value.record_id == "s/1"
    assert "\n" not in str(error.value)


def test_the_longest_text_passes():
    check_example(dialogue("x" * checks.TEXT_LIMIT))


def test_only_what_is_learned_must_be_visible():
    check_example(dialogue(question=""))
    check_example(Example((Text("\n\n", loss=True), PICTURE, Text("Кот.", loss=True), Text(" ", loss=True))))
    with pytest.raises(BadRecord, match="nothing of it can be seen"):
        check_example(Example((Text("Кот."), PICTURE, Text("\n\u200b", loss=True), Text("", loss=True))))


@pytest.mark.parametrize("text", ["a", " я", "\u200bא", ".", "\u0301", "\ue000"])
def test_visible(text):
    assert is_visible(text)


def test_absurd_counts_and_sizes_are_refused():
    many = (PICTURE,) * (checks.SEGMENT_LIMIT + 1)
    with pytest.raises(BadRecord, match="10,001 segments"):
        check_example(Example(many, id="a"))
    check_example(Example(many[:-1], id="a"))
    with pytest.raises(BadRecord, match="10,001 segments"):
        check_example(Example((PICTURE,), ((ANSWER,),) * checks.SEGMENT_LIMIT))
    large = Image(data=bytes(FILE_LIMIT))
    check_example(Example((large, large)))
    with pytest.raises(BadRecord, match=r"pictures of 134,217,732 bytes; at most 134,217,728"):
        check_example(Example((large, large, PICTURE)))


@pytest.mark.parametrize(
    ("segment", "reason"),
    [
        (Image(data=np.zeros((2, 2, 3), np.uint8)), "segment 1: the picture is a ndarray, not the bytes of a file"),
        (Image(data="iVBORw0KGgo="), "segment 1: the picture is a str"),
        (Image(path=b"a.png"), "segment 1: the picture's path is a bytes"),
        ("a text", "segment 1 is a str"),
        ({"text": "a"}, "segment 1 is a dict"),
    ],
)
def test_wrong_types_are_refused(segment, reason):
    with pytest.raises(BadRecord, match=reason):
        check_example(Example((segment, Text("a", loss=True)), id="a"))


def test_ids_and_labels_have_their_types():
    with pytest.raises(BadRecord, match="its id is an int; ids are strings"):
        check_example(Example((PICTURE,), id=7))
    with pytest.raises(BadRecord, match="an id of 1,001 characters") as error:
        check_example(Example((PICTURE,), id="x" * 1001))
    assert error.value.record_id == "x" * 1000
    preference = Example((PICTURE, USER), ((ANSWER,), (ANSWER,)), labels=(1.0, 0.0))
    check_example(preference)
    for label in (float("nan"), "1", None, True):
        with pytest.raises(BadRecord, match="labels are finite numbers"):
            check_example(dataclasses.replace(preference, labels=(1.0, label)))


def test_slots_must_be_those_of_the_pictures(processor):
    good = processor.render(Example((PICTURE, PICTURE, Text("a", loss=True)), id="a"))
    check_slots(good, processor.prompt_tokens)
    for wrong in (
        dataclasses.replace(good, images=(PICTURE,)),
        dataclasses.replace(good, images=(PICTURE,) * 3),
        dataclasses.replace(good, visual_index=np.where(good.visual_index == 4, -1, good.visual_index)),
    ):
        with pytest.raises(BadRecord, match=rf"places for visual tokens, but {len(wrong.images)} pictures") as error:
            check_slots(wrong, processor.prompt_tokens)
        assert error.value.record_id == "a"
