import collections

import numpy as np
import pytest

from data_pipelines.mixture import DataConfig, MixtureEntry, ShardDraws, check_mixture, host_rows, host_shards
from vlm_jax.errors import UserError


def entries(tiny, *weights):
    return tuple(
        MixtureEntry(tiny.Source(name=f"s{i}"), tiny.Kind(), weight=weight) for i, weight in enumerate(weights)
    )


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_must_be_positive(tiny, weight):
    with pytest.raises(UserError, match="s0: weight is"):
        entries(tiny, weight)


def test_a_mixture_needs_entries_with_names_of_their_own(tiny):
    with pytest.raises(UserError, match="no entries"):
        check_mixture(())
    with pytest.raises(UserError, match="share the name s0"):
        check_mixture(entries(tiny, 1.0) * 2)
    check_mixture((*entries(tiny, 1.0), MixtureEntry(tiny.Source(name="s0"), tiny.Kind(), name="other")))


@pytest.mark.parametrize("small", [1, 1 << 16])
def test_an_epoch_of_all_shards_is_every_record_once_in_a_fresh_order(tiny, monkeypatch, small):
    monkeypatch.setattr("data_pipelines.mixture._SMALL", small)
    mixture, size, shards = entries(tiny, 1.0), 23, 4
    orders = collections.defaultdict(list)
    for shard in range(shards):
        draws = ShardDraws(mixture, [size], seed=3, shard=shard, shards=shards)
        own = len(range(shard, size, shards))
        for epoch in range(2):
            orders[epoch] += [draws[epoch * own + i].record for i in range(own)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(size))
    assert orders[0] != orders[1]


def test_weights_are_honoured_in_every_shard(tiny):
    mixture = entries(tiny, 3.0, 1.0, 0.5)
    for shard in range(2):
        draws = ShardDraws(mixture, [30, 20, 10], seed=0, shard=shard, shards=2)
        counts = collections.Counter(draws[i].entry for i in range(900))
        assert [counts[e] / 900 for e in range(3)] == pytest.approx([3 / 4.5, 1 / 4.5, 0.5 / 4.5], abs=0.01)
        assert all(draws[i].record < [30, 20, 10][draws[i].entry] for i in range(900))


def test_draws_depend_on_the_seed_and_another_entry_does_not_disturb_the_order(tiny):
    def records(mixture, seed):
        draws = ShardDraws(mixture, [30] * len(mixture), seed, 0, 1)
        return [draw.record for draw in (draws[i] for i in range(60)) if draw.entry == 0][:25]

    one, two = entries(tiny, 1.0), entries(tiny, 1.0, 1.0)
    assert records(one, 1) != records(one, 2)
    assert records(one, 1) == records(two, 1)


def test_shards_have_orders_of_their_own(tiny):
    def order(shard):
        draws = ShardDraws(entries(tiny, 1.0), [80], seed=1, shard=shard, shards=2)
        return [draws[i].record // 2 for i in range(40)]

    assert sorted(order(0)) == sorted(order(1))
    assert order(0) != order(1)


def test_a_source_smaller_than_the_shards_is_an_error(tiny):
    with pytest.raises(UserError, match="s0 has 3 records, too few for 4 virtual shards"):
        ShardDraws(entries(tiny, 1.0), [3], 0, 0, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 0}, r"data\.rows is 0"),
        ({"length": 1}, r"data\.length is 1"),
        ({"images": -1}, r"data\.images is -1"),
        ({"virtual_shards": 3}, r"data\.rows = 4 is not a multiple of data\.virtual_shards = 3"),
    ],
)
def test_sizes_that_make_no_sense_are_named(tiny, fields, message):
    with pytest.raises(UserError, match=message):
        tiny(**fields)


def test_default_number_of_examples(tiny):
    mixture = entries(tiny, 1.0)
    assert DataConfig(mixture, rows=1, length=64, images=5).budget.examples == 5
    assert DataConfig(mixture, rows=1, length=64, images=0).budget.examples == 4
    assert DataConfig(mixture, rows=1, length=64, images=5, examples=9).budget.examples == 9


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_share_out_all_rows_of_the_global_batch(tiny, hosts):
    data = tiny(rows=8, virtual_shards=4).data
    rows = [host_rows(data, host, hosts) for host in range(hosts)]
    assert sorted(np.concatenate(rows)) == list(range(8))
    for host in range(hosts):
        assert {int(row) % 4 for row in rows[host]} == set(host_shards(data, host, hosts))


@pytest.mark.parametrize(("host", "hosts"), [(0, 3), (0, 8), (2, 2)])
def test_hosts_that_cannot_share_the_shards(tiny, host, hosts):
    with pytest.raises(UserError, match=rf"host {host} of {hosts} cannot share 4 virtual shards"):
        host_shards(tiny(rows=8, virtual_shards=4).data, host, hosts)
