"""`vlm serve` as a process: it starts, answers, drains and ends; and what it refuses to start with."""

import contextlib
import functools
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time

import openai
import pytest
from clients import asked, connect

from vlm_jax import cli
from vlm_jax.generation import question

QUICK = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
SERVE = "import sys; from vlm_jax.cli import main; main(['serve', *sys.argv[1:]])"


@pytest.fixture(autouse=True)
def loggers():
    """The command line sets up loggers for a process of its own; other tests go on in this one."""
    root, kept = logging.getLogger(), logging.getLogger().handlers[:]
    level = logging.getLogger("vlm_jax").level
    yield
    root.handlers[:] = kept
    logging.getLogger("vlm_jax").setLevel(level)


@contextlib.contextmanager
def process(*arguments):
    """(process, base URL) of a server that listens; killed in the end if it is still there."""
    command = [sys.executable, "-c", SERVE, "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=QUICK) as started:
        try:
            line = started.stdout.readline()
            address = re.search(r"http://\S+", line)
            assert address, line + started.stderr.read()
            yield started, address[0].removesuffix("/v1")
        finally:
            started.kill()


def status_of(request):
    """200, or the status of the error."""
    try:
        request()
    except openai.APIStatusError as error:
        return error.status_code, error.body["code"]
    return 200


def test_a_server_from_start_to_drain(endless_directory, endless, tmp_path):
    (tmp_path / "key.txt").write_text("right\n")
    arguments = ("--model", str(endless_directory), "--rows", "2", "--api-key-file", str(tmp_path / "key.txt"))
    with process(*arguments, "--max-new-tokens", "1500", "--temperature", "0") as (started, address):
        client, another = connect(address, "right"), connect(address, "right")
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert status_of(connect(address, "wrong").models.list) == (401, "invalid_api_key")
        (expected,) = endless.generate([question("да")], max_new_tokens=12)
        ask = functools.partial(client.chat.completions.create, model="tiny", messages=asked("да"), max_tokens=12)
        assert ask().choices[0].message.content == expected

        stream = iter(ask(stream=True, max_tokens=1500))
        next(stream)
        started.send_signal(signal.SIGTERM)
        refused = functools.partial(another.chat.completions.create, model="tiny", messages=[])
        while (status := status_of(refused)) == (400, None):
            time.sleep(0.01)
        assert status == (503, "shutting_down")
        assert [choice.finish_reason for chunk in stream for choice in chunk.choices][-1] == "length"
        assert started.wait(20) == 0
        log = started.stderr.read()
    assert re.search(r"warm-up for batches of \[1, 2\] took .* programs compiled", log)
    assert "SIGTERM: no new requests" in log
    assert "Traceback" not in log
    assert "right" not in log


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "VLM_API_KEY"),
        (["--host", "0.0.0.0", "--api-key-file", "missing.txt"], "missing.txt"),
        (["--api-key-file", "empty.txt"], "first line is empty"),
        (["--rows", "0"], "rows is 0"),
        (["--temperature", "3"], "temperature is 3"),
        (["--wait-seconds", "nan"], "wait seconds is nan"),
        (["--host", "192.0.2.1", "--api-key-file", "key.txt"], "--host 192.0.2.1"),
        (["--port", "70000"], "--port 70000"),
    ],
    ids=str,
)
def test_what_it_refuses_to_start_with(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLM_API_KEY", raising=False)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "key.txt").write_text("right")
    assert cli.run(["serve", "--model", "nowhere", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_a_taken_port_shows_before_the_model_is_loaded(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        begun = time.monotonic()
        assert cli.run(["serve", "--model", "nowhere", "--port", str(taken.getsockname()[1])]) == 2
        assert time.monotonic() - begun < 5
    assert "in use" in capsys.readouterr().err
