"""A picture's slots, pixels and place in the sequence, against layouts made in plain loops."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
from chat_texts import CHATML, our_tokenizer  # tests/parity
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from data_pipelines import tiles
from data_pipelines.chat_template import ChatTemplate
from data_pipelines.checks import check_slots
from data_pipelines.examples import Example, Image, Text
from data_pipelines.fitting import fit, size_of
from data_pipelines.grids import canvas_size, fitted_size, shown_tokens
from data_pipelines.images import BadImage, ImagePreprocessing, decode, resize
from data_pipelines.packing import Budget
from data_pipelines.quarantine import BadRecord
from data_pipelines.rendered import template_ids
from data_pipelines.template import Processor, load_processor
from data_pipelines.tiles import Cut, cut_of, place_of, uncut
from vlm_jax.pictures import Pictures, Tiling, grids_up_to

TILE = (8, 6)
MARKS = {"tile_mark": "q{tile}u{row}e{column}", "row_mark": "to", "thumbnail_mark": "no", "whole_mark": "ab"}


@st.composite
def tilings(draw, separators=st.booleans()):
    separator = draw(separators)
    choose = draw(st.sampled_from(("area", "aspect", "canvas")))
    tiling = Tiling(
        grids=grids_up_to(draw(st.integers(1, 6)), draw(st.integers(1, 1))),
        choose=choose,
        fit=draw(st.sampled_from(("pad", "centre", "squash"))),
        thumbnail=draw(st.sampled_from(("first", "last", "none"))),
        thumbnail_of_one=draw(st.booleans()),
        separator=separator,
    )
    marks = {name: mark for name, mark in MARKS.items() if draw(st.booleans())}
    marks = {name: mark for name, mark in marks.items() if not separator or name not in ("tile_mark", "row_mark")}
    slots = draw(st.sampled_from((0, tiling.most_slots, tiling.most_slots + 2)))
    return dataclasses.replace(tiling, slots=slots, **marks)


sizes = st.tuples(st.integers(1, 60), st.integers(1, 60))
token_grids = st.tuples(st.integers(1, 3), st.integers(1, 3))


def pictures_of(tiling, token_grid, prompt_slots="all"):
    """(Pictures, N)"""
    if tiling.thumbnail == "none":
        prompt_slots = "all"
    return Pictures(tiling, token_grid, prompt_slots), token_grid[0] * token_grid[1] + tiling.separator


def slots_by_hand(tiling, grid):
    """What every slot of a picture shows: 'thumbnail', (row, column) or 'black'."""
    shown = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    if grid == (1, 1) and not (tiling.thumbnail_of_one and tiling.thumbnail != "none"):
        shown = ["whole"]
    elif tiling.thumbnail == "first":
        shown = ["thumbnail", *shown]
    elif tiling.thumbnail == "last":
        shown = [*shown, "thumbnail"]
    return [*shown, *["black"] * (tiling.slots - len(shown))]


def place_by_hand(tiling, cut, token_grid, n, prompt_slots):
    """The place as a list of marks and visual indices, in plain loops."""
    (rows, columns), (h, w) = cut.grid, token_grid
    slots = slots_by_hand(tiling, cut.grid)
    if slots[0] == "whole":
        return [tiling.whole_mark, *range(n)]
    place = {"thumbnail": [tiling.thumbnail_mark], "tiles": []}
    if "thumbnail" in slots:
        place["thumbnail"] += [slots.index("thumbnail") * n + k for k in range(h * w)]
    if tiling.separator and prompt_slots == "all":
        shown = shown_tokens(tiling, *cut.size, cut.grid, token_grid, TILE)
        for y in range(shown.top, shown.top + shown.rows):
            for x in range(shown.left, shown.left + shown.columns):
                place["tiles"].append(slots.index((y // h, x // w)) * n + y % h * w + x % w)
            place["tiles"].append("separator")
    else:
        for row in range(rows):
            for column in range(columns):
                mark = tiling.tile_mark.replace("{tile}", str(row * columns + column + 1))
                place["tiles"].append(mark.replace("{row}", str(row + 1)).replace("{column}", str(column + 1)))
                if prompt_slots == "all":
                    place["tiles"] += [slots.index((row, column)) * n + k for k in range(h * w)]
            place["tiles"].append(tiling.row_mark)
    order = {"first": ("thumbnail", "tiles"), "last": ("tiles", "thumbnail"), "none": ("tiles",)}[tiling.thumbnail]
    return [part for name in order for part in place[name]]


def written(place, n, tiling):
    """A Place in the form of `place_by_hand`: texts that touch are joined, separators named."""
    parts = []
    for mark, visual in place.runs:
        parts += [mark, *(("separator" if tiling.separator and v % n == n - 1 else v) for v in visual.tolist())]
    return joined([*parts, place.after])


def joined(parts):
    found = [""]
    for part in parts:
        if isinstance(part, str) and part != "separator" and isinstance(found[-1], str) and found[-1] != "separator":
            found[-1] += part
        else:
            found.append(part)
    return [part for part in found if part != ""]


@given(tilings(), sizes, token_grids, st.sampled_from(("all", "thumbnail")))
@settings(max_examples=300, deadline=None)
def test_a_place_is_what_loops_make_of_it(tiling, size, token_grid, prompt_slots):
    pictures, n = pictures_of(tiling, token_grid, prompt_slots)
    cut = cut_of(size, TILE, pictures, ImagePreprocessing())
    by_hand = joined(place_by_hand(tiling, cut, token_grid, n, pictures.prompt_slots))
    if not any(isinstance(part, int) for part in by_hand):
        with pytest.raises(BadImage, match="so narrow that no visual token"):
            place_of(cut, n, pictures)
        return
    place = place_of(cut, n, pictures)
    if not cut.whole:
        assert written(place, n, tiling) == by_hand
    else:
        assert written(place, n + 1, tiling) == by_hand
    assert place.visual_tokens == cut.slots * n
    tokens = place.visual[place.visual % n < token_grid[0] * token_grid[1]]
    assert len(np.unique(tokens)) == len(tokens)
    if not tiling.separator and pictures.prompt_slots == "all":
        used = len(slots_by_hand(tiling, cut.grid)) - slots_by_hand(tiling, cut.grid).count("black")
        assert sorted(tokens) == list(range(used * n))


@given(tilings(), sizes)
@settings(max_examples=200, deadline=None)
def test_slots_are_numbered_as_they_are_filled(tiling, size):
    pictures, _ = pictures_of(tiling, (1, 1))
    cut = cut_of(size, TILE, pictures, ImagePreprocessing())
    slots = slots_by_hand(tiling, cut.grid)
    assert cut.slots == len(slots)
    if tiling.slots:
        assert cut.slots == tiling.slots
    tiles_of = cut.grid[0] * cut.grid[1]
    for slot, (number, rows, columns) in zip(slots, cut.tile_index.tolist(), strict=True):
        assert (rows, columns) == cut.grid
        if slot in ("whole", "thumbnail"):
            assert number == 0
        elif slot == "black":
            assert number > tiles_of
        else:
            assert divmod(number - 1, columns) == slot


@given(tilings(), sizes)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tiles_together_are_the_picture_on_its_canvas(processor, tiling, size):
    processor = dataclasses.replace(processor, pictures=Pictures(tiling, (1, 1)))
    image = picture(*size)
    cut, slots = processor.cut(image), processor.slots(image)
    pixels = decode(image)
    assert pixels.shape[:2] == size == cut.size
    black = np.zeros((*canvas_size(cut.grid, TILE), 3), np.uint8)
    lies = fitted_size(tiling, *size, cut.grid, TILE)
    laid = resize(pixels, (lies.rows, lies.columns), ImagePreprocessing())
    black[lies.top : lies.top + lies.rows, lies.left : lies.left + lies.columns] = laid
    assert slots.shape == (cut.slots, *TILE, 3)
    for number, slot in enumerate(slots_by_hand(tiling, cut.grid)):
        if slot == "thumbnail":
            wanted = resize(pixels, TILE, ImagePreprocessing())
        elif slot == "black":
            wanted = np.zeros((*TILE, 3), np.uint8)
        else:
            row, column = (0, 0) if slot == "whole" else slot
            wanted = black[row * 8 : row * 8 + 8, column * 6 : column * 6 + 6]
        np.testing.assert_array_equal(slots[number], wanted)


def picture(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image(data=cv2.imencode(".png", pixels)[1].tobytes())


def tiled(processor, tiling, token_grid=(1, 3), **fields):
    pictures, n = pictures_of(tiling, token_grid)
    return dataclasses.replace(processor, pictures=dataclasses.replace(pictures, **fields), prompt_tokens=n)


@given(tilings(), st.lists(sizes, min_size=1, max_size=3), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_marks_and_visual_tokens_stand_in_the_sequence_as_in_the_place(processor, tiling, shapes, bidirectional):
    template = dataclasses.replace(processor.template, bidirectional_images=bidirectional)
    processor = dataclasses.replace(tiled(processor, tiling), template=template)
    images = [picture(*size) for size in shapes]
    try:
        places = processor.places(Example(tuple(images)))
    except BadImage:
        assume(False)
    rendered = processor.render(Example((Text("да"), *images, Text("no", loss=True)), id="x"))
    check_slots(rendered, processor.prompt_tokens, processor.pictures)
    first = 0
    for number, place in enumerate(places):
        at = np.flatnonzero(rendered.pictures == number)
        ids, visual = [], []
        for mark, shown in place.runs:
            marks = template_ids(mark, processor.tokenizer) if mark else ()
            ids += [*marks, *[processor.tokenizer.image_id] * len(shown)]
            visual += [*[-1] * len(marks), *(shown + first).tolist()]
        behind = template_ids(place.after, processor.tokenizer) if place.after else ()
        assert rendered.tokens[at].tolist() == [*ids, *behind]
        assert rendered.visual_index[at].tolist() == [*visual, *[-1] * len(behind)]
        assert set(rendered.block_ids[at].tolist()) == {number + 1 if bidirectional else 0}
        assert at.tolist() == list(range(at[0], at[0] + len(at)))
        first += place.visual_tokens
    assert not (rendered.visual_index[rendered.pictures < 0] >= 0).any()
    assert size_of(rendered).images == rendered.slots == sum(place.cut.slots for place in places)


def test_a_chat_template_writes_marks_between_its_own_text():
    """SmolVLM's: neighbouring marks are encoded as one text, and what stands around pictures stands around them."""
    tokenizer = our_tokenizer("smollm", image=True)
    tiling = Tiling(
        grids=((1, 1), (1, 2), (2, 1)),
        thumbnail="last",
        tile_mark="<fake_token_around_image><row_{row}_col_{column}>",
        row_mark="\n",
        thumbnail_mark="\n<fake_token_around_image><global-img>",
        whole_mark="<fake_token_around_image><global-img>",
    )
    template = ChatTemplate(CHATML, image_after="<fake_token_around_image>")
    processor = Processor(tokenizer, template, ImagePreprocessing(), TILE, 2, Pictures(tiling, (1, 2)))
    asked = Text("circle", role="user"), Text("red", loss=True, role="assistant")
    rendered = processor.render(Example((picture(8, 12), picture(8, 6)), (asked, asked)))
    trunk = rendered.branch_ids == 0
    shown = "".join(tokenizer.id_to_piece(int(id)) for id in rendered.tokens[trunk]).replace("<0x0A>", "\n")
    assert shown.split("user\n", 1)[1] == (
        "<fake_token_around_image><row_1_col_1><image><image><fake_token_around_image><row_1_col_2><image><image>"
        "\n\n<fake_token_around_image><global-img><image><image><fake_token_around_image>"
        "<fake_token_around_image><global-img><image><image><fake_token_around_image>"
    )
    check_slots(rendered, 2, processor.pictures)
    inside = np.flatnonzero(rendered.pictures == 0)
    assert inside.tolist() == list(range(inside[0], inside[-1] + 1))
    assert tokenizer.id_to_piece(int(rendered.tokens[inside[0]])) == "<fake_token_around_image>"
    assert rendered.visual_index[inside[-1]] == 5
    uncut_pictures = dataclasses.replace(processor, pictures=Pictures()).render(Example((), (asked, asked)))
    assert rendered.loss.sum() == uncut_pictures.loss.sum() > 0


