"""Shards and the batches made of them, where examples are split, cut, capped or labelled."""

import collections
import contextlib
import itertools
import json
import math

import numpy as np
import pytest

from data_pipelines.examples import Image
from data_pipelines.images import Augmentation
from data_pipelines.kinds import Interleaved, Preference, TextOnly
from data_pipelines.loader import host_rows, make_loader, merge_states
from data_pipelines.mixture import KindShare, MixtureEntry
from data_pipelines.quarantine import Quarantine
from data_pipelines.shard import Shard, records_used
from vlm_jax.batch import Batch
from vlm_jax.errors import UserError


class Pages:
    """Documents of 1 to 180 words with a picture after every 21; its own config, like the tiny source."""

    def __init__(self, picture, name="pages", records=20, least=1, most=60):
        self._picture, self.name, self._records, self._least, self._most = picture, name, records, least, most

    def __len__(self):
        return self._records

    def __getitem__(self, index):
        texts = [f"question {index} about"] * (self._least + index * 17 % self._most)
        segments = []
        for start in range(0, len(texts), 7):
            segments += [{"text": " ".join(texts[start : start + 7])}, {"image": self._picture(index, start)}]
        return {"id": f"{self.name}/{index}", "segments": segments, "text": " ".join(texts)}


class Pairs:
    """Preference records with one picture."""

    name = "pairs"

    def __init__(self, picture, bad=()):
        self._picture, self._bad = picture, bad

    def __len__(self):
        return 12

    def __getitem__(self, index):
        picture = Image(data=b"none") if index in self._bad else self._picture(index)
        return {
            "id": f"pairs/{index}",
            "image": picture,
            "prompt": f"question {index}?",
            "chosen": "да",
            "rejected": "no",
        }


@pytest.fixture
def pages(tiny):
    return lambda kind=None, source=None, **fields: MixtureEntry(
        source or Pages(tiny.picture), kind or Interleaved(), **fields
    )


def shard_of(stage, processor, rejected=None, v=0):
    sources = [entry.source for entry in stage.data.mixture]
    return Shard(stage.data, sources, processor, 5, v, [] if rejected is None else rejected)


def batches(stage, processor, count=None, state=None, **options):
    with contextlib.closing(make_loader(stage, processor, **({"seed": 5} | options))) as loader:
        if state is not None:
            loader.set_state(json.loads(json.dumps(state)))
        return list(itertools.islice(loader, count)), loader.get_state()


def row_ids(row):
    return [item.rendered.id for item in row]


def test_pieces_of_a_split_document_are_all_placed_once(tiny, processor, pages):
    stage = tiny(pages(max_epochs=1.0), length=64, images=3, rows=1)
    shard = shard_of(stage, processor)
    placed = collections.Counter(i for row in iter(shard.next_row, []) for i in row_ids(row))
    assert set(placed.values()) == {1}
    pieces = collections.Counter(name.partition("#")[0] for name in placed)
    assert set(pieces) == {f"pages/{n}" for n in range(20)}
    assert max(pieces.values()) > 3
    for name, count in pieces.items():
        numbered = {name, *(f"{name}#{n}" for n in range(2, count + 1))}
        assert {i for i in placed if i.partition("#")[0] == name} == numbered
    assert records_used(shard.get_state()) == [20]


@pytest.mark.parametrize("at", [0, 1, 5, 17])
def test_a_state_with_pieces_waiting_continues_exactly(tiny, processor, pages, at):
    stage = tiny(pages(), tiny.Source(), length=64, images=3, rows=2, virtual_shards=2)
    straight, resumed = (shard_of(stage, processor, v=1) for _ in range(2))
    for _ in range(at):
        straight.next_row()
    state = json.loads(json.dumps(straight.get_state()))
    resumed.set_state(state)
    assert resumed.get_state() == state
    assert at == 0 or any(piece for _, _, piece in state["pending"])
    for _ in range(30):
        row, again = straight.next_row(), resumed.next_row()
        assert row_ids(row) == row_ids(again)
        assert [item.picture_seed for item in row] == [item.picture_seed for item in again]
        assert all(
            np.array_equal(a.rendered.tokens, b.rendered.tokens) and a.rendered.images == b.rendered.images
            for a, b in zip(row, again, strict=True)
        )
    assert straight.get_state() == resumed.get_state()


