"""Who may see which pictures, against the rule's drawing and a count in plain loops."""

import dataclasses
import inspect
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import visible
from data_pipelines.examples import Image
from data_pipelines.packing import Planes
from data_pipelines.quarantine import BadRecord
from data_pipelines.rendered import Rendered
from data_pipelines.tiles import Cut
from data_pipelines.visible import check_seen, visible_ranges
from vlm_jax import pictures as rules
from vlm_jax.pictures import Pictures

RULES = ("last", "group", "all")


def example(trunk, branches=(), slots=(), name="x"):
    """Of lists of picture numbers, -1 = text; positions and tokens do not matter."""
    pictures = np.array([*trunk, *(p for branch in branches for p in branch)], np.int32)
    numbers = [0] * len(trunk) + [n for n, branch in enumerate(branches, 1) for _ in branch]
    zeros = np.zeros(len(pictures), np.int32)
    count = int(pictures.max(initial=-1)) + 1
    slots = slots or (1,) * count
    return Rendered(
        tokens=zeros,
        loss=zeros.astype(np.float32),
        branch_ids=np.array(numbers, np.int32),
        block_ids=zeros,
        positions=zeros,
        visual_index=zeros - 1,
        pictures=pictures,
        images=(Image(data=b"x"),) * count,
        cuts=tuple(Cut(slots=n) for n in slots[:count]),
        id=name,
        source="s",
    )


def seen_by_hand(example, position, rule):
    """The numbers of the pictures that a position may see, walked one by one."""
    branch = example.branch_ids[position]
    path = [i for i in range(position + 1) if example.branch_ids[i] in {0, branch}]
    before = [int(example.pictures[i]) for i in path]
    shown = [number for number in before if number >= 0]
    if not shown:
        return set()
    if rule == "last":
        return {shown[-1]}
    if rule == "all":
        return set(shown)
    while before[-1] < 0:
        before.pop()
    group = set()
    while before and before[-1] >= 0:
        group.add(before.pop())
    return group


def seen(ranges, example):
    """The same, from half-open ranges of slots: which must be of whole pictures."""
    owner = [number for number, cut in enumerate(example.cuts) for _ in range(cut.slots)]
    slots = [owner[slot] for slot in range(*ranges)]
    assert all(slots.count(number) == example.cuts[number].slots for number in slots)
    return set(slots)


@st.composite
def examples(draw):
    """Trunks of texts and pictures; branches of text, at times with pictures of their own behind the trunk's."""
    number = 0

    def part(with_pictures):
        nonlocal number
        found = []
        for length in draw(st.lists(st.integers(-3, 3).filter(bool), max_size=6)):
            if length < 0:
                found += [-1] * -length
            elif with_pictures:
                found += [number] * length
                number += 1
        return found

    trunk = [-1, *part(True)]
    branches = [[-1, *part(False)] for _ in range(draw(st.integers(0, 3)))]
    slots = tuple(draw(st.integers(1, 4)) for _ in range(number))
    return example(trunk, branches, slots)


@given(examples(), st.sampled_from(RULES))
@settings(max_examples=300, deadline=None)
def test_positions_see_exactly_the_pictures_of_the_rule(shown, rule):
    ranges = visible_ranges(shown, rule)
    assert ranges.dtype == np.int32
    for position in range(shown.length):
        assert seen(ranges[position].tolist(), shown) == seen_by_hand(shown, position, rule)


@given(examples(), st.integers(1, 3), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.sampled_from(RULES))
@settings(max_examples=100, deadline=None)
def test_pictures_of_a_branch_are_its_own_only(trunk, copies, gaps, rule):
    """As where a template writes pictures again in every branch; some of them may stand in the trunk before."""
    common = trunk.pictures[trunk.branch_ids == 0].tolist()
    count = len(trunk.cuts)
    own = [position for k, gap in enumerate(gaps) for position in (*[count + k] * gap, *[-1] * (gap - 1))]
    slots = tuple(cut.slots for cut in trunk.cuts) + (2,) * len(gaps)
    shown = example(common, [[*own, -1]] * copies, slots)
    ranges = visible_ranges(shown, rule)
    for position in range(shown.length):
        assert seen(ranges[position].tolist(), shown) == seen_by_hand(shown, position, rule)


def test_as_drawn_where_the_rules_are_defined():
    drawn = inspect.getsource(rules)
    (line,) = re.findall(r"text and pictures (.*)", drawn)
    cells = [(found.start(), found.group()) for found in re.finditer(r"\S+", line)]
    numbers = [int(cell[1]) - 1 if cell.startswith("[") else -1 for _, cell in cells]
    shown = example(numbers)
    for rule in RULES:
        (wanted,) = re.findall(rf"\n    {rule} +(.*)", drawn)
        sets = [set() if cell == "-" else {int(digit) - 1 for digit in cell} for cell in wanted.split()[: len(cells)]]
        assert [seen(r, shown) for r in visible_ranges(shown, rule).tolist()] == sets


def test_as_drawn_with_branches():
    shown = example([-1, 0, -1, 1, -1], [[-1, -1], [-1]], (2, 2))
    drawn = re.findall(r"(?<= )(?:-|\d:\d)(?= |\n)", visible.__doc__)
    wanted = [[0, 0] if cell == "-" else [int(border) for border in cell.split(":")] for cell in drawn]
    assert visible_ranges(shown, "last").tolist() == wanted


@given(st.lists(examples(), min_size=1, max_size=4), st.sampled_from(RULES))
@settings(max_examples=100, deadline=None)
def test_no_position_of_a_packed_row_sees_another_examples_slots(row, rule):
    planes = Planes.empty(1, sum(each.length for each in row) + 3)
    row = [dataclasses.replace(each, visual_index=each.pictures * 0 - 1) for each in row]
    planes.write(0, row, 0, Pictures(visible=rule))
    start = slots = 0
    for each in row:
        ranges = planes.visible_images[0, start : start + each.length]
        own = np.where(ranges[:, :1] < ranges[:, 1:], ranges - slots, 0)
        np.testing.assert_array_equal(own, visible_ranges(each, rule))
        assert ((own >= 0) & (own <= each.slots)).all()
        start, slots = start + each.length, slots + each.slots
    assert not planes.visible_images[0, start:].any()
    planes.erase(0, 0)
    assert not planes.visible_images[0, : row[0].length].any()
    np.testing.assert_array_equal(planes.visible_images[0, start:], 0)


def test_a_picture_that_no_text_sees_is_refused_with_the_rule():
    two = example([-1, 0, 1, -1], slots=(3, 3))
    check_seen(two, "all")
    check_seen(two, "group")
    with pytest.raises(
        BadRecord, match=r"no text may see picture 1 of 2: with visible 'last' .* the last picture"
    ) as e:
        check_seen(two, "last")
    assert e.value.record_id == "x"
    behind = example([-1, 0, -1, 1])
    for rule in RULES:
        with pytest.raises(BadRecord, match="no text may see picture 2 of 2"):
            check_seen(behind, rule)
    check_seen(example([-1, 0], [[-1], [-1]]), "last")
    check_seen(example([-1]), "last")
