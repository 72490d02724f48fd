import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.examples import Image
from data_pipelines.packing import Budget, Packer, Planes, Size, best_subset
from data_pipelines.template import Rendered
from vlm_jax.errors import UserError

sizes = st.builds(Size, st.integers(1, 30), st.integers(0, 3))
budgets = st.builds(Budget, st.integers(0, 60), st.integers(0, 5), st.integers(0, 5))


class Thing:
    def __init__(self, number, size):
        self.number, self.size = number, size


def filled(chosen, sizes):
    return sum(sizes[i].length for i in chosen)


def allowed(chosen, sizes, budget):
    return (
        filled(chosen, sizes) <= budget.length
        and sum(sizes[i].images for i in chosen) <= budget.images
        and len(chosen) <= budget.examples
    )


@given(st.lists(sizes, max_size=8), budgets)
@settings(max_examples=200, deadline=None)
def test_best_subset_is_the_best_there_is(sizes, budget):
    every = itertools.chain.from_iterable(itertools.combinations(range(len(sizes)), k) for k in range(len(sizes) + 1))
    best = max(filled(subset, sizes) for subset in every if allowed(subset, sizes, budget))
    chosen = best_subset(sizes, budget)
    assert chosen == sorted(set(chosen))
    assert allowed(chosen, sizes, budget)
    assert filled(chosen, sizes) == best


def test_best_subset_prefers_early_items():
    assert best_subset([Size(5, 0), Size(5, 0), Size(5, 0)], Budget(10, 0, 9)) == [0, 1]


def packer(seed, budget=Budget(64, 6, 8), window=16, unusable=0.1):
    def draw(number):
        rng = np.random.default_rng((seed, number))
        if rng.random() < unusable:
            return None
        return Thing(number, Size(int(rng.integers(1, budget.length + 1)), int(rng.integers(0, budget.images + 1))))

    return Packer(draw, budget, window), draw


@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_every_item_is_placed_once_within_the_budget_and_none_starves(seed, window, rows):
    budget = Budget(64, 6, 8)
    pack, draw = packer(seed, budget, window)
    placed = []
    for row in range(rows):
        items = pack.next_row()
        assert sum(item.size.length for item in items) <= budget.length
        assert sum(item.size.images for item in items) <= budget.images
        assert 1 <= len(items) <= budget.examples
        placed += [item.number for item in items]
        usable = [n for n in range(2 * row + 50) if draw(n) is not None]
        assert set(usable[: row + 1]) <= set(placed), "each row takes the oldest"
    state = pack.get_state()
    assert len(set(placed)) == len(placed)
    assert sorted(placed + state["pending"]) == [n for n in range(state["next"]) if draw(n) is not None]


@given(st.integers(0, 10**6), st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_state_through_json_continues_with_the_same_rows(seed, at):
    original, _ = packer(seed)
    for _ in range(at):
        original.next_row()
    restored, _ = packer(seed)
    restored.set_state(json.loads(json.dumps(original.get_state())))
    for _ in range(10):
        assert [i.number for i in original.next_row()] == [i.number for i in restored.next_row()]


def test_a_pending_item_that_is_gone_is_an_error():
    pack, _ = packer(0)
    pack.next_row()
    state = pack.get_state()
    gone, _ = packer(0, unusable=1.0)
    with pytest.raises(UserError, match="no longer usable"):
        gone.set_state(state)


def test_rows_are_filled_where_first_fit_is_not():
    rng = np.random.default_rng(0)
    lengths = rng.integers(80, 260, 5000)
    pack = Packer(lambda n: Thing(n, Size(int(lengths[n]), 1)), Budget(512, 8, 8), 64)
    share = np.mean([sum(item.size.length for item in pack.next_row()) / 512 for _ in range(500)])
    assert share > 0.98


def rendered(trunk, branches=(), pictures=0, prompt_tokens=2, name="x"):
    """An example with one block a picture; tokens are numbered on from 10."""
    length = trunk + sum(branches)
    visual, block = np.full(length, -1, np.int32), np.zeros(length, np.int32)
    for k in range(pictures):
        span = slice(1 + k * prompt_tokens, 1 + (k + 1) * prompt_tokens)
        visual[span] = np.arange(k * prompt_tokens, (k + 1) * prompt_tokens)
        block[span] = k + 1
    return Rendered(
        tokens=np.arange(10, 10 + length, dtype=np.int32),
        loss=np.ones(length, np.float32),
        branch_ids=np.repeat(np.arange(1 + len(branches), dtype=np.int32), [trunk, *branches]),
        block_ids=block,
        positions=np.concatenate([np.arange(trunk), *(trunk + np.arange(n) for n in branches)]).astype(np.int32),
        visual_index=visual,
        images=tuple(Image(data=b"x") for _ in range(pictures)),
        id=name,
        source="s",
    )


def test_examples_are_laid_out_one_after_another():
    planes = Planes.empty(1, 20, pad_id=0)
    planes.write(0, [rendered(6, (2, 2), pictures=2), rendered(4, pictures=1)], prompt_tokens=2)
    assert planes.segment_ids[0].tolist() == [1] * 10 + [2] * 4 + [0] * 6
    assert planes.branch_ids[0].tolist() == [0] * 6 + [1, 1, 2, 2] + [0] * 10
    assert planes.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 6, 7, 0, 1, 2, 3] + [0] * 6
    assert planes.block_ids[0].tolist() == [0, 1, 1, 2, 2, 0] + [0] * 4 + [0, 3, 3, 0] + [0] * 6
    assert planes.visual_index[0].tolist() == [-1, 0, 1, 2, 3, -1] + [-1] * 4 + [-1, 4, 5, -1] + [-1] * 6
    assert planes.example_index[0].tolist() == [0] * 10 + [1] * 4 + [0] * 6


