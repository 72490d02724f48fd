"""What a request may say, and the error that names what is wrong with it."""

import json

import pytest

from vlm_jax.serving.errors import APIError
from vlm_jax.serving.protocol import parse_request

USER = {"role": "user", "content": "hello"}
GOOD = {"model": "tiny", "messages": [USER]}


def refused(body):
    with pytest.raises(APIError) as caught:
        parse_request(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert caught.value.status == 400
    assert caught.value.body()["error"]["type"] == "invalid_request_error"
    return caught.value


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b'{"model": "tiny"', b"{'model': 1}", b"[" * 100_000, b'{"model": "\\ud800"}']
)
def test_what_is_not_json(body):
    assert refused(body).code == "invalid_json"


@pytest.mark.parametrize("body", [b"[]", b"3", b"null", b'"text"'])
def test_json_that_is_no_object(body):
    assert "object" in refused(body).message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [3]}, "messages[0]"),
        ({"messages": [{"content": "hello"}]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"messages": [{"role": "tool", "content": "3", "tool_call_id": "1"}]}, "messages[0]"),
        ({"messages": [{**USER, "colour": "red"}]}, "messages[0].colour"),
        ({"messages": [USER, {"role": "assistant", "content": "hi"}]}, "messages"),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}, USER]},
            "messages[0].tool_calls",
        ),
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"n": 0}, "n"),
        ({"seed": "one"}, "seed"),
        ({"seed": 1 << 64}, "seed"),
        ({"stop": ""}, "stop[0]"),
        ({"stop": ["a", 3]}, "stop[1]"),
        ({"stop": list("abcde")}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"foo": 1}, "foo"),
    ],
    ids=str,
)
def test_the_wrong_field_is_named(fields, param):
    assert refused({**GOOD, **fields}).param == param


@pytest.mark.parametrize("name", ["model", "messages"])
def test_what_is_missing_is_named(name):
    error = refused({key: value for key, value in GOOD.items() if key != name})
    assert (error.param, error.code) == (name, "missing_required_parameter")


@pytest.mark.parametrize(
    ("name", "neutral", "asking"),
    [
        ("frequency_penalty", 0, 0.5),
        ("presence_penalty", 0.0, False),
        ("logprobs", False, True),
        ("logit_bias", {}, {"50256": -100}),
        ("tools", [], [{"type": "function"}]),
        ("tool_choice", "none", "required"),
        ("response_format", {"type": "text"}, {"type": "json_object"}),
    ],
)
def test_what_cannot_be_followed_is_an_error_unless_it_asks_for_nothing(name, neutral, asking):
    error = refused({**GOOD, name: asking})
    assert (error.param, error.code) == (name, "unsupported_parameter")
    for value in (neutral, None):
        assert parse_request(json.dumps({**GOOD, name: value}).encode()).model == "tiny"


def test_what_changes_no_answer_is_ignored():
    parse_request(json.dumps({**GOOD, "user": "anna", "metadata": {"a": "b"}, "store": True}).encode())


def test_null_is_the_same_as_nothing():
    fields = ("max_tokens", "temperature", "top_p", "n", "stop", "seed", "stream", "stream_options")
    assert parse_request(json.dumps({**GOOD, **dict.fromkeys(fields)}).encode()) == parse_request(
        json.dumps(GOOD).encode()
    )


def test_forms_of_one_thing():
    request = parse_request(json.dumps({**GOOD, "stop": "x", "max_tokens": 5, "max_completion_tokens": 7}).encode())
    assert (request.stop, request.wanted_tokens) == (["x"], 7)
    assert request.messages[0].content[0].text == "hello"


def test_an_error_does_not_repeat_all_it_was_given():
    assert len(refused({**GOOD, "messages": [{"role": "x" * 10_000, "content": ""}]}).message) < 500
    assert len(refused({**GOOD, "y" * 10_000: 1}).message) < 500
