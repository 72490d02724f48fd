import base64
import collections
import contextlib
import dataclasses
import re

import cv2
import numpy as np
import pytest
from rich.text import Text as RichText

from data_pipelines.examples import Example, Text
from data_pipelines.loader import make_loader
from data_pipelines.look.rows import attention_mask, describe_row, draw_row, mask_picture, row_examples, row_figures
from vlm_jax.batch import Batch
from vlm_jax.pictures import Pictures, Tiling


def first(stage, processor, batches=1):
    with contextlib.closing(make_loader(stage, processor, seed=5)) as loader:
        return [next(loader) for _ in range(batches)]


def row_of(**planes):
    """A batch of one row from the planes that the mask reads."""
    length = len(next(iter(planes.values())))
    empty = np.zeros((1, length), np.int32)
    names = (
        "tokens",
        "targets",
        "loss_weights",
        "segment_ids",
        "branch_ids",
        "block_ids",
        "positions",
        "example_index",
    )
    fields = dict.fromkeys(names, empty) | {name: np.array([plane]) for name, plane in planes.items()}
    return Batch(**fields, source_ids=empty[:, :1])


def test_mask_as_its_docstring_draws_it():
    lines = [line for line in attention_mask.__doc__.splitlines() if re.match(r" {8,}[Bvabc] +[.Bvabc]( |$)", line)]
    header, *rows = lines
    columns = [i for i, letter in enumerate(header) if letter != " "]
    drawn = np.array([[row[i : i + 1] == "." for i in columns] for row in rows])
    batch = row_of(
        segment_ids=[1, 1, 1, 1, 1, 1, 1, 2, 2], branch_ids=[0, 0, 0, 1, 1, 2, 2, 0, 0], block_ids=[0, 1, 1] + [0] * 6
    )
    assert drawn.shape == (9, 9)
    assert attention_mask(batch, 0).tolist() == drawn.tolist()


def test_mask_never_connects_examples_or_branches(tiny, processor):
    for batch, info in first(tiny(), processor, 3):
        for row in range(len(info.example_ids)):
            allowed = np.zeros((160, 160), bool)
            for example in row_examples(batch, row, info, processor):
                spans = [[token.position for token in branch.tokens] for branch in example.branches]
                for number, span in enumerate(spans):
                    visible = span if number == 0 else spans[0] + span
                    allowed[np.ix_(span, visible)] = True
            mask = attention_mask(batch, row)
            assert not (mask & ~allowed).any()
            places = np.flatnonzero(np.asarray(batch.segment_ids[row]))
            assert mask[places, places].all(), "every token sees itself"
            assert not mask[np.asarray(batch.segment_ids[row]) == 0].any()
            ahead = np.triu(mask, 1)
            block = np.asarray(batch.block_ids[row])
            assert (ahead == np.triu((block[:, None] == block) & (block > 0), 1)).all()


def test_row_examples_read_back_what_was_packed(tiny, processor):
    batch, info = first(tiny(), processor)[0]
    for row, ids in enumerate(info.example_ids):
        examples = row_examples(batch, row, info, processor)
        assert [example.id for example in examples] == list(ids)
        learned = sum(token.learned for example in examples for b in example.branches for token in b.tokens)
        figures = row_figures(batch, row)
        assert learned == figures.learned > 0
        assert sum(example.length for example in examples) == figures.positions - figures.padding
        for example in examples:
            index = int(example.id.split("/")[1])
            assert len(example.branches) == 2 + index % 5
            trunk, *branches = example.branches
            pictures = [token.picture for token in trunk.tokens if token.picture]
            assert len(pictures) == (index % 3) * processor.prompt_tokens
            for branch in branches:
                answer = [token.piece for token in branch.tokens if token.learned]
                assert answer[-1] == "<end>"
                assert "".join(answer[:-1]) in ("да", "no")


def test_an_unusable_example_is_not_shown(tiny, processor):
    stage = tiny(tiny.Source(pictures=1, records=60, bad_pictures=(7,)))
    for batch, info in first(stage, processor, 30):
        for row, ids in enumerate(info.example_ids):
            if "tiny/7" in ids:
                shown = [example.id for example in row_examples(batch, row, info, processor)]
                assert shown == [i for i in ids if i != "tiny/7"]
                return
    pytest.fail("the record never came")


