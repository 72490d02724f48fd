import collections
import contextlib
import json
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from data_pipelines import images as pictures
from data_pipelines.draws import Draw
from data_pipelines.images import Augmentation
from data_pipelines.loader import host_rows, make_loader, merge_states
from data_pipelines.quarantine import Quarantine
from data_pipelines.shard import STOP_AFTER
from vlm_jax.batch import Batch
from vlm_jax.errors import UserError


def take(stage, processor, batches, state=None, **options):
    """That many (Batch, BatchInfo), and the state after them."""
    with contextlib.closing(make_loader(stage, processor, **({"seed": 5} | options))) as loader:
        if state is not None:
            loader.set_state(state)
        got = [next(loader) for _ in range(batches)]
        return got, loader.get_state()


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


def test_batches_have_the_promised_shapes(tiny, processor):
    stage = tiny()
    spec = Batch.spec(4, 160, images=4, image_size=processor.image_size, examples=12)
    ((batch, _),), _ = take(stage, processor, 1)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), batch) == jax.tree.map(lambda x: (x.shape, x.dtype), spec)
    text_only = tiny(tiny.Source(pictures=0), images=0)
    ((batch, _),), _ = take(text_only, processor, 1)
    spec = Batch.spec(4, 160, examples=12)
    assert jax.tree.structure(batch) == jax.tree.structure(spec)


def test_a_packed_example_is_the_example_alone(tiny, processor):
    """Every plane of a packed example equals its rendering alone, and its image slots show its own pictures."""
    stage = tiny()
    (got, _) = take(stage, processor, 3)
    seen = 0
    for batch, info in got:
        for row, ids in enumerate(info.example_ids):
            slots = 0
            for number, example_id in enumerate(ids):
                index = int(example_id.split("/")[1])
                at = np.flatnonzero(batch.segment_ids[row] == number + 1)
                assert at.tolist() == list(range(at[0], at[0] + len(at)))
                text = processor.tokenizer.decode([int(t) for t in batch.tokens[row, at]])
                assert text.count(f" about {index}?") == 1 + index % 5 == batch.branch_ids[row, at].max()
                assert set(batch.example_index[row, at]) == {number}
                assert batch.source_ids[row, number] == 0
                count = index % 3
                visual = batch.visual_index[row, at]
                wanted = np.arange(slots * processor.prompt_tokens, (slots + count) * processor.prompt_tokens)
                assert visual[visual >= 0].tolist() == wanted.tolist()
                assert ((visual >= 0) == (batch.tokens[row, at] == processor.tokenizer.image_id)).all()
                for k in range(count):
                    assert (batch.images[row, slots + k] == (200, index, 10 * k)).all()
                    assert batch.image_ids[row, slots + k] == slots + k + 1
                    assert batch.tile_index[row, slots + k].tolist() == [0, 1, 1]
                slots += count
                seen += 1
            for unused in (batch.images, batch.image_ids, batch.tile_index):
                assert not unused[row, slots:].any()
            assert (batch.source_ids[row, len(ids) :] == -1).all()
            blocks = batch.block_ids[row]
            assert [int((blocks == b).sum()) for b in range(1, blocks.max() + 1)] == [processor.prompt_tokens] * slots
    assert seen > 10


def test_loss_falls_on_answers_alone(tiny, processor):
    ((batch, _),), _ = take(tiny(), processor, 1)
    weighted = batch.targets[batch.loss_weights > 0]
    words = processor.tokenizer.decode([int(t) for t in weighted if t != processor.tokenizer.end_id])
    assert set(words.replace("да", "").replace("no", "").split()) == set()
    ends = int((weighted == processor.tokenizer.end_id).sum())
    assert ends == sum(len(np.unique(row[row > 0])) for row in branch_numbers(batch))


def branch_numbers(batch):
    return batch.segment_ids * 1000 * (batch.branch_ids > 0) + batch.branch_ids


