import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.examples import Image
from data_pipelines.packing import Budget, Packer, Planes, Size, best_subset
from data_pipelines.template import Rendered
from data_pipelines.tiles import Cut
from vlm_jax.errors import UserError

sizes = st.builds(Size, st.integers(1, 30), st.integers(0, 3), st.integers(1, 2))
budgets = st.builds(Budget, st.integers(0, 60), st.integers(0, 5), st.integers(0, 5))


def test_what_can_never_stand_in_a_row_names_the_setting():
    budget = Budget(10, 2, 1)
    assert budget.misfit(Size(10, 2, 1)) is None
    assert "raise the stage's data.length" in budget.misfit(Size(11, 0))
    assert "raise the stage's data.images" in budget.misfit(Size(5, 3))
    assert "2 labelled branches, but a row has 1 entries: raise data.examples" in budget.misfit(Size(5, 0, 2))


class Thing:
    def __init__(self, number, size):
        self.number, self.size = number, size


def filled(chosen, sizes):
    return sum(sizes[i].length for i in chosen)


def shown(chosen, sizes):
    return sum(sizes[i].images for i in chosen)


def allowed(chosen, sizes, budget):
    return (
        filled(chosen, sizes) <= budget.length
        and sum(sizes[i].images for i in chosen) <= budget.images
        and sum(sizes[i].entries for i in chosen) <= budget.entries
    )


@given(st.lists(sizes, max_size=8), budgets)
@settings(max_examples=200, deadline=None)
def test_best_subset_is_the_best_there_is(sizes, budget):
    """The fullest, and of these the one with the most pictures."""
    every = itertools.chain.from_iterable(itertools.combinations(range(len(sizes)), k) for k in range(len(sizes) + 1))
    best = max((filled(subset, sizes), shown(subset, sizes)) for subset in every if allowed(subset, sizes, budget))
    chosen = best_subset(sizes, budget)
    assert chosen == sorted(set(chosen))
    assert allowed(chosen, sizes, budget)
    assert (filled(chosen, sizes), shown(chosen, sizes)) == best


def test_best_subset_prefers_early_items():
    assert best_subset([Size(5, 0), Size(5, 0), Size(5, 0)], Budget(10, 0, 9)) == [0, 1]
    assert best_subset([Size(5, 1), Size(5, 0), Size(5, 1), Size(5, 1)], Budget(10, 9, 9)) == [0, 2]


def test_rows_stay_full_where_pictures_are_many_and_pages_take_whole_rows():
    """Half the slots are used, but a page of 512 uses none: pictures must go with the shorter texts."""
    rng = np.random.default_rng(0)

    def draw():
        if rng.random() < 0.7:
            return [Thing(0, Size(int(rng.integers(30, 60)), 1))]
        length = int(rng.lognormal(5.8, 0.9))
        return [Thing(0, Size(min(512, length - start), 0)) for start in range(0, length, 512)]

    pack = Packer(draw, Budget(512, 4, 64), 64)
    rows = [pack.next_row() for _ in range(400)]
    assert np.mean([sum(item.size.length for item in row) / 512 for row in rows]) > 0.985


BUDGET = Budget(64, 6, 8)


def drawn(seed, number, unusable=0.1, split=0.2):
    """Item `number` of a sequence: none of it, one, or several pieces."""
    rng = np.random.default_rng((seed, number))
    chance = rng.random()
    pieces = 0 if chance < unusable else int(rng.integers(2, 30)) if chance < unusable + split else 1
    return [
        Thing((number, piece), Size(int(rng.integers(1, 65)), int(rng.integers(0, 7)), int(rng.integers(1, 3))))
        for piece in range(pieces)
    ]


def packer(seed, window=16, end=None):
    """A packer of that sequence, and the function that says what was drawn so far."""
    numbers = itertools.count() if end is None else iter(range(end))
    all_drawn = []

    def draw():
        number = next(numbers, None)
        if number is None:
            return None
        all_drawn.extend(drawn(seed, number))
        return drawn(seed, number)

    return Packer(draw, BUDGET, window), all_drawn


@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_every_item_is_placed_once_within_the_budget_and_none_starves(seed, window, rows):
    pack, all_drawn = packer(seed, window)
    placed = []
    for row in range(rows):
        items = pack.next_row()
        assert sum(item.size.length for item in items) <= BUDGET.length
        assert sum(item.size.images for item in items) <= BUDGET.images
        assert 1 <= sum(item.size.entries for item in items) <= BUDGET.entries
        placed += [item.number for item in items]
        assert {item.number for item in all_drawn[: row + 1]} <= set(placed), "each row takes the oldest"
    assert len(set(placed)) == len(placed)
    assert sorted(placed + [item.number for item in pack.pending]) == [item.number for item in all_drawn]


@given(st.integers(0, 10**6), st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_a_sequence_that_ends_is_placed_to_its_last_item(seed, end):
    pack, all_drawn = packer(seed, end=end)
    rows = list(itertools.takewhile(bool, (pack.next_row() for _ in itertools.count())))
    assert sorted(item.number for row in rows for item in row) == [item.number for item in all_drawn]
    assert pack.next_row() == []


def test_rows_are_filled_where_first_fit_is_not():
    rng = np.random.default_rng(0)
    lengths = rng.integers(80, 260, 5000)
    numbers = itertools.count()
    pack = Packer(lambda: [Thing(0, Size(int(lengths[next(numbers)]), 1))], Budget(512, 8, 8), 64)
    share = np.mean([sum(item.size.length for item in pack.next_row()) / 512 for _ in range(500)])
    assert share > 0.98


def rendered(trunk, branches=(), pictures=0, prompt_tokens=2, name="x", labels=()):
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
        pictures=block - 1,
        images=tuple(Image(data=b"x") for _ in range(pictures)),
        cuts=(Cut(),) * pictures,
        id=name,
        source="s",
        labels=labels,
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


def test_labelled_branches_are_entries_of_their_own():
    planes = Planes.empty(1, 20)
    pair = rendered(3, (2, 3), labels=(1.0, 0.0))
    planes.write(0, [rendered(2, (1, 1)), pair, rendered(2)], prompt_tokens=2)
    assert planes.segment_ids[0].tolist() == [1] * 4 + [2] * 8 + [3] * 2 + [0] * 6
    assert planes.example_index[0].tolist() == [0] * 4 + [1] * 5 + [2] * 3 + [3] * 2 + [0] * 6
    assert [example.entries for example in (rendered(2, (1, 1)), pair)] == [1, 2]


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