class Nasty:
    kind = "nasty"

    def __call__(self, record, rng, source=""):
        turn = Text("<script>alert(1)</script> [bold] [/] \\[x]", role="user")
        return Example(record["images"], ((turn, Text("да", loss=True, role="assistant")),), source, "<b>&[red]")


class OddPieces:
    """Pieces that rich would take for markup."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def id_to_piece(self, token):
        return "[bold]"


def test_description_is_whole_and_markup_in_the_data_is_harmless(tiny, processor):
    batch, info = first(tiny(tiny.Entry(tiny.Source(), Nasty())), processor)[0]
    odd = dataclasses.replace(processor, tokenizer=OddPieces(processor.tokenizer))
    plain = RichText.from_markup(describe_row(batch, 0, info, odd)).plain
    assert "<b>&[red]" in plain
    assert "[bold] [bold] [bold]" in plain
    assert f"{row_figures(batch, 0).learned} learned tokens" in plain


class Compared:
    """A chosen and a rejected answer to a question about the record's pictures."""

    kind = "preference"

    def __call__(self, record, rng, source=""):
        trunk = (*record["images"], Text(f"question about {record['number']}?", role="user"))
        answers = [(Text(answer, loss=True, role="assistant"),) for answer in ("да", "no")]
        return Example(trunk, tuple(answers), source, record["id"], labels=(1.0, 0.0))


def test_chosen_and_rejected_answers_are_named(tiny, processor):
    entries = (tiny.Entry(tiny.Source(name="pairs"), Compared()), tiny.Entry(tiny.Source(name="plain"), tiny.Kind()))
    batch, info = first(tiny(*entries), processor)[0]
    titles = collections.Counter()
    for row in range(len(info.example_ids)):
        for example in row_examples(batch, row, info, processor):
            trunk, *branches = example.branches
            assert trunk.title == "trunk"
            if example.source == "pairs":
                assert [(branch.title, branch.label) for branch in branches] == [("chosen", 1.0), ("rejected", 0.0)]
                answers = ["".join(t.piece for t in branch.tokens if t.learned) for branch in branches]
                assert answers == ["да<end>", "no<end>"]
            else:
                assert [branch.title for branch in branches] == [f"branch {n + 1}" for n in range(len(branches))]
            titles[example.source] += 1
    assert set(titles) == {"pairs", "plain"}
    for shown in (draw_row(batch, 0, info, processor), describe_row(batch, 0, info, processor)):
        assert shown.count("rejected") == sum(i.startswith("pairs/") for i in info.example_ids[0])


class Document:
    """Running text with the record's pictures in its middle, too long for a row."""

    kind = "interleaved"

    def __call__(self, record, rng, source=""):
        words = [Text(f"question {k} about {record['number']}? " * 5, loss=True) for k in range(4)]
        trunk = (*words[:2], *record["images"], *words[2:])
        return Example(trunk, source=source, id=record["id"], when_long="split")


def test_pieces_of_a_long_document_are_shown_as_they_were_packed(tiny, processor):
    stage = tiny(tiny.Entry(tiny.Source(pictures=2), Document()))
    shown = collections.defaultdict(str)
    pictures = collections.Counter()
    for batch, info in first(stage, processor, 12):
        for row in range(len(info.example_ids)):
            for example in row_examples(batch, row, info, processor):
                (trunk,) = example.branches
                text = "".join(token.piece for token in trunk.tokens if not (token.control or token.visual >= 0))
                shown[example.id] = text.replace("▁", " ")
                pictures[example.id.partition("#")[0]] += len({token.picture for token in trunk.tokens} - {0})
    whole = [name for name in shown if f"{name}#2" in shown and f"{name}#3" in shown and "#" not in name]
    assert whole
    for name in whole:
        pieces = [shown[name], *(shown[f"{name}#{n}"] for n in range(2, 9) if f"{name}#{n}" in shown)]
        number = name.split("/")[1]
        expected = "".join(f"question {k} about {number}? " * 5 for k in range(4))
        assert expected.startswith("".join(pieces)), "pieces follow each other without a gap"
        assert pictures[name] <= 2


