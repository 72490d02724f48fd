"""Kept pictures are those that would be decoded again, within the budget, and change no batch."""

import contextlib
import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor

import cv2
import jax
import numpy as np
import pytest

from data_pipelines.examples import Image
from data_pipelines.images import Augmentation, BadImage, ImagePreprocessing, prepare
from data_pipelines.loader import make_loader
from data_pipelines.picture_memory import PictureMemory
from vlm_jax.errors import UserError

SIZE = (8, 6)
NBYTES = 8 * 6 * 3


def encoded(number):
    return cv2.imencode(".png", np.full((9, 9, 3), number, np.uint8))[1].tobytes()


@pytest.fixture
def calls():
    return []


@pytest.fixture
def memory(calls):
    def count(image):
        calls.append(image)
        return prepare(image, SIZE, ImagePreprocessing())

    return lambda budget: PictureMemory(count, budget)


def test_a_picture_is_decoded_once_whatever_holds_its_bytes(memory, calls, tmp_path):
    pictures = memory(10 * NBYTES)
    for number in (1, 2, 1, 2):
        assert (pictures(Image(data=bytes(bytearray(encoded(number))))) == number).all()
    assert (len(calls), len(pictures)) == (2, 2)


def test_a_file_that_has_changed_is_decoded_anew(memory, calls, tmp_path):
    path = tmp_path / "a.png"
    pictures = memory(10 * NBYTES)
    for number, time in ((1, 100), (1, 100), (2, 200)):
        path.write_bytes(encoded(number))
        os.utime(path, (time, time))
        assert (pictures(Image(path=str(path))) == number).all()
    assert len(calls) == 2


def test_the_budget_holds_and_what_is_in_stays(memory, calls):
    pictures = memory(2 * NBYTES + 1)
    for number in (1, 2, 3, 4, 1, 2, 3):
        assert (pictures(Image(data=encoded(number))) == number).all()
    assert len(pictures) == 2
    assert len(calls) == 5
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(pictures, [Image(data=encoded(n)) for n in range(10, 40)]))
    assert len(pictures) == 2


def test_a_bad_picture_is_bad_every_time(memory):
    pictures = memory(10 * NBYTES)
    for image in (Image(data=b"no picture"), Image(path="/nowhere/a.png")) * 2:
        with pytest.raises(BadImage):
            pictures(image)
    assert len(pictures) == 0


def test_kept_pictures_cannot_be_written_to(memory):
    picture = memory(NBYTES)(Image(data=encoded(1)))
    with pytest.raises(ValueError, match="read-only"):
        picture[0] = 0


def test_no_batch_changes(tiny, processor):
    """Over several epochs, with random changes to the pictures; and the position of one run serves the other."""
    entry = tiny.Entry(tiny.Source(records=9), tiny.Kind(), augmentation=Augmentation(True, True, 2, 9.0))
    plain = tiny(entry)
    keeping = tiny(entry)
    keeping.data = dataclasses.replace(keeping.data, keep_pictures=1)
    with (
        contextlib.closing(make_loader(plain, processor, seed=3)) as a,
        contextlib.closing(make_loader(keeping, processor, seed=3)) as b,
    ):
        for _ in range(6):
            ours, theirs = next(a), next(b)
            assert jax.tree.all(jax.tree.map(np.array_equal, ours[0], theirs[0]))
            assert ours[1] == theirs[1]
        b.set_state(a.get_state())
        assert next(a)[1] == next(b)[1]


def test_a_negative_budget_is_the_users_error(tiny):
    with pytest.raises(UserError, match="keep_pictures is -1"):
        tiny(keep_pictures=-1)
