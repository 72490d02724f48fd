import dataclasses
import itertools
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines import fitting
from data_pipelines.checks import check_slots
from data_pipelines.examples import Example, Image, Text
from data_pipelines.fitting import fit, size_of
from data_pipelines.packing import Budget
from data_pipelines.quarantine import BadRecord
from data_pipelines.template import TemplateConfig

N = 3
BUDGET = Budget(24, 2, 8)

segments = st.lists(
    st.one_of(
        st.text(alphabet="qouestina bд0123456789", min_size=1, max_size=60).map(lambda text: Text(text, loss=True)),
        st.integers(0, 99).map(lambda number: Image(data=bytes([number]))),
    ),
    min_size=1,
    max_size=10,
)


def rendered(processor, *trunk, bidirectional=True, **fields):
    processor = dataclasses.replace(processor, template=TemplateConfig(bidirectional_images=bidirectional))
    return processor.render(Example(trunk=trunk, source="s", id="page", **fields))


def fitted(processor, example, when_long="split", budget=BUDGET):
    return fit(example, budget, when_long, processor.tokenizer, N)


def test_pieces_are_as_the_docstring_draws_them(processor):
    tokenizer = processor.tokenizer
    whole, *pieces = (drawn.split() for drawn in re.findall(r"(<bos>(?: <?\w+>?)+)", fitting.__doc__))
    example = rendered(processor, Image(data=b"0"))
    letters = {"<bos>": tokenizer.bos_id, "<end>": tokenizer.end_id, "v": tokenizer.image_id, "t": 100}

    def written(piece):
        names = {value: name for name, value in letters.items()}
        return [names[int(token)] for token in piece.tokens]

    pictures = np.array([name == "v" for name in whole])
    zeros = np.zeros(len(whole), np.int32)
    example = dataclasses.replace(
        example,
        tokens=np.array([letters[name] for name in whole], np.int32),
        loss=np.ones(len(whole), np.float32),
        branch_ids=zeros,
        block_ids=zeros,
        positions=np.arange(len(whole), dtype=np.int32),
        visual_index=np.where(pictures, np.cumsum(pictures) - 1, -1).astype(np.int32),
        pictures=np.where(pictures, (np.cumsum(pictures) - 1) // N, -1).astype(np.int32),
        images=(Image(data=b"0"), Image(data=b"1")),
        cuts=example.cuts * 2,
    )
    found, cut = fitted(processor, example, budget=Budget(9, 2, 8))
    assert [written(piece) for piece in found] == pieces
    assert cut == 0


@given(segments, st.booleans(), st.integers(6, 40), st.integers(1, 3))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pieces_together_are_the_example_and_each_fits(processor, trunk, bidirectional, length, images):
    example, budget = rendered(processor, *trunk, bidirectional=bidirectional), Budget(length, images, 8)
    pieces, cut = fitted(processor, example, budget=budget)
    assert cut == 0
    assert [piece.id for piece in pieces] == ["page", *(f"page#{n}" for n in range(2, len(pieces) + 1))]
    for name in ("tokens", "loss"):
        parts = [getattr(piece, name) for piece in pieces]
        joined = np.concatenate([parts[0], *(part[1:] for part in parts[1:])])
        np.testing.assert_array_equal(joined, getattr(example, name))
    assert sum((piece.images for piece in pieces), ()) == example.images
    for piece in pieces:
        assert budget.misfit(size_of(piece)) is None
        assert piece.tokens[0] == processor.tokenizer.bos_id
        assert piece.loss[0] == 0
        assert piece.positions.tolist() == list(range(piece.length))
        assert not piece.branch_ids.any()
        check_slots(piece, N)
        whole = (piece.visual_index >= 0) & (piece.visual_index // N + 1 == piece.block_ids)
        np.testing.assert_array_equal(piece.block_ids > 0, whole & bidirectional)
        assert {value.dtype for value in vars(piece).values() if isinstance(value, np.ndarray)} == {
            np.dtype(np.int32),
            np.dtype(np.float32),
        }


@given(segments, st.integers(6, 40), st.integers(1, 3))
@hypothesis.example([Text("0", loss=True), Text("0000", loss=True), Image(data=b"0")], 9, 1)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pieces_are_as_long_as_they_can_be(processor, trunk, length, images):
    """No piece could take the first token, or the first picture, of the next one (with its <end>, if that follows)."""
    budget = Budget(length, images, 8)
    pieces, _ = fitted(processor, rendered(processor, *trunk), budget=budget)
    for piece, following in itertools.pairwise(pieces):
        picture = following.visual_index[1] >= 0
        wanted = N if picture else 1
        wanted += following.tokens[1 + wanted : 2 + wanted].tolist() == [processor.tokenizer.end_id]
        assert piece.length + wanted > length or (picture and len(piece.images) == images)


@given(segments, st.integers(6, 40), st.integers(1, 3))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_cut_is_the_first_piece_and_the_rest_is_counted(processor, trunk, length, images):
    example, budget = rendered(processor, *trunk), Budget(length, images, 8)
    (kept,), cut = fitted(processor, example, "cut", budget)
    first = fitted(processor, example, "split", budget)[0][0]
    np.testing.assert_array_equal(kept.tokens, first.tokens)
    assert kept.images == first.images
    assert kept.length + cut == example.length


def test_what_fits_is_left_as_it_is(processor):
    example = rendered(processor, Text("question", loss=True))
    for when_long in ("refuse", "cut", "split"):
        assert fitted(processor, example, when_long) == ([example], 0)


def test_what_must_not_be_parted_is_refused_with_the_setting_to_raise(processor):
    long = Text("question " * 30, loss=True)
    with pytest.raises(BadRecord, match="positions, but a row has 24: raise") as caught:
        fitted(processor, rendered(processor, long), "refuse")
    assert caught.value.record_id == "page"
    branch = (Text("question", role="user"), Text("answer " * 30, loss=True, role="assistant"))
    with pytest.raises(BadRecord, match="but a row has 24: raise"):
        fitted(processor, rendered(processor, Text("q"), branches=(branch,)), "split")


def test_a_picture_longer_than_a_row_is_refused(processor):
    example = rendered(processor, Text("question", loss=True), Image(data=b"0"), Text("question", loss=True))
    with pytest.raises(BadRecord, match=r"a row has 3.*; from position \d+ on there is no place to part it at"):
        fitted(processor, example, budget=Budget(3, 2, 8))
    with pytest.raises(BadRecord, match="no place to part it at"):
        fitted(processor, example, budget=Budget(24, 0, 8))


def test_the_loss_of_the_end_stays_with_the_text_before_it(processor):
    """However the text is cut, its <end> never stands alone behind a <bos>."""
    for length in range(10, 60):
        pieces, _ = fitted(processor, rendered(processor, Text("q0 " * length, loss=True)), budget=Budget(9, 0, 8))
        assert pieces[-1].length > 2
        assert pieces[-1].tokens[-1] == processor.tokenizer.end_id