def test_every_record_is_used_once_an_epoch_and_epochs_are_counted(tiny, processor):
    stage = tiny(tiny.Source(records=24, long_records=(3,)), virtual_shards=2)
    quarantine = Quarantine(limit=1.0)
    with contextlib.closing(make_loader(stage, processor, seed=1, quarantine=quarantine)) as loader:
        used = collections.Counter()
        for _ in range(30):
            _, info = next(loader)
            used.update(i for row in info.example_ids for i in row)
            shards = loader.get_state()["shards"].values()
            assert info.examples_seen == {"tiny": sum(used.values())}
            drawn = sum(sum(shard["drawn"]) - len(shard["pending"]) for shard in shards)
            assert info.epochs_seen["tiny"] == pytest.approx(drawn / 24)
        for v, shard in loader.get_state()["shards"].items():
            draws = loader._shards[int(v)]._draws
            used.update(f"tiny/{draws.record(Draw(entry, count))}" for entry, count, _ in shard["pending"])
            drawn, own = sum(shard["drawn"]), range(int(v), 24, 2)
            whole, rest = divmod(drawn, len(own))
            for record in own:
                assert used[f"tiny/{record}"] in ({0} if record == 3 else {whole, whole + (rest > 0)})
    assert info.epochs_seen["tiny"] > 3
    assert info.quarantined == {"tiny": 1}


def test_mixture_weights_are_honoured(tiny, processor):
    entries = [tiny.Entry(tiny.Source(name=n, records=30), tiny.Kind(), weight=w) for n, w in (("a", 3.0), ("b", 1.0))]
    got, _ = take(tiny(*entries), processor, 25)
    batch, info = got[-1]
    assert info.sources == ("a", "b")
    total = sum(info.examples_seen.values())
    assert info.examples_seen["a"] / total == pytest.approx(0.75, abs=0.04)
    for ids, sources in zip(info.example_ids, batch.source_ids, strict=True):
        assert [info.sources[s] for s in sources[: len(ids)]] == [i.split("/")[0] for i in ids]


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_give_the_one_host_batches(tiny, processor, hosts):
    stage = tiny(rows=8, virtual_shards=4)
    whole, _ = take(stage, processor, 4)
    parts = [take(stage, processor, 4, host=h, hosts=hosts)[0] for h in range(hosts)]
    for step, (batch, info) in enumerate(whole):
        for h in range(hosts):
            rows = host_rows(stage.data, h, hosts)
            local, local_info = parts[h][step]
            assert same(local, jax.tree.map(lambda x, rows=rows: x[rows], batch))
            assert local_info.example_ids == tuple(info.example_ids[r] for r in rows)
        assert info.examples_seen["tiny"] == sum(parts[h][step][1].examples_seen["tiny"] for h in range(hosts))


def test_the_number_of_hosts_may_change_on_resume(tiny, processor):
    stage = tiny(rows=8, virtual_shards=4)
    whole, _ = take(stage, processor, 6)
    states = [take(stage, processor, 2, host=h, hosts=2)[1] for h in range(2)]
    merged = json.loads(json.dumps(merge_states(states)))
    four, _ = zip(*(take(stage, processor, 4, state=merged, host=h, hosts=4) for h in range(4)), strict=True)
    one, _ = take(stage, processor, 4, state=merged)
    for step in range(4):
        assert same(one[step][0], whole[2 + step][0])
        assert one[step][1] == whole[2 + step][1]
        for h in range(4):
            rows = host_rows(stage.data, h, 4)
            assert same(four[h][step][0], jax.tree.map(lambda x, rows=rows: x[rows], whole[2 + step][0]))
    with pytest.raises(UserError, match=r"lacks virtual shards \[2, 3\]"):
        take(stage, processor, 1, state=states[0])


def test_state_at_any_point_gives_the_same_following_batches(tiny, processor):
    entry = tiny.Entry(tiny.Source(bad_pictures=(4,)), tiny.Kind(), augmentation=Augmentation(True, True, 2, 9.0))
    stage = tiny(entry, virtual_shards=2)
    whole, _ = take(stage, processor, 9)
    with contextlib.closing(make_loader(stage, processor, seed=5)) as loader:
        states = [loader.get_state()]
        for _ in range(7):
            next(loader)
            states.append(json.loads(json.dumps(loader.get_state())))
        for at in (3, 0, 7, 6):
            loader.set_state(states[at])
            assert loader.get_state() == states[at]
            for step in (at, at + 1):
                batch, info = next(loader)
                assert same(batch, whole[step][0])
                assert info.example_ids == whole[step][1].example_ids
                assert info.examples_seen == whole[step][1].examples_seen


