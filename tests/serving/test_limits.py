"""What clients do wrong, or too much of: each gets an OpenAI error, and the server goes on."""

import concurrent.futures
import http.client
import json
import socket
import time
import urllib.parse

import openai
import pytest
from clients import asked, connect, data_url, png, server

from vlm_jax.serving.config import ServingConfig
from vlm_jax.serving.server import running
from vlm_jax.serving.service import Service

LONG = 4000
"""Tokens of an answer that takes many seconds."""


def post(client, body, **headers):
    """(status, error) of a raw request."""
    response = client._client.post(
        f"{client.base_url}chat/completions", content=body, headers={"Content-Type": "application/json", **headers}
    )
    return response.status_code, response.json()["error"]


def body(**fields):
    return json.dumps({"model": "tiny", "messages": asked("да"), "max_tokens": 3, **fields}).encode()


def picture_body(*urls):
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return body(messages=[{"role": "user", "content": parts}])


def long_answer(client, **fields):
    """A stream that has begun and goes on for long."""
    stream = client.chat.completions.create(
        model="tiny", messages=asked("да"), max_tokens=LONG, stream=True, **{"temperature": 0, **fields}
    )
    assert next(iter(stream)).choices
    return stream


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def figure(service, name):
    lines = dict(line.rsplit(" ", 1) for line in service.metrics.text().decode().splitlines() if line[0] != "#")
    return float(lines[name])


@pytest.fixture(scope="module")
def busy(endless):
    """A server with one row, a queue of one, and answers as long as is asked for."""
    with server(endless, rows=1, queue=1, max_new_tokens=LONG) as (service, client):
        client.chat.completions.create(model="tiny", messages=asked("да"), max_tokens=2)
        yield service, client


@pytest.mark.parametrize(
    ("request_body", "status", "code", "param"),
    [
        (b"{", 400, "invalid_json", None),
        (b"", 400, "invalid_json", None),
        (body(messages=[]), 400, None, "messages"),
        (body(temperature="hot"), 400, None, "temperature"),
        (body(n=5), 400, None, "n"),
        (body(max_tokens=100_000), 400, None, "max_tokens"),
        (body(tools=[{}]), 400, "unsupported_parameter", "tools"),
        (body(model="another"), 404, "model_not_found", "model"),
        (body(messages=asked("ж" * 600_000)), 400, None, "messages"),
        (body(messages=[{"role": "system", "content": "be kind"}, *asked("да")]), 400, None, "messages"),
        (body(messages=asked("circle " * 9000)), 400, "context_length_exceeded", "messages"),
        (picture_body(data_url(b"")), 400, "invalid_image", "messages[0].content[0].image_url.url"),
        (picture_body(data_url(png()), data_url(b"")), 400, "invalid_image", "messages[0].content[1].image_url.url"),
        (picture_body(data_url(png()[:100])), 400, "invalid_image", "messages"),
        (picture_body(data_url(b"no picture at all")), 400, "invalid_image", "messages"),
        (picture_body("http://127.0.0.1/x.png"), 400, "invalid_image_url", "messages[0].content[0].image_url.url"),
        (picture_body(*[data_url(png())] * 17), 400, None, "messages"),
    ],
    ids=lambda value: value[:60].decode() if isinstance(value, bytes) else str(value),
)
def test_bad_requests_get_their_error(client, request_body, status, code, param):
    answer, error = post(client, request_body)
    assert (answer, error["code"], error["param"]) == (status, code, param)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert "Traceback" not in error["message"]
    assert ".py" not in error["message"]
    assert client.chat.completions.create(model="tiny", messages=asked("да"), max_tokens=2).choices


def test_unknown_paths_and_methods(client):
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/docs", 404),
    ):
        response = client._client.request(method, str(client.base_url).replace("/v1/", path))
        assert (response.status_code, set(response.json()["error"])) == (status, {"message", "type", "param", "code"})


def test_a_body_that_is_too_large(engine):
    with server(engine, body_bytes=100_000) as (_, client):
        for size in (100_001, 700_000):
            status, error = post(client, body(messages=asked("x" * size)))
            assert (status, error["code"]) == (413, "request_too_large")
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="tiny", messages=asked("x" * 700_000))
        assert caught.value.status_code == 413
        assert client.chat.completions.create(model="tiny", messages=asked("да"), max_tokens=2).choices


def test_a_body_that_does_not_come(engine):
    with server(engine, body_seconds=0.3) as (_, client):
        url = urllib.parse.urlsplit(str(client.base_url))
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=20)
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Length", "100")
        connection.endheaders(b"{")
        response = connection.getresponse()
        assert (response.status, json.load(response)["error"]["code"]) == (408, "request_timeout")


def test_a_full_queue(busy):
    service, client = busy
    with concurrent.futures.ThreadPoolExecutor(1) as pool, long_answer(client) as first:
        second = pool.submit(client.chat.completions.create, model="tiny", messages=asked("да"), max_tokens=2)
        wait_until(lambda: len(service.batcher) == 1)
        with pytest.raises(openai.RateLimitError) as third:
            client.chat.completions.create(model="tiny", messages=asked("да"))
        assert third.value.code == "queue_full"
        assert int(third.value.response.headers["retry-after"]) >= 1
        # Many times what a socket's buffers hold: the answer reaches a client that is busy sending.
        assert post(client, body(messages=asked("x" * 5_000_000)))[0] == 429
        first.close()
        assert second.result().usage.completion_tokens == 2
    assert figure(service, 'vlm_rejected_total{code="queue_full"}') == 2