def test_shifted_as_its_docstring_draws_it():
    text = {
        "tokens": "B v v U q A a E U q A a E B t",
        "branch": "0 0 0 1 1 1 1 1 2 2 2 2 2 0 0",
        "loss": ". . . . . . 1 1 . . . 1 1 . 1",
        "targets": "v v . q A a E . q A a E . t .",
        "weights": ". . . . . 1 1 . . . 1 1 . 1 .",
    }
    for name, drawn in text.items():
        assert f"{name:8} {drawn}" in Planes.shifted.__doc__
    code = {".": 0} | {letter: ord(letter) for letter in "BvUqAaEt"}
    planes = Planes.empty(1, 15)
    planes.tokens[0] = [code[t] for t in text["tokens"].split()]
    planes.branch_ids[0] = [int(b) for b in text["branch"].split()]
    planes.loss[0] = [float(w == "1") for w in text["loss"].split()]
    planes.segment_ids[0] = [1] * 13 + [2] * 2
    targets, weights = planes.shifted()
    assert targets[0].tolist() == [code[t] for t in text["targets"].split()]
    assert weights[0].tolist() == [float(w == "1") for w in text["weights"].split()]


@given(st.lists(st.tuples(st.integers(2, 6), st.lists(st.integers(1, 4), max_size=3)), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_a_target_is_the_next_token_of_the_same_example_and_branch(shapes):
    examples = [rendered(trunk, tuple(branches)) for trunk, branches in shapes]
    planes = Planes.empty(1, 90)
    planes.write(0, examples, prompt_tokens=2)
    targets, weights = planes.shifted()
    start = 0
    for example in examples:
        for branch in range(example.branch_ids.max() + 1):
            at = start + np.flatnonzero(example.branch_ids == branch)
            assert targets[0, at].tolist() == [*planes.tokens[0, at[1:]], 0]
            assert weights[0, at].tolist() == [1.0] * (len(at) - 1) + [0.0]
        start += example.length
    assert not targets[0, start:].any()
    assert not weights[0, start:].any()


def test_an_erased_example_is_padding_and_its_neighbours_stay():
    examples = [rendered(5, (2,), pictures=1), rendered(4, (3,), pictures=1), rendered(6)]
    planes, alone = Planes.empty(1, 24, pad_id=7), Planes.empty(1, 24, pad_id=7)
    for each in (planes, alone):
        each.write(0, examples, prompt_tokens=2)
    planes.erase(0, 1, pad_id=7)
    gone = slice(7, 14)
    empty = Planes.empty(1, 24, pad_id=7)
    for name in (
        "tokens",
        "loss",
        "segment_ids",
        "branch_ids",
        "block_ids",
        "positions",
        "visual_index",
        "example_index",
    ):
        plane, before = getattr(planes, name)[0], getattr(alone, name)[0]
        assert plane[gone].tolist() == getattr(empty, name)[0, gone].tolist()
        assert np.delete(plane, np.r_[gone]).tolist() == np.delete(before, np.r_[gone]).tolist()
    _, weights = planes.shifted()
    assert weights[0, 6:14].tolist() == [0.0] * 8


def test_places_that_do_not_match_the_pictures_name_the_example():
    wrong = rendered(6, pictures=1, prompt_tokens=3, name="easy_vqa/train/17")
    with pytest.raises(UserError, match=r"easy_vqa/train/17 of s: 3 places .* 1 pictures of 2 make 2"):
        Planes.empty(1, 20).write(0, [wrong], prompt_tokens=2)