def test_threads_and_timing_change_nothing(tiny, processor, monkeypatch):
    entry = tiny.Entry(tiny.Source(), tiny.Kind(), augmentation=Augmentation(True, True, 2, 9.0))
    stage = tiny(entry)
    plain, _ = take(stage, processor, 4, threads=1, prefetch=0)
    decode, calls = pictures.decode, iter(range(10**6))

    def slow(image, *sizes):
        time.sleep(0.002 * (next(calls) % 3))
        return decode(image, *sizes)

    monkeypatch.setattr(pictures, "decode", slow)
    jittered, _ = take(stage, processor, 4, threads=5, prefetch=3)
    assert all(same(a[0], b[0]) and a[1] == b[1] for a, b in zip(plain, jittered, strict=True))


def test_augmentation_changes_with_the_epoch_and_the_seed_and_order_with_the_stage(tiny, processor):
    entry = tiny.Entry(tiny.Source(records=1, pictures=1), tiny.Kind(), augmentation=Augmentation(noise=20.0))
    ((batch, _),), _ = take(tiny(entry), processor, 1)
    assert not np.array_equal(batch.images[0, 0], batch.images[1, 0])
    ((other, _),), _ = take(tiny(entry), processor, 1, seed=6)
    assert not np.array_equal(batch.images, other.images)
    stage, renamed = tiny(), tiny()
    renamed.name = "another stage"
    ((_, info),), _ = take(stage, processor, 1)
    ((_, other_info),), _ = take(renamed, processor, 1)
    assert info.example_ids != other_info.example_ids


def test_no_two_draws_share_their_chance(tiny, processor, monkeypatch):
    kind_chance, picture_chance = [], []

    class Recording(tiny.Kind):
        def __call__(self, record, rng, source=""):
            kind_chance.append(int(rng.integers(1 << 62)))
            return super().__call__(record, rng, source)

    def augment(pixels, augmentation, rng):
        picture_chance.append(int(rng.integers(1 << 62)))
        return pixels

    monkeypatch.setattr(pictures, "augment", augment)
    entry = tiny.Entry(tiny.Source(pictures=2), Recording(), augmentation=Augmentation(flip=True))
    take(tiny(entry, virtual_shards=4), processor, 4)
    chance = kind_chance + picture_chance
    assert kind_chance
    assert picture_chance
    assert len(set(chance)) == len(chance)


def test_an_undecodable_picture_makes_its_example_padding(tiny, processor, tmp_path):
    good, bad = (tiny(tiny.Source(pictures=2, bad_pictures=b)) for b in ((), (7,)))
    path = tmp_path / "quarantine.jsonl"
    expected, _ = take(good, processor, 12)
    got, _ = take(bad, processor, 12, quarantine=Quarantine(path))
    met = 0
    for (batch, info), (clean, clean_info) in zip(got, expected, strict=True):
        assert info.example_ids == clean_info.example_ids
        assert info.examples_seen == clean_info.examples_seen
        for row, ids in enumerate(info.example_ids):
            for number, example_id in enumerate(ids):
                at = clean.segment_ids[row] == number + 1
                slots = slice(2 * number, 2 * number + 2)
                if example_id != "tiny/7":
                    assert (batch.segment_ids[row, at] == number + 1).all()
                    assert np.array_equal(batch.images[row, slots], clean.images[row, slots])
                    continue
                met += 1
                assert not batch.segment_ids[row, at].any()
                assert not batch.loss_weights[row, at].any()
                assert (batch.visual_index[row, at] == -1).all()
                assert batch.source_ids[row, number] == -1
                assert not batch.images[row, slots].any()
                assert not batch.image_ids[row, slots].any()
        assert info.quarantined == ({"tiny": 1} if met else {})
    assert met
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["tiny/7"]


