"""LLaVA-NeXT against transformers: tiles of several aspect ratios, its newline token, and the way out and back in."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from cases_llava_next import CASES, inputs
from harness import assert_same, run
from safetensors.numpy import load_file, save_file

from vlm_jax.convert import load_hf, run_hf_inputs, save_hf
from vlm_jax.errors import UserError


@pytest.fixture(params=CASES)
def model(request, built):
    """(transformers' model, our config, our parameters, its directory)."""
    directory, theirs = built(request.param, CASES[request.param])
    return theirs, *load_hf(directory), directory


def test_logits_of_pictures_of_several_shapes(model):
    theirs, config, params, _ = model
    assert config.separator
    given = inputs()
    assert_same(run_hf_inputs(config, params, given), run(theirs, given), given)
    tiles = [tile for picture in given["pixel_values"] for tile in picture if tile.any()]
    flat = run_hf_inputs(config, params, {**given, "pixel_values": np.stack(tiles)})
    np.testing.assert_array_equal(flat["logits"], run_hf_inputs(config, params, given)["logits"])


def test_text_alone(model):
    theirs, config, params, _ = model
    given = {"input_ids": np.arange(3, 20)[None]}
    assert_same(run_hf_inputs(config, params, given), run(theirs, given), given)


def test_out_and_in_again(model, tmp_path):
    theirs, config, params, _ = model
    save_hf(config, params, tmp_path / "out")
    again, same = load_hf(tmp_path / "out")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, same, params)
    exported, info = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not {name: keys for name, keys in info.items() if keys}
    given = inputs()
    assert_same(run(exported.eval(), given), run(theirs, given), given)


def test_names_of_other_versions_are_read(model, tmp_path):
    *_, params, directory = model
    shutil.copytree(directory, tmp_path / "old")
    tensors = load_file(directory / "model.safetensors")
    assert {"image_newline", "model.image_newline"} & tensors.keys()
    for turn in (("", "model."), ("model.", "")):
        renamed = {
            turn[1] + name.removeprefix(turn[0]) if name.endswith("image_newline") else name: array
            for name, array in tensors.items()
        }
        save_file(renamed, tmp_path / "old" / "model.safetensors")
        _, found = load_hf(tmp_path / "old")
        jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_sizes": None}, "image_sizes is missing"),
        (
            {"pixel_values": inputs()["pixel_values"][:, :3]},
            r"image_sizes\[0\] is 60 x 41, which is cut into 2 x 2 .* pixel_values holds 3 a picture",
        ),
        ({"pixel_values": np.zeros((3, 3, 28, 28))}, "holds 3 tiles, but image_sizes makes 4 pictures of 16 with"),
        ({"image_sizes": [[56, 28]] * 3}, r"image_sizes tells of 3 pictures"),
        ({"image_sizes": [[56, 0]] * 4}, r"give a \(height, width\) in pixels"),
        ({"image_sizes": [[28, 56]] * 4}, r"4 pictures make \d+ visual tokens, but input_ids holds \d+ image tokens"),
    ],
)
def test_what_does_not_agree_is_named(model, change, message):
    _, config, params, _ = model
    given = {name: value for name, value in (inputs() | change).items() if value is not None}
    with pytest.raises(UserError, match=message) as raised:
        run_hf_inputs(config, params, given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_grid_pinpoints": [[28, 50]]}, "holds 28 x 50, which is no number of the encoder's tiles of 28 x 28"),
        ({"image_grid_pinpoints": [28, 56]}, "each must be a height and a width"),
        ({"vision_feature_select_strategy": "full"}, "the encoder has a class token"),
    ],
)
def test_what_cannot_be_cut_is_refused(built, tmp_path, fields, message):
    directory, _ = built("llava_next", CASES["llava_next"])
    plain = json.loads((directory / "config.json").read_text())
    shutil.copytree(directory, tmp_path / "changed")
    (tmp_path / "changed" / "config.json").write_text(json.dumps({**plain, **fields}))
    with pytest.raises(UserError, match=message) as raised:
        load_hf(tmp_path / "changed")
    assert "\n" not in str(raised.value)