def uris(page):
    return re.findall(r'src="([^"]*)"', page)


def pixels(uri):
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def test_page_is_self_contained_and_shows_the_pictures_and_the_mask(tiny, processor):
    batch, info = first(tiny(tiny.Source(pictures=2)), processor)[0]
    page = draw_row(batch, 0, info, processor)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "url(" not in page
    *pictures, mask = uris(page)
    assert len(pictures) == row_figures(batch, 0).pictures
    for uri, image in zip(pictures, batch.images[0], strict=False):
        assert np.array_equal(pixels(uri), image)
    assert ((pixels(mask) != 255).any(-1) == attention_mask(batch, 0)).all()
    for example_id in info.example_ids[0]:
        assert example_id in page


def test_page_escapes_the_data(tiny, processor):
    batch, info = first(tiny(tiny.Entry(tiny.Source(), Nasty())), processor)[0]
    page = draw_row(batch, 0, info, processor)
    assert "<script" not in page
    assert "&lt;b&gt;&amp;[red]" in page


def test_a_text_only_row_can_be_drawn(tiny, processor):
    batch, info = first(tiny(tiny.Source(pictures=0), images=0), processor)[0]
    assert len(uris(draw_row(batch, 0, info, processor))) == 1
    assert "0 of 0 image slots" in describe_row(batch, 0, info, processor)


def test_mask_colours_tell_blocks_branches_and_trunk_apart():
    batch = row_of(segment_ids=[1, 1, 1, 1, 1], branch_ids=[0, 0, 0, 1, 2], block_ids=[0, 1, 1, 0, 0])
    picture = mask_picture(batch, 0)
    colours = {tuple(picture[i, j]) for i, j in ((0, 0), (1, 2), (3, 3), (4, 4), (3, 0), (4, 0), (4, 3))}
    assert len(colours) == 7
    assert tuple(picture[4, 3]) == (255, 255, 255)


@pytest.mark.parametrize("separator", [False, True])
def test_tiles_are_shown_as_they_lie_and_named(tiny, processor, separator):
    tiling = Tiling(grids=((2, 2),), thumbnail="last", separator=separator, slots=6)
    cutting = dataclasses.replace(
        processor, prompt_tokens=3 + separator, pictures=Pictures(tiling, (1, 3), visible="last")
    )
    batch, info = first(tiny(tiny.Source(pictures=1), images=12), cutting)[0]
    page, text = draw_row(batch, 0, info, cutting), describe_row(batch, 0, info, cutting)
    *pictures, _ = uris(page)
    assert len(pictures) == 2 * 5
    for picture in range(2):
        thumbnail, *tiles = (pixels(uri) for uri in pictures[5 * picture : 5 * picture + 5])
        np.testing.assert_array_equal(thumbnail, batch.images[0, 6 * picture + 4])
        np.testing.assert_array_equal(tiles, batch.images[0, 6 * picture : 6 * picture + 4])
    assert "2 × 2 tiles, 1 black" in page
    titles = ["picture 2 tiles × 14"] if separator else [f"picture 2 tile {n}/4 × 3" for n in (1, 2, 3, 4)]
    for title in (*titles, "picture 2 thumbnail × 3"):
        assert title in page
        assert title in text
    assert "12 of 12 image slots" in text
    assert ", sees picture 2" in page
    assert "sees 2:" in text


def test_the_marker_of_a_picture_that_is_seen_otherwise_says_who_sees_it(tiny, processor):
    blind = dataclasses.replace(processor, prompt_tokens=0, pictures=Pictures(visible="all"))
    batch, info = first(tiny(tiny.Source(pictures=2), images=4), blind)[0]
    (trunk, branch, *_) = row_examples(batch, 0, info, blind)[0].branches
    assert [token.sees for token in trunk.tokens] == ["", "1", "1–2"]
    assert {token.sees for token in branch.tokens} == {"1–2"}
    assert "sees 1–2:" in describe_row(batch, 0, info, blind)
