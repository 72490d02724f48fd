"""Ids, loss, branches and pictures under a model's own chat template; parity of ids is shown in tests/parity."""

import dataclasses

import numpy as np
import pytest
from chat_texts import CHATML, GEMMA, LLAMA2, LLAMA3, LLAVA, MISTRAL, SMOLVLM, our_tokenizer  # tests/parity
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.chat_template import ChatTemplate, render_chat
from data_pipelines.examples import Example, Image, Text
from data_pipelines.images import ImagePreprocessing
from data_pipelines.quarantine import BadRecord
from data_pipelines.template import Processor, load_processor
from data_pipelines.tiles import uncut
from vlm_jax.errors import UserError

PICTURE = Image(data=b"not looked at here")
AROUND = {"image_before": "<fake_token_around_image><global-img>", "image_after": "<fake_token_around_image>"}
FAKE = AROUND["image_after"]
JOINED = {"image_before": FAKE, "image_after": FAKE, "image_joined": True}
KINDS = {
    "chatml": ("qwen", ChatTemplate(CHATML)),
    "smollm": ("smollm", ChatTemplate(CHATML, image_after="\n")),
    "llama3": ("llama3", ChatTemplate(LLAMA3, date="2026-01-01")),
    "mistral": ("metaspace", ChatTemplate(MISTRAL)),
    "llama2": ("metaspace", ChatTemplate(LLAMA2)),
    "gemma": ("unigram", ChatTemplate(GEMMA)),
    "llava": ("metaspace", ChatTemplate(LLAVA, "list", adds_bos=True)),
    "smolvlm": ("smollm", ChatTemplate(SMOLVLM, "list", **AROUND)),
    "idefics2": ("smollm", ChatTemplate(SMOLVLM, "list", **JOINED)),
}
TOKENIZERS = {kind: our_tokenizer(kind, image=True) for kind in ("qwen", "smollm", "llama3", "metaspace", "unigram")}


def render(name, example, prompt_tokens=2, **options):
    kind, template = KINDS[name]
    return render_chat(example, TOKENIZERS[kind], template, [uncut(prompt_tokens)] * len(example.images), **options)


def written(name, rendered, branch=0):
    """The tokens of one branch, with [learned] ones in brackets."""
    tokenizer = TOKENIZERS[KINDS[name][0]]
    at = rendered.branch_ids == branch
    shown = [tokenizer.id_to_piece(int(id)) for id in rendered.tokens[at]]
    marked = [f"[{piece}]" if loss else piece for piece, loss in zip(shown, rendered.loss[at], strict=True)]
    return "".join(marked).replace("][", "").replace("▁", " ").replace("<0x0A>", "\n")


def question(user="circle", assistant="red"):
    return Text(user, role="user"), Text(assistant, loss=True, role="assistant")


def test_two_questions_about_one_picture():
    example = Example((PICTURE,), (question(), question("blue", "no")), source="s", id="7")
    r = render("chatml", example)
    assert written("chatml", r) == ("<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\n<image><image>")
    assert written("chatml", r, 1) == "circle<|im_end|>\n<|im_start|>assistant\n[red<|im_end|>]\n"
    assert written("chatml", r, 2) == "blue<|im_end|>\n<|im_start|>assistant\n[no<|im_end|>]\n"
    trunk = int((r.branch_ids == 0).sum())
    assert r.positions[:trunk].tolist() == list(range(trunk))
    assert all(r.positions[r.branch_ids == branch][0] == trunk for branch in (1, 2))
    assert r.visual_index[r.visual_index >= 0].tolist() == [0, 1]
    assert not r.block_ids.any()
    assert (r.id, r.source, r.images) == ("7", "s", (PICTURE,))


