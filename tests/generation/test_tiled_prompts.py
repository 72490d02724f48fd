"""Prompts whose pictures are cut into tiles, in the sequence, through cross-attention, and both."""

import dataclasses
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.examples import Example, Text
from data_pipelines.images import BadImage
from data_pipelines.template import Processor
from vlm_jax.batch import Batch
from vlm_jax.errors import UserError
from vlm_jax.generation import Engine, Request, as_image, question
from vlm_jax.generation.batches import by_pictures
from vlm_jax.generation.encoded import distinct, encode_pictures
from vlm_jax.models.adapters import CrossAttentionConfig, MLPAdapterConfig
from vlm_jax.models.vlm import VLM
from vlm_jax.pictures import Tiling, grids_up_to

CUT = Tiling(grids_up_to(4), tile_mark="<tile_{tile}>", thumbnail_mark="<whole>")
ROWS = Tiling(grids_up_to(3), choose="area", fit="centre", thumbnail_of_one=True, separator=True)
PADDED = Tiling(grids_up_to(4), choose="canvas", fit="pad", thumbnail="none", slots=4)
MODELS = {
    "marks": (CUT, MLPAdapterConfig()),
    "rows": (ROWS, MLPAdapterConfig()),
    "memory": (PADDED, CrossAttentionConfig(every=2, form="llama", memory=MLPAdapterConfig(layers=1))),
    "hybrid": (
        Tiling(grids_up_to(4), thumbnail="last", thumbnail_of_one=True, tile_mark="<tile_{tile}>"),
        CrossAttentionConfig(every=2, visible="all", prompt=MLPAdapterConfig(), prompt_slots="thumbnail"),
    ),
}
NEW = 5


def shown(height, width):
    return as_image(np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture(scope="module", params=MODELS)
def tiled(request, mu):
    """config, params, processor of one of MODELS, over the mu encoder and decoder."""
    tiling, adapter = MODELS[request.param]
    config = dataclasses.replace(mu.config, adapter=adapter, tiling=tiling)
    boxed = jax.eval_shape(lambda: VLM(config).init(jax.random.key(0), _spec(config)))
    rng = np.random.default_rng(1)
    drawn = jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), nn.meta.unbox(boxed)["params"]
    )
    # No answer ends by itself, so that there is something to compare.
    embedding = mu.params["decoder"]["embedding"].at[mu.tokenizer.end_id].mul(0.1)
    params = {**drawn, "encoder": mu.params["encoder"], "decoder": {**mu.params["decoder"], "embedding": embedding}}
    sizes = (config.image_size, config.prompt_tokens, config.pictures)
    processor = Processor(mu.tokenizer, mu.processor.template, mu.processor.images, *sizes)
    return SimpleNamespace(config=config, params=params, processor=processor)


def _spec(config):
    shapes = Batch.spec(
        1,
        8,
        images=4,
        image_size=config.image_size,
        in_sequence=config.prompt_tokens > 0,
        pictures=config.pictures,
    )
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


@pytest.fixture(scope="module")
def asked():
    """Prompts of no, one and two pictures of several grids; one of them twice, one between two turns."""
    wide, high, square = shown(30, 100), shown(90, 40), shown(32, 32)
    turns = (Text("да", role="user"), Text("no", role="assistant"), high, Text("What shape is shown?", role="user"))
    return [
        question("What shape is shown?", [wide]),
        question("Is there a red circle in the picture?"),
        question("да", [square, high]),
        question("Какого цвета круг?", [wide, wide]),
        Example((square, *turns)),
    ]


def engine_of(tiled, **options):
    return Engine(tiled.config, tiled.params, tiled.processor, **options)


def answers_in_one_batch(engine, prompts):
    answers = [""] * len(prompts)
    for piece in engine.stream_many([Request(prompt, NEW) for prompt in prompts]):
        answers[piece.request] += piece.text
    return answers


def test_prompts_of_no_one_and_two_pictures_are_answered_together_as_alone(tiled, asked):
    together = answers_in_one_batch(engine_of(tiled), asked[:3])
    assert len(set(together)) == 3
    # Of these, each is a batch by itself, since each has another number of slots.
    assert engine_of(tiled).generate(asked[:3], max_new_tokens=NEW) == together


@pytest.mark.parametrize("tiled", ["marks", "memory"], indirect=True)
def test_reading_in_parts_changes_nothing(tiled, asked):
    whole = answers_in_one_batch(engine_of(tiled), asked[:3])
    assert answers_in_one_batch(engine_of(tiled, prefill_chunk=16), asked[:3]) == whole