def test_without_prompt_tokens_a_picture_is_one_marker(processor):
    blind = dataclasses.replace(processor, prompt_tokens=0, pictures=Pictures(visible="all"))
    rendered = blind.render(Example((picture(8, 6), Text("a", loss=True), picture(8, 6), Text("b", loss=True))))
    at = np.flatnonzero(rendered.pictures >= 0)
    assert rendered.pictures[at].tolist() == [0, 1]
    assert (rendered.tokens[at] == processor.tokenizer.image_id).all()
    assert (rendered.visual_index == -1).all()
    assert rendered.slots == 2
    check_slots(rendered, 0, blind.pictures)
    lost = dataclasses.replace(rendered, pictures=np.where(rendered.pictures == 1, -1, rendered.pictures))
    with pytest.raises(BadRecord, match="0 places for visual tokens, but 2 pictures"):
        check_slots(lost, 0, blind.pictures)


def test_only_thumbnails_stand_in_the_sequence_where_tiles_are_seen_otherwise(processor):
    tiling = Tiling(grids=((1, 2),), thumbnail="last", tile_mark="u{tile}")
    hybrid = tiled(processor, tiling, prompt_slots="thumbnail", visible="last")
    rendered = hybrid.render(Example((picture(8, 12), Text("no", loss=True))))
    assert rendered.visual_index[rendered.visual_index >= 0].tolist() == [6, 7, 8]
    marks = (rendered.pictures == 0) & (rendered.visual_index < 0)
    assert processor.tokenizer.decode(rendered.tokens[marks].tolist()).replace(" ", "") == "u1u2"
    with pytest.raises(ValueError, match="only thumbnails go into the sequence"):
        Pictures(Tiling(thumbnail="none"), prompt_slots="thumbnail")


