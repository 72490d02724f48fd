"""Tiles of one picture see each other, and nothing of another picture; numbers are compared in tests/parity."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models import tile_vit
from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.adapters import CrossAttentionConfig, MLPAdapterConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.encoders import normalise, slots_together
from vlm_jax.models.flops import encoder_flops, forward_flops
from vlm_jax.models.tile_vit import TileViT, TileViTConfig
from vlm_jax.models.vlm import VLM, VLMConfig
from vlm_jax.models.work import Work
from vlm_jax.parallel import abstract_params
from vlm_jax.pictures import Tiling

GRIDS = ((1, 1), (2, 1), (1, 3), (1, 2))
CONFIG = TileViTConfig((12, 18), 6, GRIDS, 3, 12, 4, 2, 3, 20, (2, 0))
TILING = Tiling(GRIDS, choose="canvas", fit="pad", thumbnail="none", slots=3)
DECODER = DecoderConfig(60, 24, 3, 4, 2, 6, 32, tied_embeddings=False, input_only_tokens=2)

TALL = [[1, 2, 1], [2, 2, 1], [3, 2, 1]]
"""tile_index of a picture of two tiles, one above the other, and a black slot."""
WHOLE = [[0, 1, 1], [2, 1, 1], [3, 1, 1]]
UNUSED = [[0, 0, 0]] * 3


@pytest.fixture(scope="module")
def params(make):
    return make.params(TileViT(CONFIG), jnp.zeros((3, 12, 18, 3)), jnp.zeros((3, 3), jnp.int32))


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (9, 12, 18, 3), np.uint8)


def encode(params, pixels, tiles, config=CONFIG):
    normal = normalise(jnp.asarray(pixels), config)
    return np.asarray(jax.jit(TileViT(config).apply)({"params": params}, normal, jnp.asarray(tiles)))


def test_features_are_of_every_slot_with_a_class_token(params, pixels):
    features = encode(params, pixels, [*TALL, *WHOLE, *UNUSED])
    assert features.shape == (9, CONFIG.features.count, CONFIG.features.width) == (9, 7, 36)
    assert (CONFIG.features.ahead, CONFIG.grid, CONFIG.tile_tokens, slots_together(CONFIG)) == (1, (2, 3), 8, 3)
    assert np.isfinite(features).all()


def test_pictures_do_not_see_each_other_and_their_tiles_do(params, pixels):
    tiles = [*TALL, *TALL, *WHOLE]
    features = encode(params, pixels, tiles)
    changed = pixels.copy()
    changed[1] = 255 - changed[1]
    other = encode(params, changed, tiles)
    np.testing.assert_array_equal(other[3:], features[3:])
    assert (np.abs(other[:3] - features[:3]).max((1, 2)) > 1e-3).all()
    alone = encode(params, pixels[3:6], TALL)
    np.testing.assert_allclose(alone, features[3:6], atol=1e-5)


def test_what_a_slot_holds_that_its_grid_does_not_need_is_nothing(params, pixels):
    tiles = [*TALL, *WHOLE, *UNUSED]
    features = encode(params, pixels, tiles)
    changed = pixels.copy()
    changed[[2, 4, 5, 7, 8]] = 7
    np.testing.assert_array_equal(encode(params, changed, tiles), features)
    changed[1] = 7
    assert np.abs(encode(params, changed, tiles) - features)[:3].max() > 1e-3


def test_the_grid_counts_and_not_only_the_tiles(params, pixels):
    wide = [[1, 1, 2], [2, 1, 2], [3, 1, 2]]
    first, second = encode(params, pixels[:3], TALL), encode(params, pixels[:3], wide)
    assert np.abs(first - second).max() > 1e-3
    shut = {**params, **{name: jnp.zeros(1) for name in ("positions_gate", "inner_tile_gate", "outer_tile_gate")}}
    np.testing.assert_array_equal(encode(shut, pixels[:3], TALL), encode(shut, pixels[:3], wide))


def test_grids_are_numbered_from_one():
    tiles = jnp.asarray([TALL, WHOLE, UNUSED, [[1, 3, 1]] * 3])
    assert tile_vit.grid_numbers(tiles, CONFIG).tolist() == [2, 1, 0, 0]
    assert tile_vit.tiles_in_use(tiles)[:3].tolist() == [
        [True, True, False],
        [True, False, False],
        [True, False, False],
    ]


def test_the_mask_is_as_drawn():
    drawn = """
              c a b .  . . . .
            c # # # #  # # # #
            a # # # #  # # # #
            b # # # #  # # # #
            . # # # .  . . . .

            . # # # .  . . . .
            . # # # .  . . . .
            . # # # .  . . . .
            . # # # .  . . . .
