"""Splits are a fixed function of the name, in about the shares that they promise."""

import collections

from data_pipelines.prepare.splits import split_of, template_split


def test_shares() -> None:
    counts = collections.Counter(split_of(f"corpus/{n}") for n in range(20_000))
    assert 0.045 < counts["test"] / 20_000 < 0.055
    assert 0.045 < counts["validation"] / 20_000 < 0.055


def test_wordings_and_pages_are_split_apart() -> None:
    names = [f"name {n}" for n in range(2000)]
    both = [split_of(name) == template_split(name) == "test" for name in names]
    assert 0 < sum(both) < 20
