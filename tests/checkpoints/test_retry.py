"""A disk that is really full: saves and lines wait until it is freed, or give up with what was whole before."""

import errno
import json
import os
import socket
import subprocess
import sys
import textwrap
import time

import jax
import orbax.checkpoint as ocp
import pytest
from tiny_disk import tiny_disk

from vlm_jax.checkpoints import CheckpointManager
from vlm_jax.checkpoints.retry import RefusedError, passing, try_again

SAVES = """
    import logging, sys
    import jax.numpy as jnp
    import numpy as np
    from vlm_jax.checkpoints import CheckpointManager
    from vlm_jax.errors import UserError

    logging.basicConfig(format="%(message)s")
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=60_000), jnp.float32)}
    signs_of_life = []
    manager = CheckpointManager(sys.argv[1], 9, 0, float(sys.argv[2]), lambda: signs_of_life.append(1))
    try:
        for step in (1, 2, 3):
            manager.save(step, params, {"m": params["w"]}, {"at": step}, {"config.json": b"{}"}, wait=step == 3)
            print("BEGAN", step, flush=True)
        print("SAVED", len(signs_of_life), flush=True)
    except UserError as error:
        print("REFUSED", error, flush=True)
"""

LINES = """
    import logging, sys
    from etils import epath
    from vlm_jax.checkpoints.retry import RefusedError, append_line

    logging.basicConfig(format="%(message)s")
    try:
        for number in range(40):
            append_line(epath.Path(sys.argv[1]) / "lines.jsonl", str(number) + " " + "x" * 5000, float(sys.argv[2]))
        print("WRITTEN", flush=True)
    except RefusedError as error:
        print("REFUSED", error, flush=True)
"""


@pytest.fixture
def run_on(tmp_path):
    """Runs a program on a tiny disk that is freed when the program is waiting, or never: (what it says, the disk)."""
    disks = []

    def run(program, room, largest, seconds, freed):
        directory = tmp_path / "disk"
        directory.mkdir()
        disk = tiny_disk(directory, room, 8_000_000, largest)
        disks.append(disk)
        arguments = [sys.executable, "-c", textwrap.dedent(program), str(directory), str(seconds)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
        process, said = disk.start(*arguments, **pipe), ""
        for line in process.stdout:
            said += line
            if freed and "trying again" in line:
                disk.free(process)
                freed = False
        process.wait(60)
        return said, disk

    yield run
    for disk in disks:
        disk.close()


def steps(disk):
    return sorted(path.name for path in disk.path.iterdir() if path.name.isdigit())


def test_a_save_that_a_full_disk_refused_is_made_when_there_is_room(run_on):
    """The first step fits. That the second did not is noticed at the third, which takes its place."""
    said, disk = run_on(SAVES, 900_000, 100_000, 60, freed=True)
    assert (
        "the last save failed (the disk is full); saving the present step in its place" in said
        or "saving step 1" in said
    )
    assert "the disk is full; trying again in 1 s" in said
    assert "SAVED" in said
    assert steps(disk)[-1] == "3"
    manager = CheckpointManager(disk.path)
    assert manager.latest_step() == 3
    manager.close()


def test_a_disk_that_stays_full_ends_in_one_line_and_whole_steps_stay(run_on):
    said, disk = run_on(SAVES, 900_000, 100_000, 2.5, freed=False)
    (refused,) = [line for line in said.splitlines() if line.startswith("REFUSED")]
    assert "could not save step" in refused
    assert "(the disk is full)" in refused
    waits = [line for line in said.splitlines() if "trying again" in line]
    assert 2 <= len(waits) <= 3
    for step in steps(disk):
        sums = json.loads((disk.path / step / "files" / "checksums.json").read_text())
        assert "params/w" in sums


@pytest.mark.parametrize("freed", [True, False], ids=["freed", "full"])
def test_lines_are_written_whole_or_not_at_all(run_on, freed):
    said, disk = run_on(LINES, 100_000, 101_000, 60 if freed else 1, freed)
    assert "the disk is full; trying again" in said
    lines = (disk.path / "lines.jsonl").read_text().splitlines()
    assert ("WRITTEN" in said) == freed
    assert ("lines.jsonl: could not be written (the disk is full); free space" in said) != freed
    assert (len(lines) == 40) == freed
    assert [int(line.split()[0]) for line in lines] == list(range(len(lines)))
    assert {len(line) for line in lines} <= {5002, 5003}


def test_real_errors_of_full_disks_and_lost_connections_may_pass():
    file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with file, pytest.raises(OSError, match="No space") as full:
        file.write(b"x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionRefusedError) as refused:
        socket.create_connection(("127.0.0.1", port))
    assert passing(full.value) == "the disk is full"
    assert passing(refused.value) == "it cannot be reached"
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as too_much:
        jax.numpy.zeros(2**52, "uint8")
    assert not passing(too_much.value)
    wrapped = ValueError("a save failed")
    wrapped.__cause__ = full.value
    assert passing(wrapped) == "the disk is full"


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ValueError("ABORTED: Error reading gs://b/x: All 32 retry attempts failed: CURL error"), True),
        (ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device"), True),
        (ValueError("RESOURCE_EXHAUSTED: HTTP response code: 429"), True),
        (ValueError("UNAVAILABLE: Socket closed"), True),
        (ValueError("UNKNOWN: Error reading: Input/output error [os_error_code='5']"), True),
        (ValueError("RESOURCE_EXHAUSTED: Failed to open: Too many open files [os_error_code='24']"), False),
        (ValueError("PERMISSION_DENIED: Failed to open: Permission denied [os_error_code='13']"), False),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12 bytes."), False),
        (MemoryError("std::bad_alloc"), False),
        (ValueError("DATA_LOSS: Error decoding"), False),
        (ValueError("it was ABORTED: by hand"), False),
        (OSError(errno.EACCES, "Permission denied"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (KeyError("w"), False),
    ],
    ids=str,
)
def test_which_messages_mean_that_it_may_pass(error, passes):
    assert bool(passing(error)) == passes


def test_waits_grow_and_end(monkeypatch):
    waits, clock = [], [0.0]

    def sleep(seconds):
        waits.append(seconds)
        clock[0] += seconds

    def refuse():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with pytest.raises(OSError, match="No space"):
        try_again(refuse, "saving", 200)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 17]


def test_what_will_not_pass_is_raised_at_once():
    tries = []

    def refuse():
        tries.append(1)
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        try_again(refuse, "saving", 60)
    assert len(tries) == 1


def test_memory_of_devices_is_no_full_disk_to_a_save(tmp_path, monkeypatch):
    def exhaust(*_, **__):
        jax.numpy.zeros(2**52, "uint8")

    manager = CheckpointManager(tmp_path, retry_seconds=60)
    monkeypatch.setattr(ocp.CheckpointManager, "save", exhaust)
    with pytest.raises(RefusedError, match=r"could not save step 1 \(RESOURCE_EXHAUSTED: Out of memory") as caught:
        manager.save(1, {"w": jax.numpy.ones(3)}, {}, {}, {"config.json": b"{}"})
    assert "disk" not in str(caught.value)
    assert "free space" not in str(caught.value)
    manager.close()
