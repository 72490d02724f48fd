"""Packed rows whose pictures are cut: slots, visual tokens and ranges are the example's own, after a resume too."""

import contextlib
import dataclasses

import cv2
import jax
import numpy as np
import pytest

from data_pipelines.examples import Example, Image, Text
from data_pipelines.feature_store import FeatureStore, Shape, digest, slot_names
from data_pipelines.images import Augmentation, augment, decode, resize
from data_pipelines.loader import make_loader
from data_pipelines.quarantine import Quarantine
from vlm_jax.batch import Batch
from vlm_jax.errors import UserError
from vlm_jax.pictures import Pictures, Tiling

TILE, N = (8, 6), 4
TILING = Tiling(grids=((1, 1), (1, 2), (2, 1), (1, 3)), thumbnail="last", separator=True)
SHAPES = ((8, 6), (8, 12), (20, 8), (6, 20), (16, 6), (30, 31))


def shape_of(number):
    """Every record's pictures are of another shape."""
    return SHAPES[number % len(SHAPES)]


def picture(number, k=0):
    pixels = np.random.default_rng((number, k)).integers(0, 256, (*shape_of(number + k), 3), np.uint8)
    return Image(data=cv2.imencode(".png", pixels)[1].tobytes())


@dataclasses.dataclass(frozen=True)
class Cuttable:
    """Record n has n mod 3 pictures between its words."""

    kind = "cuttable"

    def __call__(self, record, rng, source=""):
        number = record["number"]
        if record["images"] and record["images"][0].data == b"no picture at all":
            images = record["images"]
        else:
            images = tuple(picture(number, k) for k in range(number % 3))
        words = [Text(f"question {number}") for _ in images]
        trunk = [segment for pair in zip(words, images, strict=True) for segment in pair]
        answer = Text("да", role="user"), Text("no", loss=True, role="assistant")
        return Example((*trunk, Text("about"), *answer), source=source, id=record["id"])


def stage(tiny, source=None, augmentation=None, **fields):
    entry = tiny.Entry(source or tiny.Source(records=30), Cuttable(), augmentation=augmentation)
    return tiny(entry, **({"rows": 2, "length": 200, "images": 12} | fields))


def cutting(processor, tiling=TILING, n=N, **fields):
    return dataclasses.replace(processor, prompt_tokens=n, pictures=Pictures(tiling, (1, 3), **fields))


def take(stage, processor, batches, state=None, **options):
    with contextlib.closing(make_loader(stage, processor, **({"seed": 5} | options))) as loader:
        if state is not None:
            loader.set_state(state)
        return [next(loader) for _ in range(batches)], loader.get_state()


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


def numbers(info, row):
    return [int(name.split("/")[1]) for name in info.example_ids[row]]


@pytest.mark.parametrize("slots", [0, 4])
def test_slots_and_visual_tokens_are_those_of_the_examples_own_pictures(tiny, processor, slots):
    processor = cutting(processor, dataclasses.replace(TILING, slots=slots), visible="last")
    got, _ = take(stage(tiny), processor, 4)
    seen = 0
    for batch, info in got:
        for row in range(2):
            slot = shown = 0
            for example, number in enumerate(numbers(info, row)):
                first = slot
                at = np.flatnonzero(batch.segment_ids[row] == example + 1)
                for k in range(number % 3):
                    image = picture(number, k)
                    cut, shown = processor.cut(image), shown + 1
                    span = slice(slot, slot + cut.slots)
                    assert slots == 0 or (cut.slots == slots and slot % slots == 0)
                    np.testing.assert_array_equal(batch.images[row, span], processor.slots(image))
                    np.testing.assert_array_equal(batch.tile_index[row, span], processor.tile_index(image))
                    assert set(batch.image_ids[row, span]) == {shown}
                    slot += cut.slots
                visual = batch.visual_index[row, at]
                assert ((visual < 0) | ((visual >= first * N) & (visual < slot * N))).all()
                assert len(np.unique(visual[visual >= 0] // N)) <= slot - first
                low, high = batch.visible_images[row, at].T
                assert ((low == high) | ((low >= first) & (high <= slot))).all()
                seen += number % 3
            assert not batch.images[row, slot:].any()
            assert not batch.image_ids[row, slot:].any()
            assert not batch.tile_index[row, slot:].any()
    assert seen > 10


@pytest.mark.parametrize("visible", [None, "group"])
@pytest.mark.parametrize("n", [0, N])
def test_batches_have_the_promised_shapes(tiny, processor, visible, n):
    if not n and visible is None:
        return
    tiling = dataclasses.replace(TILING, separator=False)
    processor = cutting(processor, tiling, n, visible=visible)
    ((batch, _),), _ = take(stage(tiny), processor, 1)
    spec = Batch.spec(2, 200, images=12, image_size=TILE, examples=12, in_sequence=bool(n), pictures=processor.pictures)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), batch) == jax.tree.map(lambda x: (x.shape, x.dtype), spec)