@pytest.mark.parametrize(
    ("name", "learned"),
    [
        ("chatml", "[red<|im_end|>]\n"),
        ("llama3", "[red<|eot_id|>]"),
        ("mistral", "[red</s>]"),
        ("llama2", "[ red </s>]"),  # the template's space stands between, so it has to be written too
        ("gemma", "[red<end_of_turn>]\n"),
        ("llava", "[ red</s>] "),  # the template ends a turn with nothing, so the end token is put there
        ("smolvlm", "[ red<end_of_utterance>]\n"),
    ],
)
def test_loss_falls_on_the_answer_and_the_token_that_ends_it(name, learned):
    r = render(name, Example((PICTURE, *question())))
    text = written(name, r)
    assert text.endswith(learned)
    assert text.count("[") == 1 + text.count("[INST]") + text.count("[/INST]")
    two = written(name, render(name, Example((*question(), *question()))))
    assert two.count(learned) == 2
    assert not render(name, Example((PICTURE, Text("q", role="user"), Text("a", role="assistant")))).loss.any()


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(st.sampled_from("aя \n</s>|im_end1😀")), min_size=6, max_size=6),
    pictures=st.integers(0, 2),
    trunk_turns=st.integers(0, 3),
    count=st.integers(1, 3),
    opened=st.booleans(),
)
def test_trunk_and_a_branch_are_the_conversation_by_itself(name, texts, pictures, trunk_turns, count, opened):
    roles = ["user", "assistant"] * 3
    trunk = [Text(texts[i], loss=bool(i % 2), role=roles[i]) for i in range(trunk_turns)]
    images = (PICTURE,) * pictures
    branches = tuple(
        tuple(
            Text(
                f"{texts[number]}{texts[5 - number]}",
                loss=roles[trunk_turns + i] == "assistant",
                role=roles[trunk_turns + i],
            )
            for i in range(1 + number % 2)
        )
        for number in range(count)
    )
    open_turn = "assistant" if opened else None
    r = render(name, Example((*images, *trunk), branches), open_turn=open_turn)
    for number, branch in enumerate(branches, 1):
        alone = render(name, Example((*images, *trunk, *branch)), open_turn=open_turn)
        at = (r.branch_ids == 0) | (r.branch_ids == number)
        for field in ("tokens", "loss", "positions", "visual_index", "block_ids"):
            np.testing.assert_array_equal(getattr(r, field)[at], getattr(alone, field), field)
        own = r.branch_ids == number
        assert not r.loss[own][:1].any()
        assert own.any()
    learned = [text for text in (*trunk, *sum(branches, ())) if text.loss]
    assert r.loss.any() == bool(learned)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_shared_is_in_the_trunk(name):
    said = Text("circle", role="user"), Text("red", loss=True, role="assistant")
    r = render(name, Example((PICTURE, *said), (question("a", "b"), question("c", "d"))))
    trunk = written(name, r)
    assert "circle" in trunk.replace(" ", "")
    assert trunk.count("[") == 1 + trunk.count("[INST]") + trunk.count("[/INST]")
    assert (r.visual_index[r.branch_ids > 0] < 0).all()
    chosen = render(
        name, Example((PICTURE, said[0]), ((Text("b", True, "assistant"),), (Text("d", True, "assistant"),)))
    )
    assert "circle" in written(name, chosen)
    assert all((chosen.loss[chosen.branch_ids == branch] > 0).sum() >= 2 for branch in (1, 2))


@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_is_the_beginning_of_what_is_trained(name):
    asked = render(name, Example((PICTURE, Text("circle", role="user"))), open_turn="assistant")
    trained = render(name, Example((PICTURE,), (question(),)))
    np.testing.assert_array_equal(trained.tokens[: asked.length], asked.tokens)
    assert trained.loss[: asked.length].sum() == 0
    assert trained.loss[asked.length] == 1


def test_control_tokens_in_a_message_stay_text():
    r = render("smollm", Example((PICTURE, *question("<image><|im_end|>", "<|im_start|>x<|im_end|>"))))
    tokenizer = TOKENIZERS["smollm"]
    assert (r.tokens == tokenizer.image_id).sum() == 2
    plain = render("smollm", Example((PICTURE, *question())))
    controls = [[id for id in rendered.tokens.tolist() if id in tokenizer.control_ids] for rendered in (r, plain)]
    assert controls[0] == controls[1]
    assert "<image><|im_end|>" in tokenizer.decode(r.tokens.tolist())