def test_bad_and_over_long_records_are_quarantined_by_name(tiny, processor):
    stage = tiny(tiny.Source(bad_records=(2,), long_records=(9,)))
    quarantine = Quarantine(limit=1.0)
    got, _ = take(stage, processor, 12, quarantine=quarantine)
    used = {i for _, info in got for row in info.example_ids for i in row}
    assert used == {f"tiny/{n}" for n in range(40)} - {"tiny/2", "tiny/9"}
    reasons = quarantine.reasons()
    assert reasons["tiny", "tiny/2"] == "no question"
    assert "a row has 160: raise the stage's data.length" in reasons["tiny", "tiny/9"]


def test_more_pictures_than_slots_are_quarantined_by_name(tiny, processor):
    quarantine = Quarantine(limit=1.0)
    take(tiny(images=1), processor, 6, quarantine=quarantine)
    assert (
        "2 pictures, but a row has 1 image slots: raise the stage's data.images"
        in quarantine.reasons()["tiny", "tiny/2"]
    )


def test_too_many_bad_records_stop_the_run(tiny, processor):
    with pytest.raises(UserError, match=r"source 'tiny': .* unusable"):
        take(tiny(tiny.Source(bad_records=tuple(range(0, 40, 4)))), processor, 20)
    nothing = tiny(tiny.Source(bad_records=tuple(range(40))))
    with pytest.raises(UserError, match=f"{STOP_AFTER} records in a row are unusable.*: no question"):
        take(nothing, processor, 1, quarantine=Quarantine(limit=1.0))


def test_a_position_of_other_data_is_refused(tiny, processor):
    _, state = take(tiny(), processor, 1)
    for stage, options, field in (
        (tiny(), {"seed": 6}, "seed"),
        (tiny(virtual_shards=2), {}, "virtual_shards"),
        (tiny(tiny.Source(records=41)), {}, "mixture"),
    ):
        with pytest.raises(UserError, match=f"taken with {field} = "):
            take(stage, processor, 1, state=state, **options)
    with pytest.raises(UserError, match="seed is -1"):
        make_loader(tiny(), processor, seed=-1)


PROGRAM = """
import hashlib, json, sys
from types import SimpleNamespace
import jax
from data_pipelines.images import Augmentation
from data_pipelines.kinds import Instruct
from data_pipelines.loader import DataConfig, make_loader
from data_pipelines.mixture import MixtureEntry
from data_pipelines.sources import EasyVQA
from data_pipelines.template import load_processor

entry = MixtureEntry(EasyVQA(languages=("en", "ru")), Instruct(6), augmentation=Augmentation(turn=True, noise=3.0))
stage = SimpleNamespace(name="instruct", data=DataConfig((entry,), rows=4, length=512, images=8, virtual_shards=2))
loader = make_loader(stage, load_processor(sys.argv[1]), seed=7)
if len(sys.argv) > 3:
    loader.set_state(json.loads(sys.argv[3]))
for _ in range(int(sys.argv[2])):
    batch, info = next(loader)
    print(hashlib.sha256(b"".join(x.tobytes() for x in jax.tree.leaves(batch))).hexdigest(), info.examples_seen)
print(json.dumps(loader.get_state()))
loader.close()
"""


def test_a_fresh_process_continues_bit_for_bit(processor, tmp_path):
    """Real pictures, no absl flags parsed, hash seeds differ."""
    processor.save(tmp_path)

    def run(*arguments):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()

    *whole, end = run("5")
    *_, middle = run("2")
    *rest, other_end = run("3", middle)
    assert rest == whole[2:]
    assert json.loads(other_end) == json.loads(end)


def test_examples_may_weigh_alike(tiny, processor):
    """weigh_by="example": the learned tokens of every example share a weight of one, however many they are."""
    ((batch, _),), _ = take(tiny(weigh_by="example"), processor, 1)
    ((by_token, _),), _ = take(tiny(), processor, 1)
    assert np.array_equal(batch.loss_weights > 0, by_token.loss_weights > 0)
    for row in range(len(batch.tokens)):
        for number in range(1, batch.segment_ids[row].max() + 1):
            at = batch.segment_ids[row] == number
            assert batch.loss_weights[row, at].sum() == pytest.approx(1, abs=1e-6)
            assert by_token.loss_weights[row, at].sum() > 1