def test_a_waiting_piece_that_is_gone_is_an_error(tiny, processor, pages):
    shard = shard_of(tiny(pages(), length=64, images=3, rows=1), processor)
    shard.next_row()
    state = shard.get_state()
    assert any(piece for _, _, piece in state["pending"])
    source = Pages(tiny.picture, most=5)
    other = shard_of(tiny(pages(source=source), length=64, images=3, rows=1), processor)
    with pytest.raises(UserError, match=r"record \d+ of pages is no longer usable \(its piece \d+ is not there\)"):
        other.set_state(state)


def test_cut_positions_are_counted_in_the_batch_info(tiny, processor, pages):
    cut, split = (pages(TextOnly(when_long=w), Pages(tiny.picture, name=w), max_epochs=1.0) for w in ("cut", "split"))
    got, _ = batches(tiny(cut, split, length=64, images=0, rows=2), processor)
    info = got[-1][1]
    lengths = [1 + len(processor.tokenizer.encode(cut.source[n]["text"])) + 1 for n in range(20)]
    assert info.cut == {"cut": sum(max(0, length - 64) for length in lengths)}
    assert info.examples_seen["cut"] == 20
    assert info.examples_seen["split"] == sum(math.ceil((length - 1) / 63) for length in lengths)
    assert info.epochs_seen == {"cut": 1.0, "split": 1.0}


@pytest.mark.parametrize("hosts", [1, 2])
def test_capped_data_end_with_every_example_given_once(tiny, processor, pages, hosts):
    """Shards have unlike numbers of rows, so the last batches hold rows of padding."""
    entries = (pages(max_epochs=1.0), tiny.Entry(tiny.Source(records=31), tiny.Kind(), max_epochs=2.0))
    stage = tiny(*entries, virtual_shards=2)
    parts = [batches(stage, processor, host=host, hosts=hosts)[0] for host in range(hosts)]
    used = collections.Counter(i for part in parts for _, info in part for row in info.example_ids for i in row)
    whole = {name: n for name, n in used.items() if "#" not in name}
    assert whole == {f"pages/{n}": 1 for n in range(20)} | {f"tiny/{n}": 2 for n in range(31)}
    empty = [
        (batch, row) for part in parts for batch, info in part for row, ids in enumerate(info.example_ids) if not ids
    ]
    assert hosts == 2 or empty
    for batch, row in empty:
        assert not batch.segment_ids[row].any()
        assert not batch.loss_weights[row].any()
        assert (batch.source_ids[row] == -1).all()


def test_a_run_of_everything_goes_on_exactly_on_another_number_of_hosts(tiny, processor, pages):
    """Split pages, pairs, a schedule and a cap that is reached on the way."""
    entries = (
        pages(schedule=((0, 1.0), (4, 3.0))),
        MixtureEntry(Pairs(tiny.picture), Preference(), augmentation=Augmentation(noise=9.0)),
        tiny.Entry(tiny.Source(), tiny.Kind(), max_epochs=1.0, weight=2.0),
    )
    stage = tiny(*entries, rows=8, virtual_shards=4, temperature=2.0)
    whole, _ = batches(stage, processor, 14)
    assert 0 < whole[2][1].epochs_seen["tiny"] < whole[-1][1].epochs_seen["tiny"] == 1.0
    state = merge_states([batches(stage, processor, 3, host=host, hosts=2)[1] for host in range(2)])
    for hosts in (1, 4):
        for host in range(hosts):
            rest, _ = batches(stage, processor, 11, state=state, host=host, hosts=hosts)
            rows = host_rows(stage.data, host, hosts)
            for (batch, info), (expected, all_info) in zip(rest, whole[3:], strict=True):
                assert info.example_ids == tuple(all_info.example_ids[row] for row in rows)
                for name, plane in vars(expected).items():
                    if plane is not None:
                        np.testing.assert_array_equal(getattr(batch, name), plane[rows], err_msg=name)


