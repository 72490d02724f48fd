"""Whatever happens to a checkpoint's files: one line that names them, never wrong weights, and older steps work."""

import json
import shutil

import jax
import numpy as np
import pytest

from vlm_jax.checkpoints import load_params
from vlm_jax.checkpoints.checksums import file_checksum, seal, unseal
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.errors import UserError

FILES = ("config.json", "data.json", "checksums.json", "processor/processor.json", "processor/tokenizer.model")


def data_files(step, item):
    """The files that hold an item's arrays, largest first."""
    return sorted((step / item).rglob("d/*"), key=lambda path: -path.stat().st_size)


def flip(path, at, count=4):
    content = bytearray(path.read_bytes())
    for i in range(at, at + count):
        content[i % len(content)] ^= 0x55
    path.write_bytes(content)


def refusal(function, *arguments, **options):
    """The error of a call that must be refused: one line."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_an_unharmed_step_comes_back_bit_for_bit(step, restore, tiny):
    snapshot = restore(step)
    assert equal(snapshot.params, tiny.params)
    assert equal(snapshot.optimizer, tiny.optimizer)
    assert (snapshot.step, snapshot.data) == (4, {"at": 4})


@pytest.mark.parametrize("item", ["params", "optimizer"])
def test_flipped_bytes_in_arrays_are_noticed_wherever_they_are(step, restore, tiny, item):
    """Orbax restores them without a word. A flip is refused, or it hit bytes that nothing reads."""
    path = data_files(step, item)[0]
    whole, messages = path.read_bytes(), []
    for at in np.linspace(0.05, 0.95, 6) * len(whole):
        flip(path, int(at))
        try:
            snapshot = restore(step)
        except UserError as error:
            messages.append(str(error))
        else:
            assert equal(snapshot.params, tiny.params)
            assert equal(snapshot.optimizer, tiny.optimizer)
        path.write_bytes(whole)
    assert any(f"checksum of {item}/" in message for message in messages)
    assert all(str(step) in message and "remove this directory" in message for message in messages)
    assert all("\n" not in message for message in messages)


def test_the_damaged_leaf_is_named(step, tiny):
    """Flips here and there in the arrays' bytes; the largest leaf is hit by some."""
    for path in data_files(step, "params"):
        whole = path.read_bytes()
        for at in range(0, len(whole) - 8, max(len(whole) // 15, 1)):
            flip(path, at, 1)
            try:
                load_params(step, tiny.abstract)
            except UserError as error:
                if "checksum of params/decoder/embedding differs" in str(error):
                    return
            path.write_bytes(whole)
    raise AssertionError("no flip was blamed on the embedding")


@pytest.mark.parametrize("item", ["params", "optimizer"])
@pytest.mark.parametrize("harm", ["truncate", "remove"])
def test_truncated_and_missing_array_files_are_refused(step, restore, item, harm):
    for path in data_files(step, item):
        content = path.read_bytes()
        path.unlink()
        if harm == "truncate":
            path.write_bytes(content[: len(content) // 2])
    assert f"{step}: damaged checkpoint" in refusal(restore, step)


@pytest.mark.parametrize("item", ["params", "optimizer", "files"])
def test_a_missing_item_is_refused(step, restore, item):
    shutil.rmtree(step / item)
    assert str(step) in refusal(restore, step)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_harmed_small_file_is_named(step, restore, name, harm):
    """A flipped digit leaves JSON that reads well and means something else, so these have checksums too."""
    path = step / "files" / name
    content = path.read_bytes()
    path.unlink()
    if harm == "truncate":
        path.write_bytes(content[: len(content) // 2])
    if harm == "flip":
        digit = next(i for i in range(len(content) // 2, len(content)) if content[i : i + 1].isdigit())
        path.write_bytes(content[:digit] + bytes([content[digit] ^ 1]) + content[digit + 1 :])
    messages = [refusal(restore, step), refusal(load_model, str(step))]
    assert all(f"{step}: damaged checkpoint" in message for message in messages)
    assert all(f"files/{name}" in message for message in messages)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"stages": 3}', '{"stages": [1]}', "\xff"])
def test_a_workdir_with_a_damaged_config_is_refused(workdir, content):
    (workdir / "config.json").write_bytes(content.encode("latin-1"))
    assert "config.json" in refusal(load_model, str(workdir))


def test_the_step_before_a_damaged_one_is_still_good(step, restore, tiny):
    flip(data_files(step, "params")[0], 100, 2000)
    refusal(restore, step)
    shutil.rmtree(step)
    assert equal(restore(step.parent / "2").params, tiny.params)


@pytest.mark.parametrize(
    "fields", [{"width": 24}, {"layers": 3}, {"vocabulary_size": 400}, {"tied_embeddings": False}], ids=str
)
def test_a_checkpoint_of_another_model_is_called_that(step, restore, reshaped, fields):
    other = reshaped(**fields)
    for message in (refusal(restore, step, params=other), refusal(load_params, step, other)):
        assert f"{step}: a checkpoint of another model" in message
        assert "damaged" not in message


def test_what_is_no_checkpoint_is_refused(tmp_path, workdir):
    assert "no checkpoint there" in refusal(load_model, str(tmp_path))
    assert "no checkpoint there" in refusal(load_model, str(tmp_path / "nowhere"))
    shutil.rmtree(workdir / "checkpoints")
    assert "holds no checkpoint yet" in refusal(load_model, str(workdir))


def test_a_config_of_what_does_not_exist_names_the_field(step):
    """As a newer version might have written it; its checksum is right."""
    path, sums = step / "files" / "config.json", step / "files" / "checksums.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["moon_phase"] = 3
    path.write_text(json.dumps(config))
    right = {**unseal(sums.read_bytes()), "files/config.json": file_checksum(path.read_bytes())}
    sums.write_bytes(seal(right))
    assert "moon_phase" in refusal(load_model, str(step))