def test_a_place_that_is_not_as_the_cut_prescribes_is_refused(processor):
    processor = tiled(processor, Tiling(grids=((2, 2),), separator=True, fit="centre"), (2, 2))
    good = processor.render(Example((picture(30, 10), Text("no", loss=True)), id="a"))
    check_slots(good, processor.prompt_tokens, processor.pictures)
    shown = np.flatnonzero(good.visual_index >= 0)
    swapped, short = good.visual_index.copy(), good.visual_index.copy()
    swapped[shown[[4, 5]]] = swapped[shown[[5, 4]]]
    short[shown[-1]] = -1
    other = (dataclasses.replace(good.cuts[0], shown=None),)
    for changes in ({"visual_index": swapped}, {"visual_index": short}, {"cuts": other}, {"images": good.images * 2}):
        with pytest.raises(BadRecord, match="places for visual tokens, but") as error:
            check_slots(dataclasses.replace(good, **changes), processor.prompt_tokens, processor.pictures)
        assert error.value.record_id == "a"


@given(tilings(), st.lists(st.one_of(sizes, st.integers(1, 30)), min_size=1, max_size=8), st.integers(8, 60))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pieces_never_part_a_picture_and_hold_its_slots(processor, tiling, parts, length):
    processor = tiled(processor, tiling)
    trunk = [Text("да no " * part, loss=True) if isinstance(part, int) else picture(*part) for part in parts]
    try:
        whole = processor.render(Example(tuple(trunk), id="x", when_long="split"))
    except BadImage:
        assume(False)
    budget = Budget(length, 6, 8)
    try:
        pieces, _ = fit(whole, budget, "split", processor.tokenizer, processor.prompt_tokens)
    except BadRecord:
        most = max(np.bincount(whole.pictures[whole.pictures >= 0]), default=0)
        assert most + 2 > length - 1 or max(cut.slots for cut in whole.cuts) > 6
        return
    assert [image for piece in pieces for image in piece.images] == list(whole.images)
    assert [cut for piece in pieces for cut in piece.cuts] == list(whole.cuts)
    opening = len(pieces) > 1
    tokens = np.concatenate([pieces[0].tokens, *(piece.tokens[1:] for piece in pieces[1:])])
    assert tokens.tolist() == whole.tokens.tolist()
    for piece in pieces:
        check_slots(piece, processor.prompt_tokens, processor.pictures)
        assert budget.misfit(size_of(piece)) is None
        assert piece.pictures[0] < 0 or not opening


