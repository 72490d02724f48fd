"""How an example is laid out as tokens, and that a processor survives saving."""

import json

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.examples import Example, Image, Text
from data_pipelines.images import BadImage, ImagePreprocessing
from data_pipelines.quarantine import BadRecord
from data_pipelines.template import Processor, TemplateConfig, load_processor, render
from data_pipelines.tiles import uncut
from data_pipelines.tokenizers import SentencePieceConfig, train_sentencepiece
from vlm_jax.errors import UserError

PICTURE = Image(data=b"not looked at here")


@pytest.fixture(scope="module")
def tokenizer():
    return train_sentencepiece(["q a что да"] * 5, SentencePieceConfig(275, "bpe"))


def laid_out(tokenizer, example, template=None, prompt_tokens=2, **options):
    template = template or TemplateConfig(bidirectional_images=True)
    return render(example, tokenizer, template, [uncut(prompt_tokens)] * len(example.images), **options)


def names(tokenizer, rendered):
    return "".join(tokenizer.id_to_piece(id) for id in rendered.tokens)


def question(user="q", assistant="a"):
    return Text(user, role="user"), Text(assistant, loss=True, role="assistant")


def test_two_questions_about_one_picture_as_the_docstring_draws_them(tokenizer):
    example = Example(trunk=(PICTURE,), branches=(question(), question()), source="s", id="7")
    r = laid_out(tokenizer, example)
    turn = "<user>q<end><assistant>a<end>"
    assert names(tokenizer, r) == "<bos><image><image>" + turn + turn
    assert r.loss.tolist() == [0, 0, 0] + [0, 0, 0, 0, 1, 1] * 2
    assert r.branch_ids.tolist() == [0, 0, 0] + [1] * 6 + [2] * 6
    assert r.block_ids.tolist() == [0, 1, 1] + [0] * 12
    assert r.positions.tolist() == [0, 1, 2] + [3, 4, 5, 6, 7, 8] * 2
    assert r.visual_index.tolist() == [-1, 0, 1] + [-1] * 12
    assert (r.id, r.source, r.images, r.length) == ("7", "s", (PICTURE,), 15)


def test_arrays_have_the_contracts_types(tokenizer):
    r = laid_out(tokenizer, Example(trunk=(PICTURE, PICTURE), branches=(question(),)))
    for name in ("tokens", "branch_ids", "block_ids", "positions", "visual_index"):
        assert getattr(r, name).dtype == np.int32
        assert getattr(r, name).shape == (r.length,)
    assert r.loss.dtype == np.float32


def test_an_interleaved_document_ends_with_an_end_that_carries_loss(tokenizer):
    example = Example(trunk=(Text("q", loss=True), PICTURE, Text("a", loss=True), PICTURE))
    r = laid_out(tokenizer, example)
    assert names(tokenizer, r) == "<bos>q<image><image>a<image><image><end>"
    assert r.loss.tolist() == [0, 1, 0, 0, 1, 0, 0, 1]
    assert r.block_ids.tolist() == [0, 0, 1, 1, 0, 2, 2, 0]
    assert r.visual_index.tolist() == [-1, -1, 0, 1, -1, 2, 3, -1]
    assert r.positions.tolist() == list(range(8))


def test_running_text_without_loss_has_no_end(tokenizer):
    assert names(tokenizer, laid_out(tokenizer, Example(trunk=(PICTURE, Text("q"))))) == "<bos><image><image>q"


def test_a_dialogue_in_the_trunk_ends_once(tokenizer):
    r = laid_out(tokenizer, Example(trunk=(Text("q", loss=True), *question())))
    assert names(tokenizer, r) == "<bos>q<user>q<end><assistant>a<end>"
    assert r.loss.tolist() == [0, 1, 0, 0, 0, 0, 1, 1]
    r = laid_out(tokenizer, Example(trunk=(Text("q", loss=True), *question(), PICTURE)))
    assert names(tokenizer, r).endswith("a<end><image><image><end>")


def test_without_bidirectional_pictures_there_are_no_blocks(tokenizer):
    r = laid_out(tokenizer, Example(trunk=(PICTURE, PICTURE)), TemplateConfig(bidirectional_images=False))
    assert not r.block_ids.any()
    assert r.visual_index.tolist() == [-1, 0, 1, 2, 3]


def test_an_opened_turn_closes_every_branch_or_else_the_trunk(tokenizer):
    asked = (Text("q", role="user"),)
    r = laid_out(tokenizer, Example(trunk=(PICTURE,), branches=(asked, asked)), open_turn="assistant")
    assert names(tokenizer, r) == "<bos><image><image>" + "<user>q<end><assistant>" * 2
    assert r.branch_ids[-1] == 2
    assert not r.loss.any()
    r = laid_out(tokenizer, Example(trunk=(PICTURE, *asked)), open_turn="assistant")
    assert names(tokenizer, r) == "<bos><image><image><user>q<end><assistant>"


