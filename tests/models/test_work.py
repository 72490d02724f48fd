import dataclasses
import time

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax.batch import Batch
from vlm_jax.models.adapters.cross_attention import CrossAttentionAdapter, CrossAttentionConfig
from vlm_jax.models.masks import reference_mask
from vlm_jax.models.presets import vlm_mu, with_adapter
from vlm_jax.models.work import Work, attended_pairs, full_rows, work_of


@st.composite
def rows(draw):
    """A packed row: examples of a trunk with pictures (blocks) in it, branches, padding; sometimes a long prompt."""
    planes = {name: [] for name in ("segment", "branch", "block", "position")}

    def write(segment, branch, block, start, count):
        for name, value in (("segment", segment), ("branch", branch), ("block", block)):
            planes[name] += [value] * count
        planes["position"] += range(start, start + count)
        return start + count

    blocks = 0
    for segment in range(1, draw(st.integers(0, 3)) + 1):
        position = 0
        for size in draw(st.lists(st.integers(-5, 6), max_size=3)):
            blocks += size < 0
            position = write(segment, 0, blocks if size < 0 else 0, position, abs(size))
        for branch in range(1, draw(st.integers(0, 3)) + 1):
            inside = draw(st.integers(0, 3))
            blocks += inside > 0
            middle = write(segment, branch, blocks if inside else 0, position, inside)
            write(segment, branch, 0, middle, draw(st.integers(0, 4)))
    write(0, 0, 0, 0, 80 - len(planes["segment"]))
    return planes


def batch_of(many):
    planes = {name: np.array([row[name][:80] for row in many], np.int32) for name in many[0]}
    spec = Batch.spec(len(many), 80)
    zeros = {field.name: None for field in dataclasses.fields(spec)}
    return Batch(
        **zeros
        | {
            "segment_ids": planes["segment"],
            "branch_ids": planes["branch"],
            "block_ids": planes["block"],
            "positions": planes["position"],
        }
    )


@given(st.lists(rows(), min_size=1, max_size=3))
def test_pairs_are_those_of_the_reference_mask(many):
    batch, windows = batch_of(many), [0, 1, 3, 70]
    wanted = [float(np.asarray(reference_mask(batch, window)).sum()) for window in windows]
    assert attended_pairs(batch, windows) == tuple(wanted)


def packed(length, examples):
    """One row of equal examples, each with a picture's block and two branches."""
    size = length // examples
    rest = np.arange(length) % size
    branch = np.where(rest < size // 2, 0, np.where(rest < 3 * size // 4, 1, 2))
    position = np.where(branch == 2, rest - size // 4, rest)
    block = np.where((rest > 0) & (rest < size // 4), 1 + np.arange(length) // size, 0)
    planes = {"segment": 1 + np.arange(length) // size, "branch": branch, "block": block, "position": position}
    spec = dict.fromkeys((field.name for field in dataclasses.fields(Batch)), None)
    names = {"segment_ids": "segment", "branch_ids": "branch", "block_ids": "block", "positions": "position"}
    return Batch(**spec | {name: planes[short].astype(np.int32)[None] for name, short in names.items()})


def test_counting_is_cheap():
    """Compared with the mask itself, which has 4096² entries."""
    batch = packed(4096, 16)
    config = vlm_mu()

    def seconds(function, repeats):
        best = []
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            best.append(time.perf_counter() - start)
        return min(best)

    quick = seconds(lambda: work_of(config, batch), 20)
    slow = seconds(lambda: np.asarray(reference_mask(batch)).sum(), 2)
    assert work_of(config, batch).pairs == (float(np.asarray(reference_mask(batch)).sum()),)
    assert quick < slow / 10


def cross_attending(config, rng):
    """Two rows of three examples, of which the second has no picture, and whose slots are not all in use."""
    length, slots = 30, 5
    batch = Batch.spec(
        2, length, images=slots, image_size=(32, 32), in_sequence=config.prompt_tokens > 0, pictures=config.pictures
    )
    arrays = {name: None if leaf is None else np.zeros(leaf.shape, leaf.dtype) for name, leaf in vars(batch).items()}
    arrays["segment_ids"][:] = np.repeat([1, 2, 3, 0], [12, 6, 9, 3])
    arrays["branch_ids"][:, 20:24], arrays["branch_ids"][:, 24:27] = 1, 2
    arrays["positions"][:] = np.arange(length)
    arrays["image_ids"][:] = [[1, 1, 2, 3, 0], [1, 2, 3, 4, 5]]
    arrays["tile_index"][:] = [1, 1, 1]
    arrays["tile_index"][0, :2] = [[0, 1, 2], [1, 1, 2]]
    arrays["visible_images"][:, 3:12] = [0, 2]
    arrays["visible_images"][1, 6:12] = [1, 3]
    arrays["visible_images"][:, 18:26] = [3, 5]
    return Batch(**arrays)


@pytest.mark.parametrize("blind", ["skip", "feed_forward", "whole_example"])
@pytest.mark.parametrize("slots", ["all", "thumbnail"])
def test_the_memory_s_pairs_are_those_that_the_blocks_mask_lets_through(blind, slots):
    prompt = vlm_mu().adapter if slots == "thumbnail" else None
    adapter = CrossAttentionConfig(blind=blind, visible="all", prompt=prompt, prompt_slots=slots)
    config = dataclasses.replace(vlm_mu(), adapter=adapter)
    batch = cross_attending(config, np.random.default_rng(0))
    module = CrossAttentionAdapter(adapter, config.encoder.features, config.decoder)
    reads = np.asarray(module.sight(batch).reads)
    work = work_of(config, batch)
    assert work.memory_pairs == reads.sum() * config.memory_tokens > 0
    real = float((batch.segment_ids != 0).sum())
    assert work.readers == (real if blind == "feed_forward" else reads.any(-1).sum())
    assert work.slots == 9
    assert work.positions == real == 54


def test_text_alone_reads_no_pictures():
    config = with_adapter(vlm_mu(), "cross_attention")
    batch = packed(64, 2)
    assert work_of(config, batch) == Work(64.0, 0.0, attended_pairs(batch, [0]), 0.0, 0.0)
    assert full_rows(config, 1, 64, 0).readers == 0


def test_a_batch_may_be_on_a_device():
    batch = packed(64, 2)
    moved = dataclasses.replace(batch, segment_ids=jnp.asarray(batch.segment_ids))
    assert attended_pairs(moved, [0]) == attended_pairs(batch, [0])
