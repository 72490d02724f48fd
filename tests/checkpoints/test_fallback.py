"""Every kind of damage to the newest step: it is set aside, never deleted, and the step before it is used."""

import errno
import resource
import shutil

import jax
import numpy as np
import pytest

from vlm_jax.checkpoints import CheckpointManager, DamagedError
from vlm_jax.checkpoints.checks import is_damage
from vlm_jax.errors import UserError

SMALL = ("config.json", "data.json", "checksums.json", "processor/processor.json", "processor/tokenizer.model")


def arrays(step, item):
    """The files that hold an item's arrays, largest first."""
    return sorted((step / item).rglob("d/*"), key=lambda path: -path.stat().st_size)


def flip(path):
    """Inverts many bytes in the middle, so that some are of an array."""
    content = bytearray(path.read_bytes())
    for i in range(len(content) // 4, 3 * len(content) // 4):
        content[i] ^= 0x55
    path.write_bytes(content)


def halve(path):
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def each_array_file(harm):
    return lambda step, item: [harm(path) for path in arrays(step, item)]


DAMAGES = {
    **{
        f"{name} of {item}": (lambda step, item=item, harm=harm: harm(step, item))
        for item in ("params", "optimizer")
        for name, harm in {
            "flipped bytes": lambda step, item: flip(arrays(step, item)[0]),
            "truncated files": each_array_file(halve),
            "missing files": each_array_file(lambda path: path.unlink()),
        }.items()
    },
    **{
        f"without {item}": (lambda step, item=item: shutil.rmtree(step / item))
        for item in ("params", "optimizer", "files")
    },
    **{
        f"{name} {file}": (lambda step, file=file, harm=harm: harm(step / "files" / file))
        for file in SMALL
        for name, harm in {"flipped": flip, "truncated": halve, "missing": lambda path: path.unlink()}.items()
    },
}


@pytest.fixture
def restore_newest(tiny):
    """Restores the newest whole step of a directory into the shapes of the tiny model, or of another one."""

    def restore_newest(directory, **changes):
        parts = {"params": tiny.abstract, "optimizer": tiny.abstract_optimizer, **changes}
        manager = CheckpointManager(directory)
        try:
            return manager.restore_newest(**parts)
        finally:
            manager.close()

    return restore_newest


def contents(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_newest_step_is_set_aside_and_the_one_before_is_used(step, restore_newest, tiny, caplog, damage):
    damage(step)
    harmed = contents(step)
    snapshot = restore_newest(step.parent)
    assert snapshot.step == 2
    for a, b in zip(jax.tree.leaves(snapshot.params), jax.tree.leaves(tiny.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert sorted(path.name for path in step.parent.iterdir()) == ["2", "4.damaged"]
    assert contents(step.with_name("4.damaged")) == harmed
    (warning,) = [record.getMessage() for record in caplog.records if "set aside" in record.getMessage()]
    assert f"{step}: damaged checkpoint (" in warning
    assert "4.damaged" in warning
    assert "step 2 is used" in warning


def test_a_step_that_was_set_aside_is_in_nobodys_way(step, restore_newest, tiny):
    shutil.rmtree(step / "params")
    restore_newest(step.parent)
    manager = CheckpointManager(step.parent)
    assert manager.latest_step() == 2
    files = {"config.json": b"{}"}
    manager.save(4, tiny.params, tiny.optimizer, {"at": 4}, files, wait=True)
    manager.close()
    shutil.rmtree(step / "optimizer")
    assert restore_newest(step.parent).step == 2
    assert sorted(path.name for path in step.parent.iterdir()) == ["2", "4.damaged", "4.damaged-2"]


def test_where_all_steps_are_damaged_nothing_is_renamed_and_the_newest_is_named(step, restore_newest):
    for each in (step, step.parent / "2"):
        shutil.rmtree(each / "params")
    with pytest.raises(DamagedError) as caught:
        restore_newest(step.parent)
    assert f"{step}: damaged checkpoint" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in step.parent.iterdir()) == ["2", "4"]


def test_a_checkpoint_of_another_model_is_not_damage(step, restore_newest, reshaped):
    with pytest.raises(UserError, match="a checkpoint of another model") as caught:
        restore_newest(step.parent, params=reshaped(width=24))
    assert not isinstance(caught.value, DamagedError)
    assert sorted(path.name for path in step.parent.iterdir()) == ["2", "4"]


def test_a_checkpoint_of_another_dtype_is_of_another_model(step, restore_newest, tiny):
    narrow = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "bfloat16", sharding=x.sharding), tiny.abstract)
    with pytest.raises(UserError, match=r"of another model .* is float32 there and bfloat16 here") as caught:
        restore_newest(step.parent, params=narrow)
    assert not isinstance(caught.value, DamagedError)
    assert sorted(path.name for path in step.parent.iterdir()) == ["2", "4"]


@pytest.mark.parametrize("inside", ["files/config.json", "params/d/*", "optimizer/*/d/*"])
def test_what_cannot_be_read_is_not_damage(step, restore_newest, inside):
    """A link to itself stands for whatever keeps a file from being read; even root may not open it."""
    for path in list(step.glob(inside)):
        path.unlink()
        path.symlink_to(path.name)
    with pytest.raises(UserError, match=rf"{step}: could not be read \(.*ymbolic links") as caught:
        restore_newest(step.parent)
    assert not isinstance(caught.value, DamagedError)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in step.parent.iterdir()) == ["2", "4"]


def test_too_many_open_files_are_not_damage(step, tiny):
    manager, before = CheckpointManager(step.parent), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(UserError, match=r"could not be read \(.*Too many open files") as caught:
            manager.restore(4, tiny.abstract, tiny.abstract_optimizer)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert not isinstance(caught.value, DamagedError)
    manager.close()


@pytest.mark.parametrize(
    ("error", "damage"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file"), True),
        (ValueError("DATA_LOSS: Error opening"), True),
        (ValueError("NOT_FOUND: Failed to open: No such file [os_error_code='2']"), True),
        (ValueError("FAILED_PRECONDITION: Truncated Zstd-compressed stream; at byte 0"), True),
        (KeyError("tree_metadata"), True),
        (Exception("Encountered error while reading array index"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (OSError(errno.EMFILE, "Too many open files"), False),
        (ValueError("PERMISSION_DENIED: Failed to open: Permission denied [os_error_code='13']"), False),
        (ValueError("UNAUTHENTICATED: no token"), False),
        (MemoryError("std::bad_alloc"), False),
        (RuntimeError("can't start new thread"), False),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12 bytes."), False),
    ],
    ids=str,
)
def test_what_is_evidence_of_damage(error, damage):
    wrapped = Exception("Encountered error while reading array index")
    wrapped.__cause__ = error
    assert is_damage(error) == is_damage(wrapped) == damage
    also_decoded = KeyError("w")
    also_decoded.__cause__ = error
    assert is_damage(also_decoded) == (damage or type(error) is Exception)


def test_a_stage_without_steps_has_nothing_to_restore(tmp_path, restore_newest):
    assert restore_newest(tmp_path) is None
