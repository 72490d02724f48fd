import dataclasses
import re

import numpy as np
import pytest

from vlm_jax.models.memory import own_slots, visible_slots


def drawn(function):
    """The lines of a docstring's drawing as 0 and 1, without their first column."""
    found = [re.match(r"\s+\w ((?:[#.] ){5})", line) for line in function.__doc__.splitlines()]
    return np.array([[mark == "#" for mark in line[1].split()] for line in found if line])


@pytest.fixture
def row(make):
    """The row of the drawing: the first picture has two tiles and a black slot."""
    examples = [{"trunk": [5, 6, 7]}, {"trunk": [8]}, {"trunk": [9, 10, 11]}]
    batch = make.pack(examples, 9)
    visible = np.array([(0, 0), (0, 3), (0, 3), (0, 0), (3, 4), (3, 4), (4, 5), (0, 0), (0, 0)], np.int32)
    tiles = np.array([[(1, 1, 2), (2, 1, 2), (3, 1, 2), (0, 1, 1), (0, 1, 1)]], np.int32)
    return dataclasses.replace(
        batch,
        features=np.zeros((1, 5, 1, 1), np.float32),
        visible_images=visible[None],
        image_ids=np.array([[1, 1, 1, 2, 3]], np.int32),
        tile_index=tiles,
    )


def test_the_drawing_is_what_the_function_does(row):
    expected = drawn(visible_slots)
    assert expected.shape == (7, 5)
    np.testing.assert_array_equal(np.asarray(visible_slots(row))[0, :7], expected)
    assert not np.asarray(visible_slots(row))[0, 7:].any()


def test_slots_that_show_nothing_are_seen_by_nobody(row):
    unused = dataclasses.replace(row, image_ids=np.array([[1, 1, 1, 0, 3]], np.int32))
    found = np.asarray(visible_slots(unused))[0]
    assert not found[:, 3].any()
    assert found[:, 4].any()


def test_thumbnails_may_be_left_out_but_not_a_picture_that_is_one_tile(row):
    tiles = np.array([[(0, 1, 2), (1, 1, 2), (2, 1, 2), (0, 1, 1), (0, 1, 1)]], np.int32)
    cut = dataclasses.replace(row, tile_index=tiles)
    assert np.asarray(visible_slots(cut))[0, 2].tolist() == [True, True, True, False, False]
    found = np.asarray(visible_slots(cut, thumbnails=False))[0]
    assert found[2].tolist() == [False, True, True, False, False]
    assert found[5].tolist() == [False, False, False, True, False]
    assert np.asarray(own_slots(cut, thumbnails=False))[0, 0].tolist() == [False, True, True, False, False]


def test_all_slots_of_an_example_are_its_own_and_no_others(row):
    found = np.asarray(own_slots(row))[0]
    first, last = [True, True, True, False, False], [False, False, False, True, True]
    assert found.tolist() == [first] * 3 + [[False] * 5] + [last] * 3 + [[False] * 5] * 2


def test_a_picture_of_a_branch_is_neither_the_trunk_s_nor_a_sibling_s(make):
    batch = make.pack([{"trunk": [5, 6], "branches": [[7, 8], [9]]}], 6)
    visible = np.array([[(0, 0), (0, 1), (0, 1), (1, 2), (0, 1), (0, 0)]], np.int32)
    batch = dataclasses.replace(batch, features=np.zeros((1, 2, 1, 1), np.float32), visible_images=visible)
    expected = [[True, False]] * 2 + [[True, True]] * 2 + [[True, False], [False, False]]
    assert np.asarray(own_slots(batch))[0].tolist() == expected
