"""Whole processors, from a picture's file and a conversation to ids and pixels: in from transformers, and out to it."""

import dataclasses
import io
import json

import numpy as np
import PIL.Image
import pytest
from chat_texts import BOS, CHATML, ENDS, LLAVA, SMOLVLM, build_tokenizer, our_tokenizer
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    Idefics3Processor,
    LlavaProcessor,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from data_pipelines.examples import Example, Image, Text
from data_pipelines.images import ImagePreprocessing
from data_pipelines.template import ChatTemplate, PrefixTemplate, Processor, TemplateConfig
from data_pipelines.tokenizers import SentencePieceConfig, train_sentencepiece
from vlm_jax.convert.chat_programs import IMAGE_AFTER, IMAGE_BEFORE, layout_of
from vlm_jax.convert.hf import find_writer
from vlm_jax.convert.processors import load_processor_hf, save_processor_hf
from vlm_jax.errors import UserError
from vlm_jax.models.adapters import MLPAdapterConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.encoders import normalise
from vlm_jax.models.vit import PatchStem, ViTConfig
from vlm_jax.models.vlm import PromptLayout, VLMConfig

MEAN, STD = (0.48, 0.45, 0.41), (0.27, 0.26, 0.28)
NUMBERS = {"image_mean": MEAN, "image_std": STD}
QUESTION, ANSWER = "Что на картинке? What's here?", "Красный круг 12."


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    PIL.Image.fromarray(rng.integers(0, 256, (45, 61, 3), np.uint8)).save(file, "png")
    return file.getvalue()


def decoder(vocabulary):
    return DecoderConfig(vocabulary, 36, 2, 6, 2, 10, 20)


def encoder(**options):
    return ViTConfig((28, 28), PatchStem(7), 24, 2, 3, 40, mean=MEAN, std=STD, **options)


def huggingface_tokenizer(kind, image=True):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(kind), bos_token=BOS.get(kind), eos_token=ENDS[kind], pad_token=ENDS[kind]
    )
    if image:
        tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    return tokenizer


def messages(question=QUESTION, answer=ANSWER, turns=2, pictures=1):
    """The conversation as transformers takes it, with the pictures before the first question."""
    shown = [{"type": "image"}] * pictures
    asked = {"role": "user", "content": [*shown, {"type": "text", "text": question}]}
    more = {"role": "user", "content": [{"type": "text", "text": "Почему?"}]}
    answered = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    return [asked, answered, more, answered][:turns]


def example(picture, question=QUESTION, answer=ANSWER, turns=2, pictures=1):
    texts = [Text(question, role="user"), Text(answer, role="assistant"), Text("Почему?", role="user")]
    return Example((*[Image(data=picture)] * pictures, *[*texts, texts[1]][:turns]))


def theirs_of(processor, picture, opened, **options):
    """ids and pixels by the two steps that everybody takes."""
    text = processor.apply_chat_template(messages(**options), add_generation_prompt=opened)
    pictures = [PIL.Image.open(io.BytesIO(picture))] * options.get("pictures", 1)
    out = processor(text=[text], images=[pictures] if pictures else None)
    return list(out["input_ids"][0]), np.asarray(out["pixel_values"]) if pictures else None


def assert_same(ours, theirs, config, picture):
    for opened in (False, True):
        for options in ({}, {"turns": 1}, {"turns": 4, "pictures": 2}, {"turns": 3, "pictures": 0}):
            ids, pixels = theirs_of(theirs, picture, opened, **options)
            rendered = ours.render(example(picture, **options), "assistant" if opened else None)
            assert rendered.tokens.tolist() == ids, options
            if pixels is None:
                continue
            mine = np.asarray(normalise(ours.pixels(Image(data=picture)), config.encoder)).transpose(2, 0, 1)
            pixels = pixels.reshape(-1, *pixels.shape[-3:])
            assert np.abs(pixels - mine).max() < 1e-5


@pytest.mark.parametrize("kind", ["metaspace", "llama3", "qwen"])
def test_llava_comes_in(tmp_path, kind, picture):
    theirs = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28, **NUMBERS),
        huggingface_tokenizer(kind),
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA,
    )
    theirs.save_pretrained(tmp_path)
    image_token = theirs.tokenizer.convert_tokens_to_ids("<image>")
    config = VLMConfig(
        decoder(len(theirs.tokenizer)),
        encoder(class_token=True, stem_norm=True, final_norm="none"),
        MLPAdapterConfig(),
        layout=PromptLayout(image_token),
    )
    ours = load_processor_hf(tmp_path, config)
    assert (ours.prompt_tokens, ours.tokenizer.image_id) == (16, image_token)
    assert_same(ours, AutoProcessor.from_pretrained(tmp_path), config, picture)


def test_idefics3_comes_in_and_goes_out(tmp_path, picture):
    theirs = Idefics3Processor(
        Idefics3ImageProcessorPil(
            size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, do_image_splitting=False, **NUMBERS
        ),
        huggingface_tokenizer("smollm"),
        image_seq_len=4,
        chat_template=SMOLVLM,
    )
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "idefics3"}))
    config = VLMConfig(
        decoder(len(theirs.tokenizer)),
        encoder(),
        MLPAdapterConfig(layers=1, pixel_shuffle=2, bias=False),
        layout=PromptLayout(theirs.image_token_id),
    )
    ours = load_processor_hf(tmp_path, config)
    assert (ours.template.image_before, ours.template.image_after) == (IMAGE_BEFORE, IMAGE_AFTER)
    assert ours.tokenizer.id_to_piece(ours.tokenizer.end_ids[-1]) == "<end_of_utterance>"
    assert_same(ours, AutoProcessor.from_pretrained(tmp_path), config, picture)
    write(ours, config, tmp_path / "out")
    assert_same(ours, AutoProcessor.from_pretrained(tmp_path / "out"), config, picture)
    assert load_processor_hf(tmp_path / "out", config) == ours


