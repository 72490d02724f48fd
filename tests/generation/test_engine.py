import dataclasses
import itertools

import jax
import numpy as np
import pytest

from data_pipelines.examples import Example, Text
from data_pipelines.images import ImagePreprocessing
from data_pipelines.template import Processor, TemplateConfig
from vlm_jax.batch import Batch
from vlm_jax.errors import UserError
from vlm_jax.generation import Engine, Sampler, decoding, question
from vlm_jax.generation.batches import by_pictures
from vlm_jax.models.vlm import VLM, VLMConfig

NEW = 6


@pytest.fixture(scope="module")
def engine(mu):
    return Engine(mu.config, mu.params, mu.processor, rows=4)


@pytest.fixture(scope="module")
def answers(engine, prompts):
    return engine.generate(prompts, max_new_tokens=NEW)


def by_full_forwards(mu, prompt):
    """Argmax over the whole sequence again and again, without cache, padding rows or buckets."""
    rendered = mu.processor.render(prompt, open_turn="assistant")
    length, count = 96, 2
    images = np.zeros((1, count, *mu.config.image_size, 3), np.uint8)
    for slot, image in enumerate(rendered.images):
        images[0, slot] = mu.processor.pixels(image)

    def plane(values, padding, continuation):
        row = np.full((1, length), padding, np.int32)
        row[0, : rendered.length] = values
        row[0, rendered.length : rendered.length + NEW] = continuation
        return row

    new, forward = [], forward_of(mu.config)
    tokens = plane(rendered.tokens, 0, 0)
    while len(new) < NEW:
        at = rendered.length + len(new)
        segments = (np.arange(length) < at).astype(np.int32)[None]
        batch = Batch(
            tokens=tokens,
            targets=tokens,
            loss_weights=np.zeros((1, length), np.float32),
            segment_ids=segments,
            branch_ids=np.zeros_like(tokens),
            block_ids=plane(rendered.block_ids, 0, 0),
            positions=np.arange(length, dtype=np.int32)[None],
            example_index=np.zeros_like(tokens),
            source_ids=np.zeros((1, 1), np.int32),
            images=images,
            visual_index=plane(rendered.visual_index, -1, -1),
        )
        logits = np.asarray(forward(mu.params, batch))[0, at - 1]
        new.append(int(logits[: mu.tokenizer.vocabulary_size].argmax()))
        if new[-1] == mu.tokenizer.end_id:
            new.pop()
            break
        tokens = tokens.copy()
        tokens[0, at] = new[-1]
    return mu.tokenizer.decode(new)


FORWARDS = {}


def forward_of(config):
    if config not in FORWARDS:
        FORWARDS[config] = jax.jit(lambda params, batch: VLM(config).apply({"params": params}, batch).logits)
    return FORWARDS[config]


def test_answers_are_the_argmax_of_repeated_full_forwards(mu, prompts, answers):
    assert answers == [by_full_forwards(mu, prompt) for prompt in prompts]
    # The test sees answers that differ, and both ways to stop.
    assert len(set(answers)) > 3


def test_some_answers_end_by_themselves_and_some_at_the_limit(engine, prompts):
    longer = engine.generate(prompts, max_new_tokens=NEW + 2)
    short = engine.generate(prompts, max_new_tokens=NEW)
    grown = [a != b for a, b in zip(longer, short, strict=True)]
    assert any(grown)
    assert not all(grown)
    assert all(a.startswith(b.rstrip("\ufffd")) for a, b in zip(longer, short, strict=True))


def test_together_or_one_by_one_is_the_same(engine, prompts, answers):
    for number in (0, 3, 4, 6):
        assert engine.generate([prompts[number]], max_new_tokens=NEW) == [answers[number]]
    few_pictures = dataclasses.replace(engine, pictures=1)
    assert few_pictures.generate(prompts[3:5], max_new_tokens=NEW) == answers[3:5]


def test_draws_depend_on_seed_and_place_but_not_on_batching(engine, prompts):
    sampler = Sampler(1.5, top_k=40, top_p=0.95)
    asked = [prompts[0], prompts[3], prompts[0], prompts[0]]
    first = engine.generate(asked, max_new_tokens=NEW, sampler=sampler, seed=1)
    again = dataclasses.replace(engine, rows=1).generate(asked, max_new_tokens=NEW, sampler=sampler, seed=1)
    assert again == first
    assert len({first[0], first[2], first[3]}) > 1
    assert engine.generate(asked, max_new_tokens=NEW, sampler=sampler, seed=2) != first


