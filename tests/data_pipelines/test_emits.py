"""Branches and blocks that an attention kernel cannot express: what a stage may have, and what is met while it runs."""

import contextlib
import dataclasses

import numpy as np
import pytest

from data_pipelines.emits import check_one_path
from data_pipelines.examples import Example, Text
from data_pipelines.loader import make_loader
from vlm_jax.errors import UserError


def rendered(processor, questions, **planes):
    branches = tuple((Text("Why?", role="user"), Text(f"{n}.", loss=True, role="assistant")) for n in range(questions))
    example = Example(trunk=(Text("So.", role="user"),), branches=branches, source="talk", id=f"talk/{questions}")
    return dataclasses.replace(processor.render(example), **planes)


def test_one_branch_alone_reads_from_top_to_bottom(processor):
    one = rendered(processor, 1)
    assert one.branch_ids.max() == 1
    check_one_path([one, one])


def test_branches_and_blocks_are_refused_by_name(processor):
    one, two = rendered(processor, 1), rendered(processor, 2)
    with pytest.raises(UserError, match=r"example talk/2 of source 'talk' has 2 branches.*attention-kernel"):
        check_one_path([one, two])
    joined = rendered(processor, 1, block_ids=np.ones_like(one.block_ids))
    with pytest.raises(UserError, match=r"example talk/1 of source 'talk' has positions that see each other both ways"):
        check_one_path([joined])


def first_batch(stage, processor):
    with contextlib.closing(make_loader(stage, processor, seed=5, one_path=True)) as loader:
        return next(loader)[0]


def test_a_loader_for_such_a_kernel_stops_at_the_example(tiny, processor):
    class OneQuestion(tiny.Kind):
        def __call__(self, *arguments):
            example = super().__call__(*arguments)
            return dataclasses.replace(example, branches=example.branches[:1])

    source = tiny.Source(pictures=0)
    with pytest.raises(UserError, match=r"example tiny/\d+ of source 'tiny' has \d branches") as error:
        first_batch(tiny(source, images=0), processor)
    assert "\n" not in str(error.value)
    batch = first_batch(tiny(tiny.Entry(source, OneQuestion()), images=0), processor)
    assert batch.branch_ids.max() == 1
    assert not batch.block_ids.any()