def test_a_resumed_loader_gives_the_same_tiles(tiny, processor):
    processor, data = cutting(processor, visible="all"), stage(tiny, virtual_shards=2)
    whole, _ = take(data, processor, 6)
    _, state = take(data, processor, 3)
    rest, _ = take(data, processor, 3, state)
    assert all(same(a[0], b[0]) for a, b in zip(whole[3:], rest, strict=True))
    halves = [take(data, processor, 6, host=host, hosts=2)[0] for host in (0, 1)]
    for (batch, _), *parts in zip(whole, *halves, strict=True):
        np.testing.assert_array_equal(batch.images, np.concatenate([part.images for part, _ in parts]))


def test_pictures_that_are_kept_are_the_same(tiny, processor):
    processor = cutting(processor)
    again, _ = take(stage(tiny, keep_pictures=1), processor, 12)
    assert all(same(a[0], b[0]) for a, b in zip(take(stage(tiny), processor, 12)[0], again, strict=True))


def test_a_change_is_one_of_the_whole_picture(tiny, processor):
    """Tiles of a mirrored picture are those of the mirrored whole, in the mirrored order."""
    processor = cutting(processor)
    got, _ = take(stage(tiny, augmentation=Augmentation(flip=True)), processor, 6)
    flipped = 0
    for batch, info in got:
        for row in range(2):
            slot = 0
            for number in numbers(info, row):
                for k in range(number % 3):
                    cut, pixels = processor.cut(picture(number, k)), decode(picture(number, k))
                    forms = []
                    for whole in (pixels, pixels[:, ::-1]):
                        canvas = resize(whole, (cut.grid[0] * 8, cut.grid[1] * 6), processor.images)
                        tiles = canvas.reshape(cut.grid[0], 8, cut.grid[1], 6, 3).swapaxes(1, 2).reshape(-1, 8, 6, 3)
                        forms.append(tiles)
                    tiles = batch.images[row, slot : slot + len(forms[0])]
                    assert np.array_equal(tiles, forms[0]) or np.array_equal(tiles, forms[1])
                    flipped += np.array_equal(tiles, forms[1])
                    slot += cut.slots
    assert flipped > 3
    rng = np.random.default_rng(0)
    assert augment(decode(picture(1)), Augmentation(flip=True), rng).shape == decode(picture(1)).shape


def test_features_are_kept_by_slot(tiny, processor, tmp_path):
    processor = cutting(processor)
    store = FeatureStore(tmp_path, Shape(2, 3, "float32"))
    known = {}
    for number in range(30):
        for k in range(number % 3):
            image = picture(number, k)
            names = slot_names(digest(image), processor.cut(image).slots)
            known |= {name: np.full((2, 3), len(known) + slot, np.float32) for slot, name in enumerate(names)}
    store.add([(list(known), np.stack(list(known.values())))])
    (batch, info), *_ = take(stage(tiny), processor, 1, features=store)[0]
    for row in range(2):
        slot = 0
        for number in numbers(info, row):
            for k in range(number % 3):
                image = picture(number, k)
                for name in slot_names(digest(image), processor.cut(image).slots):
                    np.testing.assert_array_equal(batch.features[row, slot], known[name])
                    slot += 1
        assert not batch.features[row, slot:].any()


def test_pictures_that_cannot_be_cut_or_seen_are_quarantined_by_name(tiny, processor):
    quarantine = Quarantine(limit=1.0)
    source = tiny.Source(records=30, bad_pictures=(4, 7))
    take(stage(tiny, source), cutting(processor), 6, quarantine=quarantine)
    assert {"tiny/4", "tiny/7"} == {record for _, record in quarantine.reasons()}
    assert "not a picture in a known format" in quarantine.reasons()["tiny", "tiny/4"]
    narrow = Quarantine(limit=1.0)
    take(stage(tiny, images=3), cutting(processor), 4, quarantine=narrow)
    reasons = list(narrow.reasons().values())
    assert any(
        "4 image slots for picture 2 of 6 x 20 pixels" in reason and "a row has 3: raise" in reason
        for reason in reasons
    )


@pytest.mark.parametrize("rule", ["last", "group"])
def test_a_picture_that_no_text_may_see_is_quarantined_by_name(tiny, processor, rule):
    """The tiny kind's pictures stand side by side."""
    blind = cutting(processor, Tiling(grids=((1, 2),)), n=0, visible=rule)
    quarantine = Quarantine(limit=1.0)
    got, _ = take(tiny(tiny.Source(records=12), images=12), blind, 6, quarantine=quarantine)
    shown = {name for _, info in got for row in info.example_ids for name in row}
    unseen = {f"tiny/{n}" for n in range(12) if rule == "last" and n % 3 == 2}
    assert shown == {f"tiny/{n}" for n in range(12)} - unseen
    assert {record for _, record in quarantine.reasons()} == unseen
    assert all("no text may see picture 1 of 2: with visible 'last'" in why for why in quarantine.reasons().values())
    for batch, _ in got:
        assert batch.visual_index is None
        assert (batch.visible_images[batch.segment_ids == 0] == 0).all()


def test_rows_hold_whole_pictures(tiny, processor):
    with pytest.raises(UserError, match=r"data.images is 10, but every picture takes 4 image slots .*a multiple of 4"):
        make_loader(stage(tiny, images=10), cutting(processor, dataclasses.replace(TILING, slots=4)), seed=0)