def test_batches_of_one_bucket_compile_once(mu, prompts):
    engine = Engine(mu.config, mu.params, mu.processor, rows=3)
    letters = [question("q" * n, [prompts[0].trunk[0]]) for n in (25, 26, 28, 24, 30, 25, 29)]
    lengths = {engine.render(prompt).length for prompt in letters}
    assert len(lengths) > 4
    before = decoding.advance._cache_size()
    engine.generate(letters[:3], max_new_tokens=5)
    once = decoding.advance._cache_size()
    assert once == before + 1
    engine.generate(letters[3:6], max_new_tokens=5)
    engine.generate(letters[2:5][::-1], max_new_tokens=7, seed=3)
    assert decoding.advance._cache_size() == once
    # Nine prompts of the same bucket, in three full batches, and their pictures in one.
    encoders = decoding.encode._cache_size()
    engine.generate((letters * 2)[:9], max_new_tokens=8)
    assert decoding.advance._cache_size() == once
    assert decoding.encode._cache_size() == encoders


def test_every_distinct_picture_is_encoded_once(engine, prompts, monkeypatch):
    read = []
    pixels = Processor.pixels
    monkeypatch.setattr(Processor, "pixels", lambda self, image: read.append(image) or pixels(self, image))
    engine.generate(prompts, max_new_tokens=1)
    assert len(read) == len(set(read)) == 3


def test_pictures_are_taken_some_at_a_time(engine, prompts):
    rendered = [engine.render(prompt) for prompt in prompts] * 2
    for limit in (1, 2, 3):
        groups = list(by_pictures(rendered, limit))
        assert sorted(itertools.chain(*groups)) == list(range(len(rendered)))
        shown = [{image for number in group for image in rendered[number].images} for group in groups]
        assert all(len(images) <= max(limit, 2) for images in shown)
    assert len(list(by_pictures(rendered, 3))) == 1


def test_progress_counts_up_to_all(engine, prompts):
    told = []
    engine.generate(prompts, max_new_tokens=1, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (7, 7)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert engine.generate([], max_new_tokens=1) == []


def test_a_stream_joined_is_the_answer(engine, prompts, answers):
    for number in (0, 6):
        assert "".join(engine.stream(prompts[number], max_new_tokens=NEW)) == answers[number]
    sampler = Sampler(2.0)
    for seed in range(3):
        whole = engine.generate(prompts[:1], max_new_tokens=8, sampler=sampler, seed=seed)[0]
        assert "".join(engine.stream(prompts[0], max_new_tokens=8, sampler=sampler, seed=seed)) == whole


@pytest.mark.parametrize("chunk", [8, 16])
def test_prompts_read_in_chunks_get_the_same_answers(engine, prompts, answers, chunk, monkeypatch):
    sizes = []
    start = decoding.start
    monkeypatch.setattr(decoding, "start", lambda *a: sizes.append((a[3], a[5].tokens.shape[1])) or start(*a))
    chunked = dataclasses.replace(engine, prefill_chunk=chunk)
    assert chunked.generate(prompts, max_new_tokens=NEW) == answers
    assert any(length > size for size, length in sizes)
    assert all(length % size == 0 for size, length in sizes)
    assert max(size for size, _ in sizes) == chunk


def test_what_cannot_be_answered_is_refused_in_one_line(mu, engine, prompts):
    with pytest.raises(UserError, match="max_new_tokens is 0: give at least 1"):
        engine.generate(prompts, max_new_tokens=0)
    with pytest.raises(ValueError, match="it has branches"):
        engine.generate([Example((Text("a"),), ((Text("b", role="user"),),))])
    small = dataclasses.replace(mu.config, decoder=dataclasses.replace(mu.config.decoder, vocabulary_size=299))
    with pytest.raises(UserError, match="300 tokens, but the model embeds 299"):
        Engine(small, mu.params, mu.processor)
    with pytest.raises(UserError, match="take both from one checkpoint"):
        Engine(mu.config, mu.params, dataclasses.replace(mu.processor, prompt_tokens=5))
    text_only = VLMConfig(mu.config.decoder)
    processor = Processor(mu.tokenizer, TemplateConfig(), ImagePreprocessing(), (0, 0), 0)
    reader = Engine(text_only, {"decoder": mu.params["decoder"]}, processor)
    with pytest.raises(UserError, match="reads text only; leave the picture out"):
        reader.generate(prompts[:1])
    assert reader.generate([prompts[1]], max_new_tokens=NEW) == engine.generate([prompts[1]], max_new_tokens=NEW)
