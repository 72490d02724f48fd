"""What is kept, what a kill leaves behind, and a disk that takes no more."""

import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.checkpoints import CheckpointManager, read_step_files
from vlm_jax.errors import UserError

PARAMS = {"w": jnp.arange(6.0), "v": {"k": jnp.ones((2, 3), jnp.bfloat16)}}
OPTIMIZER = {"m": jnp.zeros(6), "count": jnp.int32(3)}
FILES = {"config.json": b'{"name": "x"}', "processor/deep/er.txt": "шар".encode()}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def save(directory, steps, **options):
    manager = CheckpointManager(directory, **options)
    for step in steps:
        params = jax.tree.map(lambda x, step=step: x + step, PARAMS)
        manager.save(step, params, OPTIMIZER, {"at": step}, FILES)
    manager.close()


def kept(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def restored(directory, step):
    manager = CheckpointManager(directory)
    try:
        return manager.restore(step, abstract(PARAMS), abstract(OPTIMIZER))
    finally:
        manager.close()


@pytest.mark.parametrize(
    ("last", "every", "expected"), [(1, 0, [12]), (2, 0, [10, 12]), (2, 4, [4, 8, 10, 12]), (3, 12, [8, 10, 12])]
)
def test_the_newest_and_the_multiples_are_kept(tmp_path, last, every, expected):
    save(tmp_path, range(2, 14, 2), keep_last=last, keep_every=every)
    assert kept(tmp_path) == expected
    snapshot = restored(tmp_path, expected[0])
    np.testing.assert_array_equal(snapshot.params["w"], PARAMS["w"] + expected[0])
    assert snapshot.data == {"at": expected[0]}


def test_small_files_come_back_as_they_were(tmp_path):
    save(tmp_path, [2])
    files = read_step_files(tmp_path / "2")
    assert {name: files[name] for name in FILES} == FILES
    assert set(files) - {"commit_success.txt"} == {*FILES, "data.json", "checksums.json"}
    assert json.loads(files["data.json"]) == {"at": 2}


def test_arrays_may_be_donated_while_their_save_is_under_way(tmp_path):
    manager = CheckpointManager(tmp_path, keep_last=4)
    step = jax.jit(lambda x: x * 1.5 + 1, donate_argnums=0)
    x, expected = jnp.arange(200_000.0), {}
    for number in (1, 2, 3):
        x = step(x)
        expected[number] = np.array(x)
        manager.save(number, {"w": x}, OPTIMIZER, {}, FILES)
    x = step(x)
    manager.close()
    for number, array in expected.items():
        manager = CheckpointManager(tmp_path)
        snapshot = manager.restore(number, {"w": abstract(x)}, abstract(OPTIMIZER))
        manager.close()
        np.testing.assert_array_equal(snapshot.params["w"], array)


def test_what_a_killed_save_left_is_cleared_and_not_taken_for_a_step(tmp_path):
    save(tmp_path, [2, 4])
    leftover = tmp_path / "6.orbax-checkpoint-tmp"
    (leftover / "params").mkdir(parents=True)
    (leftover / "params" / "half").write_bytes(b"x" * 100)
    manager = CheckpointManager(tmp_path)
    assert manager.latest_step() == 4
    manager.save(6, PARAMS, OPTIMIZER, {"at": 6}, FILES)
    manager.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "6"]
    np.testing.assert_array_equal(restored(tmp_path, 6).params["w"], PARAMS["w"])


@pytest.mark.parametrize("lost", ["params", "files", "_CHECKPOINT_METADATA", "everything"])
def test_an_old_step_that_was_half_deleted_does_not_stop_the_newest(tmp_path, lost):
    """A kill may land in the deletion of a step that is no longer wanted."""
    save(tmp_path, [2, 4], keep_last=2)
    for path in (tmp_path / "2").iterdir():
        if lost in (path.name, "everything"):
            subprocess.run(["rm", "-r", str(path)], check=True)
    np.testing.assert_array_equal(restored(tmp_path, 4).params["w"], PARAMS["w"] + 4)
    save(tmp_path, [6], keep_last=2)
    assert kept(tmp_path) == [4, 6]


FULL = """
    import resource, signal, sys
    import jax.numpy as jnp
    from vlm_jax.checkpoints import CheckpointManager
    from vlm_jax.errors import UserError

    files = {"config.json": b"{}"}
    random = __import__("numpy").random.default_rng(0).normal(size=60_000)
    params = {"w": jnp.asarray(random, jnp.float32)}
    manager = CheckpointManager(sys.argv[1])
    manager.save(2, params, {"m": params["w"]}, {"at": 2}, files)
    manager.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)  # no file may grow beyond: write() fails
    try:
        manager.save(4, params, {"m": params["w"]}, {"at": 4}, files)
        manager.wait()
    except UserError as error:
        print("REFUSED", error, flush=True)
    print("LATEST", manager.latest_step(), flush=True)
    try:
        manager.close()
    except UserError as error:
        print("CLOSING", error, flush=True)
"""


@pytest.mark.parametrize("limit", [100, 50_000], ids=["small files", "arrays"])
def test_a_disk_that_takes_no_more_is_one_line_and_the_last_step_stays(tmp_path, limit):
    """A limit on the size of files stands in for a full disk; both make write() fail, at the first file or later."""
    command = [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path), str(limit)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    refused = [line for line in done.stdout.splitlines() if line.startswith("REFUSED")]
    assert len(refused) == 1, done.stdout + done.stderr
    assert "could not save" in refused[0]
    assert "step 2 is whole" in refused[0]
    assert "free space" in refused[0]
    assert kept(tmp_path) == [2]
    manager = CheckpointManager(tmp_path)
    w = jax.ShapeDtypeStruct((60_000,), jnp.float32, sharding=jnp.zeros(1).sharding)
    assert manager.latest_step() == 2
    assert manager.restore(2, {"w": w}, {"m": w}).data == {"at": 2}
    manager.close()


def test_a_checkpoint_of_another_optimiser_is_refused(tmp_path):
    save(tmp_path, [2])
    manager = CheckpointManager(tmp_path)
    other = {"m": OPTIMIZER["m"], "v": OPTIMIZER["m"]}
    with pytest.raises(UserError, match=r"another model or optimiser \(optimizer/count is in only one"):
        manager.restore(2, abstract(PARAMS), abstract(other))
    manager.close()
