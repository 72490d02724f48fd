from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_model import mask

from vlm_jax.models.masks import reference_mask

DRAWING = """
    # # . . . . . . . .
    # # . . . . . . . .
    # # # . . . . . . .
    # # # # . . . . . .
    # # # # # . . . . .
    # # # . . # . . . .
    # # # . . # # . . .
    . . . . . . . # . .
    . . . . . . . # # .
    . . . . . . . . . .
"""


def planes(segment, branch, block, position):
    return SimpleNamespace(
        segment_ids=np.array(segment)[None],
        branch_ids=np.array(branch)[None],
        block_ids=np.array(block)[None],
        positions=np.array(position)[None],
    )


def test_mask_is_the_one_drawn_in_its_docstring():
    batch = planes(
        [1, 1, 1, 1, 1, 1, 1, 2, 2, 0],
        [0, 0, 0, 1, 1, 2, 2, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 2, 3, 4, 3, 4, 0, 1, 0],
    )
    drawn = [[cell == "#" for cell in line.split()] for line in DRAWING.strip().splitlines()]
    np.testing.assert_array_equal(np.asarray(reference_mask(batch))[0], drawn)
    inside = (line.strip()[2:] for line in reference_mask.__doc__.splitlines() if "# " in line)
    assert [line.split() for line in inside] == [line.split() for line in DRAWING.strip().splitlines()[:-1]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*(st.integers(0, n) for n in (2, 2, 2, 9))), min_size=7, max_size=7), st.sampled_from([0, 1, 3])
)
def test_mask_follows_the_rule_pair_by_pair_for_any_numbers(columns, window):
    batch = planes(*zip(*columns, strict=True))
    np.testing.assert_array_equal(np.asarray(reference_mask(batch, window)), mask(batch, window))