"""
    assert drawn in tile_vit.__doc__
    rows = [line.split()[1:] for line in drawn.strip().splitlines()[1:] if line]
    mask = tile_vit.tile_mask(jnp.asarray([[True, False]]), 3, 4)[0]
    assert (np.array(rows) == "#").tolist() == mask.tolist()


def test_joined_layers_are_those_of_the_layers_alone(params, pixels):
    """Channels: the last layer's, then those of the joined ones in turns, in the order of `joined`."""
    features = encode(params, pixels[:3], TALL)
    other = encode(params, pixels[:3], TALL, dataclasses.replace(CONFIG, joined=(0, 2)))
    np.testing.assert_array_equal(other[..., :12], features[..., :12])
    np.testing.assert_array_equal(other[..., 12::2], features[..., 13::2])
    np.testing.assert_array_equal(other[..., 13::2], features[..., 12::2])
    assert CONFIG.local_runs == (1, 2, 1)
    assert dataclasses.replace(CONFIG, joined=()).local_runs == (4,)
    assert dataclasses.replace(CONFIG, joined=(3, 3)).width == 36


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_size": (12, 20)}, "not a multiple of patch 6"),
        ({"heads": 5}, "does not divide by 5 heads"),
        ({"grids": ((1, 1), (2, 2))}, "2 x 2 has more tiles than the 3"),
        ({"grids": ()}, "at least one"),
        ({"joined": (1, 4)}, "names local layer 4, but they go from 0 to 3"),
    ],
)
def test_what_does_not_fit_is_said(changes, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(CONFIG, **changes)


def test_slots_of_other_sizes_are_refused(params, pixels):
    with pytest.raises(ValueError, match="8 image slots of 12 x 18 pixels, but a picture takes 3"):
        encode(params, pixels[:8], np.zeros((8, 3), np.int32))
    with pytest.raises(ValueError, match="of 12 x 12 pixels"):
        encode(params, pixels[:, :, :12], np.zeros((9, 3), np.int32))


def whole(**changes):
    parts = {"decoder": DECODER, "encoder": CONFIG, "tiling": TILING}
    parts["adapter"] = CrossAttentionConfig("llama", layers=(0, 2), memory=MLPAdapterConfig(layers=1))
    return VLMConfig(**{**parts, **changes})


@pytest.mark.parametrize(
    "tiling",
    [
        None,
        dataclasses.replace(TILING, slots=4),
        dataclasses.replace(TILING, thumbnail="first", grids=((1, 1), (2, 1))),
        dataclasses.replace(TILING, grids=((1, 1), (3, 1))),
    ],
)
def test_pictures_must_be_cut_as_the_encoder_wants_them(tiling):
    with pytest.raises(ValueError, match="takes 3 image slots a picture; set tiling"):
        whole(tiling=tiling)


def row(examples, slots):
    """A packed row of examples (tokens, tile_index of one picture that stands at position 1, or None)."""
    tokens, segments, positions, seen, ids, tiles = [], [], [], [], [], []
    for number, (text, cut) in enumerate(examples, 1):
        first = len(ids)
        tokens += text
        segments += [number] * len(text)
        positions += range(len(text))
        seen += [(first, first + 3) if cut and place >= 1 else (0, 0) for place in range(len(text))]
        if cut:
            ids += [len(ids) // 3 + 1] * 3
            tiles += cut
    missing = slots - len(ids)
    return {
        "tokens": tokens,
        "segment_ids": segments,
        "positions": positions,
        "visible_images": seen,
        "image_ids": ids + [0] * missing,
        "tile_index": tiles + [[0, 0, 0]] * missing,
    }


def batch_of(make, rows, pixels):
    planes = {name: np.array([each[name] for each in rows], np.int32) for name in rows[0]}
    empty = make.pack([], planes["tokens"].shape[1])
    nothing = {
        name: np.zeros_like(planes["tokens"]) for name in ("targets", "branch_ids", "block_ids", "example_index")
    }
    weights, sources = np.zeros(planes["tokens"].shape, np.float32), np.zeros((len(rows), 3), np.int32)
    return dataclasses.replace(empty, **nothing, **planes, loss_weights=weights, source_ids=sources, images=pixels)


def test_packed_examples_read_their_own_tiles_only(make, pixels):
    config = whole()
    texts = [[3, 60, 5, 6], [7, 60, 8, 9, 10], [11, 12, 13]]
    together = batch_of(make, [row([(texts[0], TALL), (texts[1], WHOLE), (texts[2], None)], 9)], pixels[None])
    params = make.params(VLM(config), together)
    run = jax.jit(lambda batch: VLM(config).apply({"params": params}, batch).logits)
    logits = np.asarray(run(together))[0]
    assert logits.shape == (12, 60)
    first = run(batch_of(make, [row([(texts[0], TALL)], 3)], pixels[None, :3]))[0]
    second = run(batch_of(make, [row([(texts[1], WHOLE)], 3)], pixels[None, 3:6]))[0]
    llm = dataclasses.replace(config, encoder=None, adapter=None, tiling=None)
    third = batch_of(make, [row([(texts[2], None)], 0)], None)
    third = dataclasses.replace(third, image_ids=None, tile_index=None, visible_images=None)
    third = VLM(llm).apply({"params": {"decoder": params["decoder"]}}, third).logits[0]
    np.testing.assert_allclose(logits, np.concatenate([first, second, third]), atol=1e-4)
    changed = pixels.copy()
    changed[0] = 255 - changed[0]
    other = np.asarray(run(dataclasses.replace(together, images=changed[None])))[0]
    np.testing.assert_array_equal(other[4:], logits[4:])
    # The position before the picture too: it may see none and so reads its whole example.
    assert (np.abs(other[:4] - logits[:4]).max(1) > 1e-4).all()


def test_flops_are_those_of_all_products(make):
    """Of an encoder whose every weight is used by every token, but for the patches' map."""
    config = whole()
    kernels = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(boxed_params(build_model(CONFIG))))
        if path[-1].key == "kernel"
    }
    patch = kernels.pop("patch/kernel")
    attention = 4 * 12 * 3 * 8 * (4 + 2) * 8
    encoder = 2 * patch * 6 + 2 * sum(kernels.values()) * 8 + attention
    adapter = forward_flops(config, Work(slots=1.0), features_given=True)
    assert encoder_flops(config) == encoder + adapter
