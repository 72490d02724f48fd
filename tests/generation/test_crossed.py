"""Generation with cross-attention: new tokens see pictures that are read once; prompts of text are what they were."""

import dataclasses
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.batch import Batch
from vlm_jax.generation import Engine, Request, decoding, question
from vlm_jax.models.adapters import CrossAttentionConfig
from vlm_jax.models.adapters.mlp import MLPAdapterConfig
from vlm_jax.models.vlm import VLM

NEW = 5
LLAMA = CrossAttentionConfig(form="llama", layers=(0, 2), memory=MLPAdapterConfig(layers=1), memory_width=16)


@pytest.fixture(scope="module")
def crossed(mu):
    """Half the mu model with gated blocks in place of its adapter: config, params, processor."""
    decoder = dataclasses.replace(mu.config.decoder, layers=2)
    config = dataclasses.replace(mu.config, decoder=decoder, adapter=LLAMA)
    rows = Batch.spec(1, 8, images=1, image_size=config.image_size, in_sequence=False, pictures=config.pictures)
    shapes = nn.meta.unbox(jax.eval_shape(lambda b: VLM(config).init(jax.random.key(0), b), rows))["params"]
    rng = np.random.default_rng(1)
    adapter = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), x.dtype), shapes["adapter"])
    processor = dataclasses.replace(mu.processor, prompt_tokens=0, pictures=config.pictures)
    layers = jax.tree.map(lambda stack: stack[:1], mu.params["decoder"]["layers"])
    params = mu.params | {"adapter": adapter, "decoder": mu.params["decoder"] | {"layers": layers}}
    return SimpleNamespace(config=config, params=params, processor=processor)


@pytest.fixture(scope="module")
def engine(crossed):
    return Engine(crossed.config, crossed.params, crossed.processor, rows=4)


@pytest.fixture(scope="module")
def few(prompts):
    """One picture, none, and two side by side: both kinds of prompt are asked together."""
    return [prompts[0], prompts[1], prompts[2]]


@pytest.fixture(scope="module")
def answers(engine, few):
    return engine.generate(few, max_new_tokens=NEW)


def by_full_forwards(crossed, prompt, length=64, slots=2):
    """Argmax over the whole sequence again and again; each new token sees what the prompt's last one sees."""
    rendered = crossed.processor.render(prompt, open_turn="assistant")
    images = np.zeros((1, slots, *crossed.config.image_size, 3), np.uint8)
    for slot, image in enumerate(rendered.images):
        images[0, slot] = crossed.processor.pixels(image)
    rule, places = crossed.config.adapter.seen, rendered.pictures
    tokens, seen = np.zeros((1, length), np.int32), np.zeros((1, length, 2), np.int32)
    tokens[0, : rendered.length] = rendered.tokens
    last = first = -1
    for at in range(length):
        place = places[at] if at < rendered.length else -1
        if place > last:
            stands_together = rule == "group" and at > 0 and places[at - 1] >= 0
            last, first = place, first if stands_together else place
        seen[0, at] = (first, last + 1) if last >= 0 else (0, 0)
    new: list[int] = []
    while len(new) < NEW:
        at = rendered.length + len(new)
        segments = (np.arange(length) < at).astype(np.int32)[None]
        zeros = np.zeros_like(tokens)
        batch = Batch(
            tokens=tokens,
            targets=zeros,
            loss_weights=np.zeros((1, length), np.float32),
            segment_ids=segments,
            branch_ids=zeros,
            block_ids=zeros,
            positions=np.arange(length, dtype=np.int32)[None],
            example_index=zeros,
            source_ids=np.zeros((1, 1), np.int32),
            images=images,
            image_ids=(np.arange(slots) < len(rendered.images)).astype(np.int32)[None],
            visible_images=seen * segments[..., None],
        )
        logits = np.array(forward_of(crossed.config)(crossed.params, batch))[0, at - 1]
        token = int(np.argmax(logits[: crossed.processor.tokenizer.vocabulary_size]))
        new.append(token)
        if token == crossed.processor.tokenizer.end_id:
            break
        tokens[0, at] = token
    return new


def forward_of(config):
    if config not in _FORWARD:
        _FORWARD[config] = jax.jit(lambda p, b: VLM(config).apply({"params": p}, b).logits)
    return _FORWARD[config]


_FORWARD: dict = {}


def test_answers_are_those_of_full_forward_passes(crossed, engine, few, answers):
    for prompt, answer in zip(few, answers, strict=True):
        assert answer == engine.text(by_full_forwards(crossed, prompt))


def test_a_prompt_of_text_is_the_llm_s(crossed, few, answers):
    llm = dataclasses.replace(crossed.config, encoder=None, adapter=None)
    processor = dataclasses.replace(crossed.processor, image_size=(0, 0), pictures=llm.pictures)
    engine = Engine(llm, {"decoder": crossed.params["decoder"]}, processor)
    assert engine.generate([few[1]], max_new_tokens=NEW) == [answers[1]]


def test_layers_and_blocks_of_their_own_decode_the_same(crossed, engine, few, answers, monkeypatch):
    assert engine._unrolled is not None
    blocks = engine._unrolled["adapter"]["blocks"]
    stacked = crossed.params["adapter"]["blocks"]["mlp"]["up"]["kernel"]
    assert set(blocks) == {"block_0", "block_1"}
    np.testing.assert_array_equal(blocks["block_1"]["mlp"]["up"]["kernel"], stacked[1])
    monkeypatch.setattr(decoding, "unrolled_params", lambda *_: None)
    scanned = Engine(crossed.config, crossed.params, crossed.processor, rows=4)
    assert scanned._unrolled is None
    # Samples share the reading of a prompt and of its pictures.
    assert scanned.sample([Request(few[2], NEW, samples=2)]) == [[answers[2]] * 2]


def test_prompts_read_in_parts_are_read_alike(crossed, engine, few):
    long = question("что на картинке? " * 12, list(few[0].images))
    parts = dataclasses.replace(engine, prefill_chunk=16)
    assert parts.generate([long], max_new_tokens=NEW) == engine.generate([long], max_new_tokens=NEW)