def test_a_picture_with_too_many_tiles_is_named(processor):
    processor = tiled(processor, Tiling(grids=((1, 3),)))
    image = dataclasses.replace(picture(10, 150))
    rendered = processor.render(Example((picture(8, 6), image, Text("no", loss=True)), id="x"))
    with pytest.raises(
        BadRecord, match=r"4 image slots for picture 1 of 8 x 6 pixels .*a row has 2: raise the stage's"
    ):
        fit(rendered, Budget(100, 2, 8), "refuse", processor.tokenizer, 3)
    with pytest.raises(
        BadRecord, match=r"8 image slots for 2 pictures, but a row has 6: raise the stage's data.images"
    ):
        fit(rendered, Budget(100, 6, 8), "refuse", processor.tokenizer, 3)


def test_a_picture_that_is_not_the_one_that_was_measured_is_bad(processor):
    processor = tiled(processor, Tiling())
    with pytest.raises(BadImage, match=r"is 10 x 10 pixels .* but was 20 x 10 when its tiles were counted"):
        processor.slots(picture(10, 10), processor.cut(picture(20, 10)))


def test_uncut_pictures_are_not_looked_at(processor):
    """Their bytes may be anything until they are decoded: no header is read while rows are packed."""
    assert processor.cut(Image(data=b"no picture")) == Cut()
    assert processor.places(Example((Image(path="/not/there"),)))[0] is uncut(processor.prompt_tokens)


