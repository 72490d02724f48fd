"""Processors of Hugging Face directories, in and out, without torch; parity with transformers' is in tests/parity."""

import dataclasses
import json

import numpy as np
import pytest
from chat_texts import CHATML, GEMMA, LLAVA, our_tokenizer  # tests/parity/chat_texts.py
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.examples import Example, Image, Text
from data_pipelines.images import ImagePreprocessing
from data_pipelines.quarantine import BadRecord
from data_pipelines.template import ChatTemplate, PrefixTemplate, Processor, TemplateConfig
from data_pipelines.tokenizers import SentencePieceConfig, train_sentencepiece
from vlm_jax.convert.chat_programs import layout_of
from vlm_jax.convert.processor_files import as_huggingface
from vlm_jax.convert.processors import chat_template_for, has_tokenizer, load_processor_hf, save_processor_hf
from vlm_jax.errors import UserError
from vlm_jax.models.adapters import MLPAdapterConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vit import ConvStem, PatchStem, ViTConfig
from vlm_jax.models.vlm import PromptLayout, VLMConfig

PICTURE = Image(data=b"not looked at here")
TEXTS = [
    "Is there a red circle in the picture?",
    "Есть ли на картинке красный круг?",
    "  two  spaces,  и  ещё  два",
    "def f(x):\n\treturn x + 1  # 12345",
] * 10
TRAINED = {kind: train_sentencepiece(TEXTS, SentencePieceConfig(320, kind)) for kind in ("unigram", "bpe")}
EQUAL = {kind: as_huggingface(tokenizer) for kind, tokenizer in TRAINED.items()}
IMAGES = ImagePreprocessing("squash", "pillow_bicubic")


def model(vocabulary, adapter=MLPAdapterConfig(), **options):
    encoder = ViTConfig((28, 28), PatchStem(7), 24, 2, 3, 40)
    return VLMConfig(DecoderConfig(vocabulary, 36, 2, 6, 2, 10, 20, context=99), encoder, adapter, **options)


def llm(vocabulary):
    return VLMConfig(DecoderConfig(vocabulary, 36, 2, 6, 2, 10, 20))


def turns(count=3):
    roles = ["user", "assistant"] * 2
    return tuple(Text(f"вопрос {number}  x", role=role) for number, role in enumerate(roles[:count]))


@pytest.mark.parametrize("kind", TRAINED)
@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text(st.sampled_from("".join(TEXTS) + "😀▁<0x41>")))
def test_a_trained_tokenizer_has_an_equal_of_the_other_library(kind, text):
    ours, equal = TRAINED[kind], EQUAL[kind]
    assert equal.encode(text) == ours.encode(text)
    assert equal.decode(equal.encode(text)) == text


def test_ids_of_control_tokens_stay():
    for kind, ours in TRAINED.items():
        names = ("vocabulary_size", "pad_id", "bos_id", "end_ids", "image_id", "control_ids")
        assert [getattr(ours, name) for name in names] == [getattr(EQUAL[kind], name) for name in names]


@pytest.mark.parametrize("kind", TRAINED)
def test_control_tokens_as_a_chat_template_come_back_with_the_same_ids(kind, tmp_path):
    ours = Processor(TRAINED[kind], TemplateConfig(False), IMAGES, (28, 28), 16)
    config = model(320, layout=layout_of(ours))
    save_processor_hf(ours, config, tmp_path)
    again = load_processor_hf(tmp_path, config)
    assert isinstance(again.template, ChatTemplate)
    assert again.images == IMAGES
    for count in (1, 2, 3):
        for open_turn in (None, "assistant"):
            example = Example((PICTURE, PICTURE, *turns(count)))
            np.testing.assert_array_equal(
                again.render(example, open_turn).tokens, ours.render(example, open_turn).tokens
            )
    running = Example((PICTURE, Text("red", loss=True)))
    np.testing.assert_array_equal(again.render(running).tokens, ours.render(running).tokens)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 99


def test_an_llm_goes_out_and_comes_in(tmp_path):
    tokenizer = our_tokenizer("unigram")
    config = llm(tokenizer.vocabulary_size)
    ours = Processor(tokenizer, chat_template_for(GEMMA, tokenizer), ImagePreprocessing(), (0, 0), 0)
    save_processor_hf(ours, config, tmp_path)
    assert not (tmp_path / "processor_config.json").exists()
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [tokenizer.end_id]
    again = load_processor_hf(tmp_path, config)
    assert again.template == ours.template
    # The token that ends a turn is not the one that ends a text, and both stop generation.
    assert [again.tokenizer.id_to_piece(id) for id in again.tokenizer.end_ids] == ["</s>", "<end_of_turn>"]


