"""Which shards a host reads, by the rows that its devices hold, and in which order it gives them."""

import contextlib
import itertools
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from data_pipelines.loader import make_loader, merge_states, shard_rows
from data_pipelines.mixture import shards_of_places
from data_pipelines.quarantine import Quarantine, join_files
from vlm_jax.errors import UserError


def sizes(rows, shards):
    return SimpleNamespace(rows=rows, virtual_shards=shards)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_rows_lie_shard_by_shard_so_hosts_hold_whole_shards(hosts):
    data = sizes(24, 4)
    order = shard_rows(data, range(4))
    assert sorted(order) == list(range(24))
    share = 24 // hosts
    for host in range(hosts):
        places = range(host * share, (host + 1) * share)
        shards = shards_of_places(data, places, hosts)
        assert len(shards) == 4 // hosts
        np.testing.assert_array_equal(order[list(places)], shard_rows(data, shards))
        assert {row % 4 for row in order[list(places)]} == set(shards)


def test_places_need_not_be_neighbours():
    assert shards_of_places(sizes(8, 4), [6, 7, 2, 3], 2) == [1, 3]


@pytest.mark.parametrize(("shards", "places", "needed"), [(1, range(4), 2), (2, range(2), 4), (4, [0, 1, 2, 5], 8)])
def test_a_part_of_a_shard_is_an_error_that_says_what_would_do(shards, places, needed):
    with pytest.raises(UserError, match=rf"cannot share data\.virtual_shards = {shards}.* a multiple of {needed} "):
        shards_of_places(sizes(8, shards), places, 2)


def test_a_host_reads_the_shards_it_is_told_to(tiny, processor):
    stage = tiny(rows=8, virtual_shards=4)
    whole = list(itertools.islice(make_loader(stage, processor, seed=1), 5))
    hosts = ([0, 2], [1], [3])
    loaders = [make_loader(stage, processor, seed=1, shards=shards) for shards in hosts]
    for batch, info in whole:
        for shards, loader in zip(hosts, loaders, strict=True):
            rows = shard_rows(stage.data, shards)
            local, local_info = next(loader)
            for a, b in zip(jax.tree.leaves(local), jax.tree.leaves(batch), strict=True):
                np.testing.assert_array_equal(a, b[rows])
            assert local_info.example_ids == tuple(info.example_ids[row] for row in rows)
    state = merge_states([json.loads(json.dumps(loader.get_state())) for loader in loaders])
    assert loaders[1].info_at(state, {}, info.example_ids) == info
    with contextlib.closing(make_loader(stage, processor, seed=1)) as resumed:
        resumed.set_state(state)
        assert next(resumed)[1] == list(itertools.islice(make_loader(stage, processor, seed=1), 6))[5][1]
    for loader in loaders:
        loader.close()


def test_shards_that_are_used_up_go_on_as_padding(tiny, processor):
    stage = tiny(tiny.Entry(tiny.Source(records=30), tiny.Kind(), max_epochs=1.0), virtual_shards=2)
    whole = list(make_loader(stage, processor, seed=1))
    with contextlib.closing(make_loader(stage, processor, seed=1, shards=[1])) as loader:
        assert loader.finite
        rows = shard_rows(stage.data, [1])
        for batch, _ in whole:
            np.testing.assert_array_equal(next(loader)[0].tokens, batch.tokens[rows])
        for _ in range(3):
            batch, info = next(loader)
            assert not any(info.example_ids)
            assert not batch.segment_ids.any()
            assert not batch.loss_weights.any()
    with contextlib.closing(make_loader(tiny(), processor, seed=1)) as endless:
        assert not endless.finite


def test_accounts_of_several_processes_become_one(tmp_path):
    first, second = tmp_path / "quarantine.jsonl", tmp_path / "quarantine-1.jsonl"
    Quarantine(first).add("photos", "1", "torn")
    one, other = Quarantine(first), Quarantine(second, known=first)
    one.add("photos", "2", "no picture")
    other.add("photos", "1", "torn")  # known: not written again
    other.add("photos", "3", "empty")
    other.add("texts", "1", "empty")
    assert (one.known_counts(), one.new_counts()) == ({"photos": 1}, {"photos": 1})
    assert (other.known_counts(), other.new_counts()) == ({"photos": 1}, {"photos": 1, "texts": 1})
    with second.open("a") as file:
        file.write('{"source": "texts", "id"')  # a kill
    join_files(first, [second])
    assert not second.exists()
    lines = [json.loads(line) for line in first.read_text().splitlines()]
    assert [(line["source"], line["id"]) for line in lines] == [
        ("photos", "1"),
        ("photos", "2"),
        ("photos", "3"),
        ("texts", "1"),
    ]
    join_files(first, [])
    assert Quarantine(first).counts() == {"photos": 3, "texts": 1}