def test_a_processor_with_tiles_comes_back_equal_and_old_files_load(processor, tmp_path):
    kept = tiled(processor, Tiling(grids=((2, 1),), slots=4, tile_mark="<{tile}>"), visible="group")
    kept.save(tmp_path)
    assert load_processor(tmp_path).pictures == kept.pictures
    file = tmp_path / "processor.json"
    plain = json.loads(file.read_text())
    del plain["pictures"]
    file.write_text(json.dumps(plain))
    assert load_processor(tmp_path).pictures == Pictures()


def test_the_drawn_places():
    """Both layouts of the module's docstring."""
    marked = Pictures(Tiling(grids=((2, 2),), tile_mark="<tile_{tile}>"), (2, 2))
    place = place_of(Cut((8, 8), (2, 2), 5, "first"), 4, marked)
    assert [(mark, visual.tolist()) for mark, visual in place.runs[:3]] == [
        ("", [0, 1, 2, 3]),
        ("<tile_1>", [4, 5, 6, 7]),
        ("<tile_2>", [8, 9, 10, 11]),
    ]
    assert all(drawn in tiles.__doc__ for drawn in ("0 1 2 3  <tile_1> 4 5 6 7", "<tile_2> 8 9 10 11"))
    rows = place_of(Cut((8, 8), (2, 2), 5, "first"), 5, Pictures(Tiling(grids=((2, 2),), separator=True), (2, 2)))
    assert rows.visual.tolist()[:14] == [0, 1, 2, 3, 5, 6, 10, 11, 4, 7, 8, 12, 13, 4]
    assert all(drawn in tiles.__doc__ for drawn in ("0 1 2 3  5 6 10 11 4", "7 8 12 13 4"))