@pytest.mark.parametrize("question", [QUESTION, "", "caption ru"])
def test_paligemma_comes_in_and_goes_out(tmp_path, question, picture):
    tokenizer = huggingface_tokenizer("unigram")
    processor = SiglipImageProcessorPil(size={"height": 28, "width": 28}, **NUMBERS)
    processor.image_seq_length = 16
    theirs = PaliGemmaProcessor(processor, tokenizer)
    theirs.tokenizer._tokenizer.post_processor = None  # as published: the processor writes <bos>
    theirs.save_pretrained(tmp_path)
    layout = PromptLayout(theirs.image_token_id, "prompt", 1)
    config = VLMConfig(decoder(len(theirs.tokenizer)), encoder(), MLPAdapterConfig(layers=1), layout=layout)
    config = dataclasses.replace(
        config,
        decoder=dataclasses.replace(config.decoder, norm_offset=1.0, activation="gelu_tanh", embedding_scale=6.0),
    )
    ours = load_processor_hf(tmp_path, config)
    assert ours.template == PrefixTemplate()
    write(ours, config, tmp_path / "out")
    shown = PIL.Image.open(io.BytesIO(picture))
    for reference in (theirs, AutoProcessor.from_pretrained(tmp_path / "out")):
        out = reference(text=[f"<image>{question}"], images=[shown], suffix=[ANSWER])
        rendered = ours.render(
            Example((Image(data=picture), Text(question, role="user"), Text(ANSWER, loss=True, role="assistant")))
        )
        assert rendered.tokens.tolist() == list(out["input_ids"][0])
        assert rendered.loss.tolist() == list(out["token_type_ids"][0])
        assert (rendered.block_ids == 1 - np.array(out["token_type_ids"][0])).all()
        assert rendered.positions[0] == 1
        asked = ours.render(Example((Image(data=picture), Text(question, role="user"))), "assistant")
        assert asked.tokens.tolist() == list(reference(text=[f"<image>{question}"], images=[shown])["input_ids"][0])


def write(processor, config, directory):
    """The processor, and the config.json that export puts beside it."""
    save_processor_hf(processor, config, directory)
    _, plain = find_writer(dataclasses.replace(config, layout=config.layout or layout_of(processor)))
    (directory / "config.json").write_text(json.dumps(plain))


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_what_is_trained_here_goes_out(tmp_path, model_type, picture):
    texts = [QUESTION, ANSWER, "Почему?", "the quick brown fox  jumps\tover", "def f(x): return 1"] * 5
    tokenizer = train_sentencepiece(texts, SentencePieceConfig(318, model_type))
    images = ImagePreprocessing("squash", "pillow_bicubic")
    ours = Processor(tokenizer, TemplateConfig(), images, (28, 28), 16)
    config = VLMConfig(decoder(318), encoder(), MLPAdapterConfig())
    write(ours, config, tmp_path)
    theirs = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(theirs, LlavaProcessor)
    assert_same(ours, theirs, config, picture)
    for text in ("Красный круг", "a  b\tc\n", "😀 漢 ё", "x = 12345", "<0x41> ▁", "  "):
        assert theirs.tokenizer(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
        assert theirs.tokenizer.decode(tokenizer.encode(text)) == text
    assert theirs.tokenizer.eos_token_id == tokenizer.end_id
    again = load_processor_hf(tmp_path, dataclasses.replace(config, layout=layout_of(ours)))
    assert isinstance(again.template, ChatTemplate)
    shown = example(picture, turns=3)
    assert again.render(shown, "assistant").tokens.tolist() == ours.render(shown, "assistant").tokens.tolist()


@pytest.mark.parametrize("after", ["", "\n"])
def test_an_llm_that_was_given_eyes_goes_out(tmp_path, after, picture):
    tokenizer = our_tokenizer("smollm", image=True)
    images = ImagePreprocessing("shortest", "pillow_bilinear", 30)
    ours = Processor(tokenizer, ChatTemplate(CHATML, image_after=after), images, (28, 28), 16)
    config = VLMConfig(decoder(tokenizer.vocabulary_size), encoder(), MLPAdapterConfig())
    write(ours, config, tmp_path)
    assert_same(ours, AutoProcessor.from_pretrained(tmp_path), config, picture)
    assert AutoTokenizer.from_pretrained(tmp_path).image_token_id == tokenizer.image_id


def test_a_processor_of_another_model_is_refused(tmp_path, picture):
    tokenizer = our_tokenizer("smollm", image=True)
    images = ImagePreprocessing("squash", "pillow_bilinear")
    ours = Processor(tokenizer, ChatTemplate(CHATML), images, (28, 28), 16)
    config = VLMConfig(
        decoder(tokenizer.vocabulary_size), encoder(), MLPAdapterConfig(), layout=PromptLayout(tokenizer.image_id)
    )
    write(ours, config, tmp_path)
    small = dataclasses.replace(config, decoder=decoder(tokenizer.vocabulary_size - 1))
    with pytest.raises(UserError, match="the tokenizer has ids up to"):
        load_processor_hf(tmp_path, small)
    with pytest.raises(UserError, match="image_mean is"):
        load_processor_hf(tmp_path, dataclasses.replace(config, encoder=ViTConfig((28, 28), PatchStem(7), 24, 2, 3)))
