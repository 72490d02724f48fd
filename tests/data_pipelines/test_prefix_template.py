"""PaliGemma's layout; that ids are its processor's is shown in tests/parity."""

import numpy as np
import pytest
from chat_texts import our_tokenizer  # tests/parity/chat_texts.py

from data_pipelines.examples import Example, Image, Text
from data_pipelines.images import ImagePreprocessing
from data_pipelines.packing import Planes
from data_pipelines.prefix_template import PrefixTemplate, render_prefix
from data_pipelines.quarantine import BadRecord
from data_pipelines.template import Processor, load_processor
from data_pipelines.tiles import uncut
from vlm_jax.errors import UserError

PICTURE = Image(data=b"not looked at here")
TOKENIZER = our_tokenizer("unigram", image=True)


def render(example, **options):
    return render_prefix(example, TOKENIZER, PrefixTemplate(), [uncut(2)] * len(example.images), **options)


def turns(prompt="circle", answer="red"):
    return Text(prompt, role="user"), Text(answer, loss=True, role="assistant")


def test_the_layout_is_as_the_docstring_draws_it():
    prompt, answer = len(TOKENIZER.encode("circle\n")), len(TOKENIZER.encode("red"))
    r = render(Example((PICTURE, *turns())))
    assert TOKENIZER.decode(r.tokens) == "circle\nred"
    assert r.tokens[:3].tolist() == [TOKENIZER.image_id] * 2 + [TOKENIZER.bos_id]
    assert r.tokens[-1] == TOKENIZER.end_id
    assert r.loss.tolist() == [0] * (3 + prompt) + [1] * (answer + 1)
    assert r.block_ids.tolist() == [1] * (3 + prompt) + [0] * (answer + 1)
    assert r.positions.tolist() == list(range(1, r.length + 1))
    asked = render(Example((PICTURE, turns()[0])), open_turn="assistant")
    np.testing.assert_array_equal(asked.tokens, r.tokens[: 3 + prompt])


def test_running_text_with_loss_is_an_answer_without_a_prompt():
    r = render(Example((PICTURE, Text("red", loss=True))))
    assert TOKENIZER.decode(r.tokens) == "\nred"
    assert r.loss.sum() == 1 + len(TOKENIZER.encode("red"))


def test_branches_have_their_own_places_of_one_picture():
    r = render(Example((PICTURE,), (turns(), turns("blue", "no"))))
    for number, branch in enumerate((turns(), turns("blue", "no")), 1):
        alone = render(Example((PICTURE, *branch)))
        at = r.branch_ids == number
        for field in ("tokens", "loss", "positions", "visual_index"):
            np.testing.assert_array_equal(getattr(r, field)[at], getattr(alone, field))
        np.testing.assert_array_equal(r.block_ids[at], alone.block_ids * number)
    Planes.empty(1, r.length).write(0, [r], 2)


@pytest.mark.parametrize(
    "trunk",
    [
        (*turns(), *turns()),
        (Text("a", role="user"), PICTURE),
        (turns()[1], turns()[0]),
        (Text("a", role="system"), Text("b", role="user")),
    ],
)
def test_other_forms_are_bad_records(trunk):
    with pytest.raises(BadRecord, match="pictures, then one prompt, then one answer"):
        render(Example(trunk, id="x"))


def test_a_tokenizer_without_what_is_needed_is_the_users_error():
    with pytest.raises(UserError, match="no <bos>"):
        render_prefix(Example(turns()), our_tokenizer("qwen", image=True), PrefixTemplate(), [])


def test_a_processor_comes_back_equal(tmp_path):
    processor = Processor(TOKENIZER, PrefixTemplate(prompt_end=" ", first_position=3), ImagePreprocessing(), (4, 4), 2)
    processor.save(tmp_path)
    assert load_processor(tmp_path) == processor
