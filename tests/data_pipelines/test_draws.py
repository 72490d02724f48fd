import collections
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.draws import ShardDraws
from data_pipelines.kinds import Instruct
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.sources import EasyVQA
from vlm_jax.errors import UserError


def make(entries, shard=0, shards=1, seed=0, **fields):
    """The draws of a shard; entries are (weight, records, other fields)."""
    mixture = tuple(
        MixtureEntry(EasyVQA(name=f"s{i}"), Instruct(), weight=weight, **own)
        for i, (weight, _, own) in enumerate(entries)
    )
    data = DataConfig(mixture, rows=shards, length=64, images=1, virtual_shards=shards, **fields)
    return ShardDraws(data, [size for _, size, _ in entries], seed, shard)


def taken(draws, count, step=0):
    return [draws.next(step) for _ in range(count)]


def records(draws, count=10**6):
    """(entry, record) of so many draws, or of all there are."""
    found = []
    while len(found) < count and (draw := draws.next(0)) is not None:
        found.append((draw.entry, draws.record(draw)))
    return found


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=12), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_an_entry_stays_within_two_draws_of_its_share_at_any_time(weights, seed):
    draws = make([(weight, 100, {}) for weight in weights], seed=seed)
    shares, counts = np.array(weights) / sum(weights), np.zeros(len(weights))
    for number in range(1, 301):
        counts[draws.next(0).entry] += 1
        assert np.abs(counts - number * shares).max() < 2


def test_a_single_weight_gives_an_even_interleave():
    """A third and two thirds: any three draws in a row hold one of the first."""
    entries = [draw.entry for draw in taken(make([(1.0, 50, {}), (2.0, 50, {})]), 90)]
    assert all(sorted(entries[i : i + 3]) == [0, 1, 1] for i in range(88))


def test_a_rare_source_is_not_drawn_by_all_shards_at_once():
    entries = [(0.99, 4000, {}), (0.01, 4000, {})]
    firsts = [[draw.entry for draw in taken(make(entries, shard, 40), 200)].index(1) for shard in range(40)]
    assert min(firsts) < 20
    assert max(firsts) > 80
    assert max(collections.Counter(firsts).values()) <= 4


def test_an_epoch_of_all_shards_is_every_record_once_in_a_fresh_order():
    size, shards = 23, 4
    orders = collections.defaultdict(list)
    for shard in range(shards):
        draws = make([(1.0, size, {})], shard, shards, seed=3)
        own = len(range(shard, size, shards))
        for epoch in range(2):
            orders[epoch] += [record for _, record in records(draws, own)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(size))
    assert orders[0] != orders[1]


@pytest.mark.parametrize("epochs", [1.0, 2.0, 0.4, 2.3, 0.01])
def test_capped_entries_are_drawn_exactly_so_often_and_then_the_draws_end(epochs):
    shards, sizes = 3, (31, 10)
    counts = collections.Counter()
    for shard in range(shards):
        draws = make([(5.0, sizes[0], {"max_epochs": epochs}), (1.0, sizes[1], {"max_epochs": 1.0})], shard, shards)
        counts.update(records(draws))
        assert draws.next(0) is None
    first = collections.Counter({record: n for (entry, record), n in counts.items() if entry == 0})
    assert first.total() == round(epochs * sizes[0])
    assert {first[record] for record in range(sizes[0])} <= {int(epochs), int(epochs) + 1}
    assert [counts[1, record] for record in range(sizes[1])] == [1] * sizes[1]


def test_when_an_entry_drops_out_the_others_share_by_weight():
    draws = make([(8.0, 20, {"max_epochs": 1.0}), (1.0, 30, {}), (3.0, 30, {})])
    entries = [draw.entry for draw in taken(draws, 430)]
    assert entries.count(0) == 20
    assert 0 not in entries[30:]
    assert entries[30:].count(2) == pytest.approx(300, abs=2)


def test_weights_are_those_of_the_step():
    moving = [(1.0, 50, {"schedule": ((0, 1.0), (10, 0.0))}), (1.0, 50, {"schedule": ((0, 0.0), (10, 1.0))})]
    draws = make(moving)
    assert {draw.entry for draw in taken(draws, 20, step=0)} == {0}
    half = [draw.entry for draw in taken(draws, 100, step=5)]
    assert half.count(0) == pytest.approx(50, abs=2)
    assert {draw.entry for draw in taken(draws, 20, step=10)} == {1}
    assert {draw.entry for draw in taken(draws, 20, step=10**6)} == {1}


def test_an_entry_that_pauses_comes_back_where_it_was():
    pausing = make([(1.0, 9, {"schedule": ((0, 1.0), (1, 0.0), (2, 1.0))}), (1.0, 9, {})])
    order = [pausing.record(draw) for draw in taken(pausing, 6, 0) if draw.entry == 0]
    assert {draw.entry for draw in taken(pausing, 4, 1)} == {1}
    order += [pausing.record(draw) for draw in taken(pausing, 40, 2) if draw.entry == 0]
    assert sorted(order[:9]) == list(range(9))


def test_order_depends_on_the_seed_and_another_entry_does_not_disturb_it_nor_its_chance():
    def first_entry(entries, seed):
        draws = make(entries, seed=seed)
        own = [draw for draw in taken(draws, 60) if draw.entry == 0][:25]
        return [(draws.record(draw), draws.kind_seed(draw), draws.picture_seed(draw, 0)) for draw in own]

    one, two = [(1.0, 30, {})], [(1.0, 30, {})] * 2
    assert first_entry(one, 1) != first_entry(one, 2)
    assert first_entry(one, 1) == first_entry(two, 1)


def test_shards_have_orders_of_their_own():
    orders = [[record // 2 for _, record in records(make([(1.0, 80, {})], shard, 2), 40)] for shard in range(2)]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_no_two_draws_or_pieces_share_a_seed():
    seeds = set()
    for shard in range(2):
        draws = make([(1.0, 30, {}), (2.0, 30, {})], shard, 2)
        for draw in taken(draws, 50):
            seeds |= {draws.kind_seed(draw), draws.picture_seed(draw, 0), draws.picture_seed(draw, 1)}
    assert len({tuple(np.random.SeedSequence(seed).generate_state(4)) for seed in seeds}) == 2 * 50 * 3


@given(st.integers(0, 200))
@settings(max_examples=20, deadline=None)
def test_a_state_through_json_continues_exactly(at):
    entries = [(0.7, 30, {"max_epochs": 3.0}), (0.21, 50, {"schedule": ((0, 1.0), (9, 0.1))}), (1 / 3, 40, {})]

    def step(number):
        return number // 20

    straight = make(entries)
    expected = [straight.next(step(number)) for number in range(300)]
    first, second = make(entries), make(entries)
    for number in range(at):
        first.next(step(number))
    second.set_state(json.loads(json.dumps(first.get_state())))
    assert [second.next(step(number)) for number in range(at, 300)] == expected[at:]


def test_a_source_smaller_than_the_shards_is_an_error():
    with pytest.raises(UserError, match="s0 has 3 records, too few for 4 virtual shards"):
        make([(1.0, 3, {})], 0, 4)