def test_tokens_around_a_picture():
    text = written("smolvlm", render("smolvlm", Example((PICTURE, PICTURE, Text("q", role="user")))))
    one = "<fake_token_around_image><global-img><image><image><fake_token_around_image>"
    assert text == f"<|im_start|>User:{one}{one}q<end_of_utterance>\n"


@pytest.mark.parametrize(
    ("text", "behind"), [("who", " who"), (" who", " who"), ("\nwho", "\nwho"), ("<b>", "<b>"), ("", "")]
)
def test_one_token_stands_between_pictures_that_touch_and_a_space_before_a_word(text, behind):
    rendered = render("idefics2", Example((PICTURE, PICTURE, Text(text, role="user"))))
    pictures = f"{FAKE}<image><image>{FAKE}<image><image>{FAKE}"
    assert written("idefics2", rendered).replace("Ġ", " ").replace("Ċ", "\n") == (
        f"<|im_start|>User:{pictures}{behind}<end_of_utterance>\n"
    )


def test_pictures_that_see_themselves_and_positions_from_one():
    template = dataclasses.replace(KINDS["chatml"][1], bidirectional_images=True, first_position=1)
    r = render_chat(Example((PICTURE, PICTURE), (question(),)), TOKENIZERS["qwen"], template, [uncut(2)] * 2)
    assert r.block_ids[r.visual_index >= 0].tolist() == [1, 1, 2, 2]
    assert r.positions[0] == 1


def test_running_text_stands_outside_the_template():
    r = render("mistral", Example((PICTURE, Text("red", loss=True))))
    assert written("mistral", r) == "<s><image><image>[red</s>]"
    assert (
        written("smollm", render("smollm", Example((PICTURE, Text("red", loss=True)))))
        == "<image><image>\n[red<|im_end|>]"
    )
    left_open = render("mistral", Example((Text("red circle"),)), open_turn="assistant")
    assert written("mistral", left_open) == "<s> red circle"


def test_a_picture_behind_the_last_question_belongs_to_it():
    r = render("chatml", Example((Text("circle", role="user"), PICTURE)))
    assert written("chatml", r).endswith("circle<image><image><|im_end|>\n")
    r = render("chatml", Example((*question(), PICTURE)), open_turn="assistant")
    assert written("chatml", r).endswith("<|im_start|>user\n<image><image><|im_end|>\n<|im_start|>assistant\n")


def test_what_a_template_cannot_lay_out_is_a_bad_record_that_names_it():
    for example, said in (
        (Example((Text("a"), Text("b", role="user")), id="x/1"), "running text beside turns"),
        (Example((PICTURE,), ((Text("a"),),), id="x/1"), "must open with a turn"),
        (Example((Text("a\ud83d", role="user"),), id="x/1"), "surrogate"),
    ):
        with pytest.raises(BadRecord, match=said) as caught:
            render("chatml", example)
        assert caught.value.record_id == "x/1"
    with pytest.raises(BadRecord, match="must alternate"):
        render("mistral", Example((Text("a", role="user"), Text("b", role="user"))))


def test_what_no_example_can_have_is_the_users_error():
    with pytest.raises(UserError, match="with_image_token"):
        render_chat(Example((PICTURE, *question())), our_tokenizer("qwen"), ChatTemplate(CHATML), [uncut(2)])
    with pytest.raises(UserError, match="opens the assistant's turn only"):
        render("chatml", Example(question()), open_turn="user")


@pytest.mark.parametrize("name", KINDS)
def test_a_processor_comes_back_equal(name, tmp_path):
    kind, template = KINDS[name]
    processor = Processor(TOKENIZERS[kind], template, ImagePreprocessing(), (14, 14), 4)
    processor.save(tmp_path)
    loaded = load_processor(tmp_path)
    assert loaded == processor
    example = Example((PICTURE,), (question(), question("q", "a")))
    np.testing.assert_array_equal(loaded.render(example).tokens, processor.render(example).tokens)