def test_who_hangs_up_frees_the_row(busy):
    service, client = busy
    before = figure(service, "vlm_hung_up_total")
    with long_answer(client):
        pass
    begun = time.monotonic()
    assert client.chat.completions.create(model="tiny", messages=asked("да"), max_tokens=2).choices
    assert time.monotonic() - begun < 5
    # The same for a client that does not stream, and for one that waits.
    with long_answer(client) as running_one:
        url = urllib.parse.urlsplit(str(client.base_url))
        for _ in range(3):
            waiting = http.client.HTTPConnection(url.hostname, url.port)
            waiting.request("POST", "/v1/chat/completions", body(max_tokens=LONG))
            wait_until(lambda: len(service.batcher) == 1)
            waiting.close()
            wait_until(lambda: len(service.batcher) == 0)
        waiting = http.client.HTTPConnection(url.hostname, url.port)
        waiting.request("POST", "/v1/chat/completions", body(max_tokens=LONG))
        wait_until(lambda: len(service.batcher) == 1)
        running_one.close()
    wait_until(lambda: len(service.batcher) == 0)
    waiting.close()
    wait_until(lambda: service.active == 0)
    assert client.chat.completions.create(model="tiny", messages=asked("да"), max_tokens=2).choices
    assert figure(service, "vlm_hung_up_total") - before == 6


def test_waiting_too_long(endless):
    with server(endless, rows=1, wait_seconds=0.5, max_new_tokens=LONG) as (_, client), long_answer(client) as first:
        for stream in (False, True):
            with pytest.raises(openai.APIStatusError) as caught:
                client.chat.completions.create(model="tiny", messages=asked("да"), stream=stream)
            assert (caught.value.status_code, caught.value.body["code"]) == (504, "timeout")
        first.close()


def test_answering_too_long(endless):
    with server(endless, rows=2, answer_seconds=1.5, max_new_tokens=LONG) as (_, client):
        client.chat.completions.create(model="tiny", messages=asked("да"), max_tokens=2)
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="tiny", messages=asked("да"), max_tokens=LONG)
        assert (caught.value.status_code, caught.value.body["code"]) == (504, "timeout")
        stream = long_answer(client)
        with pytest.raises(openai.APIError) as torn:
            list(stream)
        assert torn.value.body["code"] == "timeout"


def test_a_failing_batch_harms_nobody_else(engine):
    """A fault inside the engine: those who can be answered are, the other gets 500, and the server goes on."""

    class Faulty:
        """The engine, with a fault that one prompt brings out."""

        def __getattr__(self, name):
            return getattr(engine, name)

        def stream_many(self, requests, cancelled=None):
            if any(request.seed == 666 for request in requests):
                raise RuntimeError("in /secret/place.py")
            return engine.stream_many(requests, cancelled)

    with server(Faulty(), window_seconds=0.3) as (_, client):

        def ask(seed):
            return (
                post(client, body(seed=seed))
                if seed == 666
                else client.chat.completions.create(model="tiny", messages=asked("да"), max_tokens=3, seed=seed)
            )

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            good, bad, also_good = pool.map(ask, (1, 666, 2))
        assert good.choices
        assert also_good.choices
        assert bad[0] == 500
        assert (bad[1]["type"], "secret" in bad[1]["message"]) == ("server_error", False)
        assert ask(3).choices


def test_a_key(engine):
    service = Service(engine, "tiny", ServingConfig(rows=1, api_key="right"))
    with running(service) as address:
        assert connect(address, "right").models.list().data
        for key in ("wrong", "", "rightt"):
            with pytest.raises(openai.AuthenticationError) as caught:
                connect(address, key).models.list()
            assert caught.value.body["code"] == "invalid_api_key"
        for method, path in (("GET", "/metrics"), ("GET", "/v1/models"), ("POST", "/v1/chat/completions")):
            connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc)
            connection.request(method, path, body=body() if method == "POST" else None)
            assert connection.getresponse().status == 401
        connection.close()
        connection.request("GET", "/v1/models", headers={"Authorization": "Bearer ключ".encode()})
        assert connection.getresponse().status == 401
        connection.close()
        connection.request("GET", "/health")
        assert json.load(connection.getresponse()) == {"status": "ok"}
    assert "right" not in repr(service.config)


def test_bytes_that_are_no_http(client):
    url = urllib.parse.urlsplit(str(client.base_url))
    with socket.create_connection((url.hostname, url.port)) as plain:
        plain.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert b" 400 " in plain.recv(1000)
    assert client.models.list().data


def test_a_drain_lets_answers_finish(endless):
    with server(endless, rows=1, max_new_tokens=LONG) as (service, client):
        stream = client.chat.completions.create(
            model="tiny", messages=asked("да"), max_tokens=300, stream=True, temperature=0
        )
        next(iter(stream))
        address = str(client.base_url).replace("/v1/", "")
        other = connect(address)
        service.drain(30)
        with pytest.raises(openai.APIStatusError) as caught:
            other.chat.completions.create(model="tiny", messages=asked("да"))
        assert (caught.value.status_code, caught.value.body["code"]) == (503, "shutting_down")
        assert other._client.get(f"{address}/health").status_code == 503
        assert [c.choices[0].finish_reason for c in stream if c.choices][-1] == "length"


def test_a_drain_ends(endless):
    with server(endless, rows=1, max_new_tokens=LONG) as (service, client):
        stream = long_answer(client)
        begun = time.monotonic()
        service.drain(0.3)
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert caught.value.body["code"] == "shutting_down"
        assert time.monotonic() - begun < 5