def test_the_end_can_be_resumed_across_and_stays_the_end(tiny, processor):
    stage = tiny(tiny.Entry(tiny.Source(records=30), tiny.Kind(), max_epochs=1.0), virtual_shards=2)
    whole, end = batches(stage, processor)
    _, middle = batches(stage, processor, len(whole) - 2)
    rest, other_end = batches(stage, processor, state=middle)
    assert [info.example_ids for _, info in rest] == [info.example_ids for _, info in whole[-2:]]
    assert other_end == end
    assert batches(stage, processor, state=end) == ([], end)


def test_a_piece_with_a_bad_picture_is_padding_and_its_record_is_quarantined_once(tiny, processor, pages):
    source = Pages(lambda index, start: tiny.picture(index, bad=index == 3 and start >= 14), least=50, records=6)
    quarantine = Quarantine(limit=1.0)
    got, _ = batches(tiny(pages(source=source, max_epochs=1.0), length=64), processor, quarantine=quarantine)
    assert list(quarantine.reasons()) == [("pages", "pages/3")]
    kept = collections.Counter(
        name.partition("#")[0]
        for batch, info in got
        for row, ids in enumerate(info.example_ids)
        for number, name in enumerate(ids)
        if (batch.segment_ids[row] == number + 1).any()
    )
    assert set(kept) == {f"pages/{n}" for n in range(6)}
    assert kept["pages/3"] < kept["pages/2"]


def test_records_rejected_at_the_very_end_are_quarantined_too(tiny, processor):
    source = tiny.Source(records=6, pictures=0, bad_records=(0, 1, 2, 3, 4))
    quarantine = Quarantine(limit=1.0)
    stage = tiny(tiny.Entry(source, tiny.Kind(), max_epochs=1.0), rows=1, window=1)
    got, _ = batches(stage, processor, quarantine=quarantine)
    assert [info.example_ids for _, info in got] == [(("tiny/5",),)]
    assert quarantine.counts() == {"tiny": 5}


def test_labelled_branches_are_paired_entries(tiny, processor):
    """Beside ordinary examples; loss of each entry falls on its own answer."""
    pairs = MixtureEntry(Pairs(tiny.picture), Preference())
    stage = tiny(pairs, tiny.Source(), examples=6)
    got, _ = batches(stage, processor, 6)
    spec = Batch.spec(4, 160, images=4, image_size=processor.image_size, examples=6, preference=True)
    seen = 0
    for batch, info in got:
        assert {name: (v.shape, v.dtype) for name, v in vars(batch).items() if v is not None} == {
            name: (v.shape, v.dtype) for name, v in vars(spec).items() if v is not None
        }
        for row, ids in enumerate(info.example_ids):
            entry = 0
            for number, name in enumerate(ids):
                count = 2 if name.startswith("pairs") else 1
                own = slice(entry, entry + count)
                assert batch.source_ids[row, own].tolist() == [0 if count == 2 else 1] * count
                assert batch.labels[row, own].tolist() == ([1.0, 0.0] if count == 2 else [-1.0])
                assert batch.pair_ids[row, own].tolist() == ([number] * 2 if count == 2 else [-1])
                at = batch.segment_ids[row] == number + 1
                assert set(batch.example_index[row, at]) == set(range(entry, entry + count))
                if count == 2:
                    seen += 1
                    for branch, answer in ((1, "да"), (2, "no")):
                        learned = at & (batch.example_index[row] == entry + branch - 1) & (batch.loss_weights[row] > 0)
                        ids_of = [int(t) for t in batch.targets[row, learned]]
                        assert processor.tokenizer.decode(ids_of).strip() == answer
                        assert set(batch.branch_ids[row, learned]) == {branch}
                entry += count
            unused = slice(entry, None)
            assert (batch.source_ids[row, unused] == -1).all()
            assert (batch.pair_ids[row, unused] == -1).all()
            assert (batch.labels[row, unused] == -1).all()
    assert seen > 10


