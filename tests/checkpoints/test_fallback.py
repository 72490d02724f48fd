"""Every kind of damage to the newest step: it is set aside, never deleted, and the step before it is used."""

import shutil

import jax
import numpy as np
import pytest

from vlm_jax.checkpoints import CheckpointManager, DamagedError
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


def test_a_stage_without_steps_has_nothing_to_restore(tmp_path, restore_newest):
    assert restore_newest(tmp_path) is None