def test_the_first_token_is_that_of_a_full_forward_pass(tiled, asked):
    engine = engine_of(tiled)
    rendered = [engine.render(prompt) for prompt in asked[:3]]
    batch = engine._batch(rendered, encode_pictures(tiled.config, tiled.params, tiled.processor, rendered))
    logits = np.asarray(jax.jit(lambda p, b: VLM(tiled.config).apply({"params": p}, b).logits)(tiled.params, batch))
    size = tiled.processor.tokenizer.vocabulary_size
    requests = [Request(prompt, NEW) for prompt in asked[:3]]
    running = engine._running([0, 1, 2], requests, rendered, engine._encode(rendered))
    for row, prompt, token in zip(logits, rendered, np.asarray(running.whole())[:, 0], strict=False):
        assert row[prompt.length - 1, :size].argmax() == token


def test_another_picture_gives_another_answer(tiled):
    """Every slot counts: a picture that differs in one corner only is read otherwise."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    corner = pixels.copy()
    corner[40:, 40:] = 255 - corner[40:, 40:]
    engine = engine_of(tiled)
    scores = engine.score([question("да", [as_image(p)]) for p in (pixels, corner)], [["no"], ["no"]])
    assert scores[0][0].log_likelihood != scores[1][0].log_likelihood


def test_pictures_are_encoded_once_and_slots_name_them(tiled, asked):
    engine = engine_of(tiled)
    rendered = [engine.render(prompt) for prompt in asked]
    table = encode_pictures(tiled.config, tiled.params, tiled.processor, rendered)
    cuts = distinct(rendered)
    assert len(cuts) == 3
    for image, cut in cuts.items():
        assert cut == tiled.processor.cut(image)
    slots = [table.entries(prompt) for prompt in rendered]
    assert [len(row) for row in slots] == [prompt.slots for prompt in rendered]
    wide = cuts[asked[0].images[0]].slots
    assert slots[3] == slots[0] * 2 == [*range(wide)] * 2
    batch = engine._batch(rendered, table)
    assert batch.tile_index is not None
    for row, prompt in enumerate(rendered):
        expected = np.repeat(np.arange(1, len(prompt.cuts) + 1), [cut.slots for cut in prompt.cuts])
        np.testing.assert_array_equal(batch.image_ids[row, : prompt.slots], expected)
        assert not np.asarray(batch.image_ids[row, prompt.slots :]).any()
        tiles = [cut.tile_index for cut in prompt.cuts]
        np.testing.assert_array_equal(batch.tile_index[row, : prompt.slots], np.concatenate([np.zeros((0, 3)), *tiles]))
    assert (batch.visual_index is None) == (tiled.config.prompt_tokens == 0)
    assert (batch.visible_images is None) == (tiled.config.pictures.visible is None)


def test_groups_hold_as_many_slots_as_there_is_room_for(tiled, asked):
    rendered = [engine_of(tiled).render(prompt) for prompt in asked]
    most = max(sum(cut.slots for cut in distinct([prompt]).values()) for prompt in rendered)
    for group in by_pictures(rendered, most):
        assert sum(cut.slots for cut in distinct([rendered[number] for number in group]).values()) <= most


def test_a_processor_that_cuts_otherwise_is_refused(tiled):
    other = dataclasses.replace(tiled.config.pictures, tiling=Tiling(grids_up_to(2)))
    with pytest.raises(UserError, match=r"treat pictures differently \(tiling"):
        Engine(tiled.config, tiled.params, dataclasses.replace(tiled.processor, pictures=other))


@pytest.mark.parametrize("tiled", ["marks"], indirect=True)
def test_a_picture_that_suits_no_grid_is_named(tiled):
    config = dataclasses.replace(tiled.config, tiling=Tiling(((1, 4),), choose="cover"), adapter=MLPAdapterConfig())
    sizes = (config.image_size, config.prompt_tokens, config.pictures)
    processor = dataclasses.replace(tiled.processor, prompt_tokens=sizes[1], pictures=sizes[2])
    engine = Engine(config, tiled.params, processor)
    engine.check_picture(shown(20, 100))
    for ask in (engine.check_picture, lambda image: engine.check(Request(question("да", [image])))):
        with pytest.raises(BadImage, match=r"100 x 20 pixels .* take a grid of 4 x 1 tiles, which is not among the 1"):
            ask(shown(100, 20))
