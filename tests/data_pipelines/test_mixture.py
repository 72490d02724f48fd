import itertools

import numpy as np
import pytest

from data_pipelines.kinds import Captions, Instruct
from data_pipelines.mixture import (
    DataConfig,
    KindShare,
    MixtureEntry,
    check_mixture,
    endless_order,
    host_rows,
    host_shards,
)
from data_pipelines.sources import EasyVQA
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


@pytest.mark.parametrize("fields", [{"max_epochs": -1.0}, {"max_epochs": float("nan")}])
def test_a_cap_must_be_a_number_of_epochs(tiny, fields):
    with pytest.raises(UserError, match="s0: max_epochs is"):
        MixtureEntry(tiny.Source(name="s0"), tiny.Kind(), **fields)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (((0, 1.0), (0, 2.0)), "steps must rise"),
        (((5, 1.0), (3, 2.0)), "steps must rise"),
        (((-1, 1.0),), "steps must rise"),
        (((0, -1.0), (9, 1.0)), "weights must be 0 or positive"),
        (((0, float("nan")),), "weights must be 0 or positive"),
        (((0, 0.0), (9, 0.0)), "weights must be 0 or positive"),
    ],
)
def test_a_schedule_that_makes_no_sense(tiny, schedule, message):
    with pytest.raises(UserError, match=rf"s0: schedule .*{message}"):
        MixtureEntry(tiny.Source(name="s0"), tiny.Kind(), schedule=schedule)


def test_a_schedule_goes_in_straight_lines_and_stays_at_its_ends(tiny):
    entry = MixtureEntry(tiny.Source(), tiny.Kind(), weight=9.0, schedule=((10, 1.0), (20, 0.0), (24, 2.0)))
    weights = [entry.weight_at(step) for step in (0, 10, 15, 20, 21, 24, 10**9)]
    assert weights == [1.0, 1.0, 0.5, 0.0, 0.5, 2.0, 2.0]
    assert MixtureEntry(tiny.Source(), tiny.Kind(), weight=3.0).weight_at(7) == 3.0


def test_something_must_be_drawn_at_every_step(tiny):
    first, second = (((0, 1.0), (5, 0.0)), ((5, 0.0), (9, 1.0)))
    entries = [
        MixtureEntry(tiny.Source(name=name), tiny.Kind(), schedule=schedule)
        for name, schedule in (("a", first), ("b", second))
    ]
    with pytest.raises(UserError, match="weight 0 at step 5"):
        check_mixture(entries)
    check_mixture([*entries, MixtureEntry(tiny.Source(name="c"), tiny.Kind())])


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ((("captions", 0.5), ("captions", 0.2)), "name each kind once"),
        ((("text_only", 0.5),), "only kinds that the mixture has: captions, instruct"),
        ((("captions", 1.0),), "less than 1, and leave the rest to instruct"),
        ((("captions", 0.6), ("instruct", 0.6)), r"make 1\.2; .* exactly 1"),
        ((("captions", -0.5),), "each must be positive"),
    ],
)
def test_shares_of_kinds_that_make_no_sense(kinds, message):
    mixture = tuple(MixtureEntry(EasyVQA(name=kind.kind), kind) for kind in (Captions(), Instruct()))
    with pytest.raises(UserError, match=message):
        DataConfig(mixture, rows=1, length=64, images=1, kinds=tuple(itertools.starmap(KindShare, kinds)))


@pytest.mark.parametrize("small", [1, 1 << 16])
@pytest.mark.parametrize("numbers", [range(3, 100, 4), range(1)])
def test_an_endless_order_has_each_number_once_an_epoch_in_a_fresh_order(monkeypatch, small, numbers):
    monkeypatch.setattr("data_pipelines.mixture._SMALL", small)
    order, again = (endless_order(numbers, (5, 1)) for _ in range(2))
    epochs = [[order[epoch * len(numbers) + i] for i in range(len(numbers))] for epoch in range(3)]
    assert all(sorted(epoch) == list(numbers) for epoch in epochs)
    assert len(numbers) == 1 or len(set(map(tuple, epochs))) == 3
    at = list(reversed(range(3 * len(numbers))))
    assert [again[i] for i in at] == [epochs[i // len(numbers)][i % len(numbers)] for i in at]
    assert len(numbers) == 1 or [endless_order(numbers, (5, 2))[i] for i in range(len(numbers))] != epochs[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 0}, r"data\.rows is 0"),
        ({"length": 1}, r"data\.length is 1"),
        ({"images": -1}, r"data\.images is -1"),
        ({"temperature": -1.0}, r"data\.temperature is -1\.0"),
        ({"temperature": 0.01}, r"data\.temperature is 0\.01: give 0\.1 or more"),
        ({"virtual_shards": 3}, r"data\.rows = 4 is not a multiple of data\.virtual_shards = 3"),
    ],
)
def test_sizes_that_make_no_sense_are_named(tiny, fields, message):
    with pytest.raises(UserError, match=message):
        tiny(**fields)


def test_default_number_of_examples(tiny):
    mixture = entries(tiny, 1.0)
    assert DataConfig(mixture, rows=1, length=64, images=5).budget.entries == 5
    assert DataConfig(mixture, rows=1, length=64, images=0).budget.entries == 4
    assert DataConfig(mixture, rows=1, length=160, images=5).budget.entries == 10
    assert DataConfig(mixture, rows=1, length=64, images=5, examples=9).budget.entries == 9


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