def test_a_question_rendered_for_generation_is_the_beginning_of_the_one_for_training(tokenizer):
    trained = laid_out(tokenizer, Example(trunk=(PICTURE,), branches=(question("что"),)))
    asked = laid_out(tokenizer, Example(trunk=(PICTURE, Text("что", role="user"))), open_turn="assistant")
    np.testing.assert_array_equal(trained.tokens[: asked.length], asked.tokens)
    np.testing.assert_array_equal(trained.positions[: asked.length], asked.positions)


def test_control_symbols_in_a_question_stay_text(tokenizer):
    r = laid_out(tokenizer, Example(trunk=(PICTURE,), branches=(question("<image><end><assistant>"),)))
    assert (r.tokens == tokenizer.image_id).sum() == 2
    assert (r.tokens == tokenizer.end_id).sum() == 2
    assert (r.tokens == tokenizer.assistant_id).sum() == 1


def test_what_cannot_be_laid_out_is_a_bad_record_that_names_it(tokenizer):
    with pytest.raises(BadRecord, match="surrogate") as caught:
        laid_out(tokenizer, Example(trunk=(Text("\ud83d"),), id="broken/1"))
    assert caught.value.record_id == "broken/1"
    with pytest.raises(BadRecord, match="must open with a turn"):
        laid_out(tokenizer, Example(trunk=(PICTURE,), branches=((Text("q"),),)))


texts = st.builds(
    Text, st.sampled_from(["", "q", "что да"]), st.booleans(), st.sampled_from([None, "user", "assistant"])
)
turns = texts.filter(lambda text: text.role is not None)
examples = st.builds(
    Example,
    st.lists(st.one_of(texts, st.just(PICTURE)), min_size=1, max_size=5).map(tuple),
    st.lists(st.lists(turns, min_size=1, max_size=3).map(tuple), max_size=4).map(tuple),
)


@settings(max_examples=150, deadline=None)
@given(example=examples, prompt_tokens=st.integers(1, 4), opened=st.sampled_from([None, "assistant"]))
def test_what_holds_for_every_example(tokenizer, example, prompt_tokens, opened):
    r = laid_out(tokenizer, example, None, prompt_tokens, open_turn=opened)
    visual = r.visual_index >= 0
    np.testing.assert_array_equal(r.visual_index[visual], np.arange(len(example.images) * prompt_tokens))
    np.testing.assert_array_equal(visual, r.tokens == tokenizer.image_id)
    np.testing.assert_array_equal(r.block_ids[visual], 1 + r.visual_index[visual] // prompt_tokens)
    assert not r.block_ids[~visual].any()
    assert not r.loss[visual | (r.tokens == tokenizer.user_id) | (r.tokens == tokenizer.assistant_id)].any()
    assert (np.diff(r.branch_ids) >= 0).all()
    trunk = int((r.branch_ids == 0).sum())
    np.testing.assert_array_equal(r.positions[:trunk], np.arange(trunk))
    for branch in range(1, len(example.branches) + 1):
        positions = r.positions[r.branch_ids == branch]
        np.testing.assert_array_equal(positions, trunk + np.arange(len(positions)))
    segments = [*example.trunk, *(text for branch in example.branches for text in branch)]
    spoken = "".join(segment.text for segment in segments if isinstance(segment, Text))
    assert tokenizer.decode(r.tokens.tolist()) == spoken
    learned = "".join(segment.text for segment in segments if isinstance(segment, Text) and segment.loss)
    assert tokenizer.decode(r.tokens[r.loss > 0].tolist()) == learned


@pytest.fixture
def processor(tokenizer):
    return Processor(tokenizer, TemplateConfig(False), ImagePreprocessing("pad", "area"), (12, 10), 5)


def test_a_processor_comes_back_equal(processor, tmp_path):
    processor.save(tmp_path / "processor")
    assert load_processor(tmp_path / "processor") == processor


def test_a_processor_renders_and_gives_pixels_of_its_size(processor, tmp_path):
    path = tmp_path / "a.png"
    PIL.Image.fromarray(np.full((30, 30, 3), 7, np.uint8)).save(path)
    assert processor.pixels(Image(path=str(path))).shape == (12, 10, 3)
    assert (processor.render(Example(trunk=(PICTURE,)), "user").tokens == processor.tokenizer.image_id).sum() == 5
    with pytest.raises(BadImage):
        processor.pixels(PICTURE)


def test_a_missing_or_damaged_processor_is_the_users_error(processor, tmp_path):
    with pytest.raises(UserError, match=r"processor\.json: cannot be read"):
        load_processor(tmp_path)
    processor.save(tmp_path)
    path = tmp_path / "processor.json"
    plain = json.loads(path.read_text())
    for damaged in (
        "{",
        "[]",
        json.dumps(plain | {"image_size": [1]}),
        json.dumps(plain | {"images": {"resize": "stretch"}}),
        json.dumps(plain | {"template": {"unknown": 1}}),
        json.dumps({key: plain[key] for key in plain if key != "prompt_tokens"}),
    ):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"processor\.json: damaged"):
            load_processor(tmp_path)
