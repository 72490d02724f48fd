from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax.generation.batches import (
    Buckets,
    capacity_bucket,
    chunk_size,
    chunk_slots,
    length_bucket,
    power_bucket,
    prompt_batch,
)


def test_the_buckets_of_the_docstrings():
    assert [length_bucket(n) for n in (1, 8, 33, 64, 65, 129, 1000)] == [8, 8, 40, 64, 72, 144, 1024]
    assert [power_bucket(n) for n in (0, 1, 2, 5, 8)] == [0, 1, 2, 8, 8]
    assert [capacity_bucket(n) for n in (1, 8, 9)] == [8, 8, 16]


def test_coarse_buckets_are_few_and_hold_what_they_must():
    coarse = Buckets(coarse=True)
    assert [coarse.length(n) for n in (1, 64, 65, 300)] == [64, 64, 128, 512]
    assert [coarse.rows(n) for n in (1, 2, 4, 5, 16, 17)] == [1, 4, 4, 16, 16, 64]
    assert [coarse.capacity(n) for n in (1, 64, 65, 512, 513)] == [64, 64, 512, 512, 4096]


@given(st.integers(1, 100_000))
def test_a_bucket_holds_its_length_with_little_to_spare(n):
    bucket = length_bucket(n)
    assert n <= bucket < n + max(8, n / 8 + 1)
    assert length_bucket(bucket) == bucket
    assert length_bucket(n + 1) >= bucket


def test_buckets_are_few():
    assert len({length_bucket(n) for n in range(1, 4097)}) <= 8 + 6 * 8


def test_prompts_stand_left_and_slots_name_their_pictures(mu, prompts):
    rendered = [mu.processor.render(prompts[i], open_turn="assistant") for i in (0, 1, 2)]
    batch, entries = prompt_batch(rendered, [[5], [], [7, 5]], 4, mu.tokenizer.pad_id, mu.config.prompt_tokens)
    for row, prompt in enumerate(rendered):
        np.testing.assert_array_equal(batch.tokens[row, : prompt.length], prompt.tokens)
        assert not batch.segment_ids[row, prompt.length :].any()
        np.testing.assert_array_equal(batch.visual_index[row, : prompt.length], prompt.visual_index)
    assert not batch.segment_ids[3].any()
    assert entries.tolist() == [[5, 0], [0, 0], [7, 5], [0, 0]]
    assert batch.image_ids.tolist() == [[1, 0], [0, 0], [1, 2], [0, 0]]
    text_only, entries = prompt_batch(rendered[1:2], [[]], 1, 0, mu.config.prompt_tokens)
    assert text_only.visual_index is None
    assert entries.shape == (1, 0)


def laid_out(blocks, chunk):
    return chunk_slots(SimpleNamespace(block_ids=np.array(blocks), length=len(blocks)), chunk).tolist()


def test_a_block_begins_a_chunk_rather_than_go_past_its_end():
    assert laid_out([0, 1, 1, 1, 1, 0], 4) == [0, 4, 5, 6, 7, 8]
    assert laid_out([0, 0, 1, 1, 2, 2, 2, 0, 3], 4) == [0, 1, 2, 3, 4, 5, 6, 7, 8]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=1, max_size=12), st.integers(1, 12))
def test_chunks_hold_whole_blocks_in_order(runs, smallest):
    blocks, number = [], 0
    for block, length in runs:
        number += block
        blocks += [number if block else 0] * length
    chunk = chunk_size([SimpleNamespace(block_ids=np.array(blocks))], smallest)
    assert chunk >= smallest
    slots = np.array(laid_out(blocks, chunk))
    assert (np.diff(slots) > 0).all()
    assert slots[0] < chunk
    for block in range(1, number + 1):
        own = slots[np.array(blocks) == block]
        assert own[-1] - own[0] == len(own) - 1
        assert own[0] // chunk == own[-1] // chunk
    # A chunk stays open only for a block that does not fit.
    assert slots[-1] + 1 <= 2 * len(blocks) + chunk