def test_a_pair_with_a_bad_picture_leaves_no_entry(tiny, processor):
    good, bad = (tiny(MixtureEntry(Pairs(tiny.picture, bad), Preference())) for bad in ((), (4,)))
    expected, _ = batches(good, processor, 3)
    got, _ = batches(bad, processor, 3, quarantine=Quarantine(limit=1.0))
    met = 0
    for (batch, info), (whole, _) in zip(got, expected, strict=True):
        for row, ids in enumerate(info.example_ids):
            for number, name in enumerate(ids):
                own, gone = slice(2 * number, 2 * number + 2), name == "pairs/4"
                met += gone
                for field in ("source_ids", "pair_ids", "labels"):
                    values = getattr(batch, field)[row, own].tolist()
                    assert values == ([-1, -1] if gone else getattr(whole, field)[row, own].tolist())
    assert met


def test_more_answers_than_entries_are_quarantined_by_name(tiny, processor):
    stage = tiny(MixtureEntry(Pairs(tiny.picture), Preference()), tiny.Source(), examples=1)
    quarantine = Quarantine(limit=1.0)
    batches(stage, processor, 3, quarantine=quarantine)
    reasons = {reason for (source, _), reason in quarantine.reasons().items() if source == "pairs"}
    assert reasons == {"2 labelled branches, but a row has 1 entries: raise data.examples"}


def test_shares_of_kinds_and_schedules_hold_in_the_batches(tiny, processor, pages):
    text = pages(TextOnly(), Pages(tiny.picture, most=4, name="text"), weight=7.0)
    late = pages(TextOnly(), Pages(tiny.picture, most=4, name="late"), schedule=((0, 0.0), (4, 0.0), (5, 7.0)))
    stage = tiny(tiny.Source(), text, late, kinds=(KindShare("text_only", 0.25),), rows=8, virtual_shards=2)
    got, _ = batches(stage, processor, 40)
    for step, (_, info) in enumerate(got):
        if step < 4:
            assert info.examples_seen["late"] == 0
    seen = got[-1][1].examples_seen
    assert (seen["text"] + seen["late"]) / sum(seen.values()) == pytest.approx(0.25, abs=0.03)
    assert seen["late"] / (seen["text"] + seen["late"]) == pytest.approx(0.5 * 35 / 40, abs=0.07)


@pytest.mark.parametrize(
    "fields", [{"temperature": 2.0}, {"kinds": (KindShare("tiny", 1.0),)}, {"weight": 2.0}, {"max_epochs": 9.0}]
)
def test_a_changed_mixture_is_refused_on_resume(tiny, processor, fields):
    entry = {name: fields.pop(name) for name in ("weight", "max_epochs") if name in fields}
    _, state = batches(tiny(), processor, 1)
    changed = tiny(tiny.Entry(tiny.Source(), tiny.Kind(), **entry), **fields)
    with pytest.raises(UserError, match="the saved data position was taken with"):
        batches(changed, processor, 1, state=state)


def test_pieces_of_one_document_are_augmented_each_by_its_own_chance(tiny, processor, pages):
    source = Pages(lambda index, k: tiny.picture(0), records=1, least=40)
    entry = MixtureEntry(source, Interleaved(), augmentation=Augmentation(noise=30.0), max_epochs=1.0)
    got, _ = batches(tiny(entry, rows=1, length=64, images=1), processor)
    shown = [batch.images[0, 0].tobytes() for batch, _ in got if batch.image_ids[0, 0]]
    assert len(shown) > 2
    assert len(set(shown)) == len(shown)


def test_the_state_of_many_shards_stays_small(tiny, processor):
    """At 256 shards and a window of 64, below 1 MiB."""
    names = [f"source {n}" for n in range(12)]
    entries = [tiny.Entry(tiny.Source(name=name, records=10**6, pictures=0), tiny.Kind()) for name in names]
    shard = shard_of(tiny(*entries, rows=256, virtual_shards=256, window=64), processor)
    for _ in range(3):
        shard.next_row()
    assert 256 * len(json.dumps(shard.get_state())) < 2**20
