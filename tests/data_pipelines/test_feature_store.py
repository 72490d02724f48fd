"""The feature cache on disk: what goes in comes out, a part is there whole or not at all, damage is noticed."""

import json

import numpy as np
import pytest

from data_pipelines.examples import Image
from data_pipelines.feature_store import FeatureStore, Shape, digest, distinct_pictures
from data_pipelines.images import BadImage
from data_pipelines.kinds import Captions, Instruct
from data_pipelines.mixture import MixtureEntry
from data_pipelines.sources import EasyVQA
from vlm_jax.errors import UserError

SHAPE = Shape(patches=3, width=4, dtype="float32")


def pictures(*names):
    return [Image(data=name.encode()) for name in names]


def features_of(images, dtype="float32"):
    return np.random.default_rng(len(images)).normal(size=(len(images), 3, 4)).astype(dtype)


def filled(directory, images, features, shape=SHAPE):
    store = FeatureStore(directory, shape)
    store.add((([digest(image)], row[None]) for image, row in zip(images, features, strict=True)))
    return store


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_added_is_read_bit_for_bit_also_by_another_process(tmp_path, dtype):
    shape, images = Shape(3, 4, dtype), pictures("a", "b", "c")
    features = features_of(images, dtype)
    for store in (filled(tmp_path, images, features, shape), FeatureStore(tmp_path, shape)):
        for image, expected in zip(images, features, strict=True):
            found = store.read(image)
            assert found.dtype == expected.dtype
            assert found.tobytes() == expected.tobytes()
        assert store.read(Image(data=b"another")) is None
        assert len(store) == 3


def test_parts_add_up(tmp_path):
    first, second = pictures("a", "b"), pictures("c")
    one, two = features_of(first), features_of(second)
    filled(tmp_path, first, one)
    filled(tmp_path, second, two)
    store = FeatureStore(tmp_path, SHAPE)
    for image, expected in zip((*first, *second), (*one, *two), strict=True):
        np.testing.assert_array_equal(store.read(image), expected)


def test_a_part_that_is_interrupted_is_not_there_and_the_next_one_takes_its_place(tmp_path):
    images = pictures("a", "b")
    features = features_of(images)

    def breaks_off():
        yield [digest(images[0])], features[:1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureStore(tmp_path, SHAPE).add(breaks_off())
    assert len(FeatureStore(tmp_path, SHAPE)) == 0
    filled(tmp_path, images, features)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000"]
    np.testing.assert_array_equal(FeatureStore(tmp_path, SHAPE).read(images[1]), features[1])


def damage_bytes(part):
    content = bytearray((part / "features.bin").read_bytes())
    content[20] ^= 1
    (part / "features.bin").write_bytes(content)


def cut_short(part):
    (part / "features.bin").write_bytes((part / "features.bin").read_bytes()[:-1])


def without_index(part):
    (part / "index.json").unlink()


def of_another_shape(part):
    index = json.loads((part / "index.json").read_text())
    (part / "index.json").write_text(json.dumps({**index, "width": 2, "patches": 6}))


@pytest.mark.parametrize("harm", [damage_bytes, cut_short, without_index, of_another_shape])
def test_damage_is_one_line_that_says_how_to_mend_it(tmp_path, harm):
    images = pictures("a", "b")
    filled(tmp_path, images, features_of(images))
    harm(tmp_path / "0000")
    with pytest.raises(UserError, match=r"damaged feature cache .*; remove ") as caught:
        [FeatureStore(tmp_path, SHAPE).read(image) for image in images]
    assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    images = pictures("a")
    with pytest.raises(UserError, match=r"cannot be cached .*another feature_cache\.directory"):
        filled(tmp_path / "file" / "below", images, features_of(images))


def test_a_picture_is_known_by_its_content(tmp_path):
    (tmp_path / "a.png").write_bytes(b"same")
    (tmp_path / "b.png").write_bytes(b"same")
    one, two = (digest(Image(path=str(tmp_path / name))) for name in ("a.png", "b.png"))
    assert one == two == digest(Image(data=b"same")) != digest(Image(data=b"other"))
    with pytest.raises(BadImage):
        digest(Image(path=str(tmp_path / "none.png")))


def test_every_picture_of_a_mixture_is_listed_once():
    english = EasyVQA("validation", ("en",), validation_images=30, name="english")
    russian = EasyVQA("validation", ("ru",), validation_images=40, name="russian")
    found = distinct_pictures([MixtureEntry(english, Instruct(questions=1)), MixtureEntry(russian, Instruct())])
    assert len(found) <= 40
    assert {digest(image) for image in found.values()} == set(found)
    # Of pictures without a caption the kind makes no example, and so nothing is encoded.
    captioned = distinct_pictures([MixtureEntry(russian, Captions())])
    assert set(captioned) <= set(found)