@pytest.mark.parametrize("after", ["", "\n"])
def test_text_around_pictures_goes_into_the_program(tmp_path, after):
    tokenizer = our_tokenizer("smollm", image=True)
    ours = Processor(tokenizer, ChatTemplate(CHATML, image_after=after), IMAGES, (28, 28), 16)
    config = model(tokenizer.vocabulary_size, layout=layout_of(ours))
    save_processor_hf(ours, config, tmp_path)
    again = load_processor_hf(tmp_path, config)
    assert (again.template.contents, again.template.image_after) == ("list", "")
    example = Example((PICTURE, *turns()))
    np.testing.assert_array_equal(again.render(example).tokens, ours.render(example).tokens)


def test_where_a_chat_template_may_stand(tmp_path):
    tokenizer = our_tokenizer("qwen")
    config = llm(tokenizer.vocabulary_size)
    tokenizer.save(tmp_path)
    plain = json.loads((tmp_path / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**plain, "chat_template": named}))
    assert load_processor_hf(tmp_path, config).template.jinja == CHATML
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": LLAVA}))
    assert load_processor_hf(tmp_path, config).template == ChatTemplate(LLAVA, "list", image="")
    (tmp_path / "chat_template.jinja").write_text(GEMMA)
    assert load_processor_hf(tmp_path, config).template.jinja == GEMMA


def test_a_base_model_takes_running_text_and_says_so(tmp_path):
    tokenizer = our_tokenizer("metaspace")
    tokenizer.save(tmp_path)
    processor = load_processor_hf(tmp_path, llm(tokenizer.vocabulary_size))
    assert processor.render(Example((Text("circle"),))).tokens[0] == tokenizer.bos_id
    with pytest.raises(BadRecord, match="brings no chat template"):
        processor.render(Example(turns(1)), "assistant")
    save_processor_hf(processor, llm(tokenizer.vocabulary_size), tmp_path / "out")
    assert not (tmp_path / "out" / "chat_template.jinja").exists()


def test_the_layout_decides_what_the_prompt_is_like(tmp_path):
    tokenizer = our_tokenizer("unigram", image=True)
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(GEMMA)
    layout = PromptLayout(tokenizer.image_id, "prompt", 1)
    config = model(tokenizer.vocabulary_size, layout=layout)
    prefix = load_processor_hf(tmp_path, config)
    assert prefix.template == PrefixTemplate()
    assert layout_of(prefix) == layout
    layout = PromptLayout(5, "images", 2)
    seeing = load_processor_hf(tmp_path, dataclasses.replace(config, layout=layout))
    assert (seeing.template.bidirectional_images, seeing.template.first_position) == (True, 2)
    assert layout_of(seeing) == layout


def test_what_does_not_fit_the_model_is_the_users_error(tmp_path):
    tokenizer = our_tokenizer("smollm", image=True)
    ours = Processor(tokenizer, ChatTemplate(CHATML), IMAGES, (28, 28), 16)
    config = model(tokenizer.vocabulary_size, layout=layout_of(ours))
    save_processor_hf(ours, config, tmp_path)
    size = tokenizer.vocabulary_size

    def changed(part, **fields):
        return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **fields)})

    for wrong, said in (
        (changed("decoder", vocabulary_size=size - 1), f"ids up to {size - 1}, but the model embeds {size - 1}"),
        (changed("decoder", vocabulary_size=7), "the model embeds 7"),
        (changed("encoder", mean=(0.1, 0.2, 0.3)), "image_mean is"),
        (changed("encoder", image_size=(35, 35)), "size is"),
        (changed("layout", image_token=size + 9), "outside the model's vocabulary"),
    ):
        with pytest.raises(UserError, match=said):
            load_processor_hf(tmp_path, wrong)
    roomy = dataclasses.replace(changed("decoder", vocabulary_size=size + 9), layout=PromptLayout(size + 3))
    with pytest.raises(UserError, match=f"no token has the id {size + 3}"):
        load_processor_hf(tmp_path, roomy)


def test_what_has_no_processor_outside_is_the_users_error(tmp_path):
    tokenizer = our_tokenizer("smollm", image=True)
    ours = Processor(tokenizer, ChatTemplate(CHATML), IMAGES, (28, 28), 16)
    idefics3 = model(tokenizer.vocabulary_size, MLPAdapterConfig(layers=1, bias=False))
    with pytest.raises(UserError, match="puts <fake_token_around_image><global-img> before"):
        save_processor_hf(ours, idefics3, tmp_path)
    stem = dataclasses.replace(idefics3, encoder=ViTConfig((32, 32), ConvStem(), 24, 2, 3, 40))
    with pytest.raises(UserError, match="cannot be written in Hugging Face format"):
        save_processor_hf(ours, stem, tmp_path)
    assert not has_tokenizer(tmp_path)
