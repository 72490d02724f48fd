"""Idefics 2 from a prompt to an answer: its processor's ids and pixels, quarters of pictures, and greedy tokens."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from cases_vlms import IDEFICS_VISION, MISTRAL, PERCEIVER
from chat_texts import BOS, ENDS, SMOLVLM, build_tokenizer
from harness import saved_shapes
from picture_turns import ours_of, picture, read_by
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from weights import write_weights

from data_pipelines.examples import Image
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.convert import load_hf, save_hf
from vlm_jax.convert.processors import load_processor_hf, save_processor_hf
from vlm_jax.generation import Engine
from vlm_jax.models.encoders import normalise

NEW_TOKENS = 24
SIDE = IDEFICS_VISION["image_size"]
PUBLISHED = SMOLVLM.replace("<|im_start|>", "")

PROMPTS = (
    (([(40, 61)], "Как?"),),
    (([(9, 100)], "Что на картинке?"), ([], "Красный круг."), ([(33, 20), (5, 5)], " What's common?")),
    (([(14, 14), (300, 20)], "<b>"),),
    (([], "Is there a red circle?"),),
    (([(42, 42)], ""),),
)
"""Turns of user and assistant: sizes of pictures (height, width), and a text."""


@pytest.fixture(scope="module", params=["llama3", "metaspace"])
def directory(request, tmp_path_factory):
    """A whole directory as transformers saves it: model, tokenizer, chat template, image processor."""
    path, kind = tmp_path_factory.mktemp("idefics2"), request.param
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(kind), bos_token=BOS[kind], eos_token=ENDS[kind], pad_token=ENDS[kind]
    )
    images = Idefics2ImageProcessorPil(size={"shortest_edge": SIDE, "longest_edge": SIDE})
    latents = PERCEIVER["resampler_n_latents"]
    processor = transformers.Idefics2Processor(images, tokenizer, image_seq_len=latents, chat_template=PUBLISHED)
    processor.save_pretrained(path)
    config = transformers.Idefics2Config(
        text_config={**MISTRAL, "vocab_size": len(processor.tokenizer), "max_position_embeddings": 256},
        vision_config=IDEFICS_VISION,
        perceiver_config=PERCEIVER,
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    transformers.Idefics2ForConditionalGeneration(config).eval().save_pretrained(path)
    write_weights(path, saved_shapes(path))
    return path


def assert_same_prompts(ours, theirs, config, *, pixels=True):
    for prompt in PROMPTS:
        out = read_by(theirs, prompt)
        rendered = ours.render(ours_of(prompt), "assistant")
        assert rendered.tokens.tolist() == out["input_ids"][0].tolist(), prompt
        pictures = [part for part in ours_of(prompt).trunk if isinstance(part, Image)]
        if pixels and pictures:
            shown = [np.asarray(normalise(ours.pixels(image), config.encoder)) for image in pictures]
            np.testing.assert_allclose(np.moveaxis(shown, -1, 1), out["pixel_values"][0], atol=1e-5)
            assert out["pixel_attention_mask"].all()


def test_prompts_are_those_of_the_processor(directory, tmp_path):
    config, params = load_hf(directory)
    ours = load_processor_hf(directory, config)
    assert ours.template.image_joined
    assert_same_prompts(ours, transformers.AutoProcessor.from_pretrained(directory, backend="pil"), config)
    save_hf(config, params, tmp_path / "out")
    save_processor_hf(ours, config, tmp_path / "out")
    assert_same_prompts(ours, transformers.AutoProcessor.from_pretrained(tmp_path / "out", backend="pil"), config)
    assert load_processor_hf(tmp_path / "out", config) == ours


def test_quarters_of_pictures_come_before_the_whole(directory, tmp_path):
    theirs = transformers.AutoProcessor.from_pretrained(directory, backend="pil")
    theirs.image_processor.do_image_splitting = True
    theirs.save_pretrained(tmp_path / "in")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "in" / name).symlink_to(directory / name)
    config, params = load_hf(tmp_path / "in")
    ours = load_processor_hf(tmp_path / "in", config)
    assert_same_prompts(ours, theirs, config, pixels=False)
    image = Image(data=picture((4 * SIDE, 2 * SIDE)))
    [expected] = read_by(theirs, (([(4 * SIDE, 2 * SIDE)], "a"),))["pixel_values"]
    found = np.moveaxis(normalise(ours.slots(image), config.encoder), -1, 1)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found[4], expected[4], atol=1e-5)
    assert np.abs(found[:, :, 4:-4, 4:-4] - expected[:, :, 4:-4, 4:-4]).max() < 0.02
    save_hf(config, params, tmp_path / "out")
    save_processor_hf(ours, config, tmp_path / "out")
    assert load_hf(tmp_path / "out")[0] == config
    assert load_processor_hf(tmp_path / "out", config) == ours


@pytest.mark.parametrize("directory", ["metaspace"], indirect=True)
def test_answers_are_those_of_transformers(directory):
    theirs = transformers.AutoProcessor.from_pretrained(directory, backend="pil")
    model = transformers.Idefics2ForConditionalGeneration.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    ).eval()
    loaded = load_model(str(directory))
    tokenizer = loaded.processor.tokenizer
    tokenizer = tokenizer.with_ids(end_ids=(tokenizer.image_id,))  # so that nothing stops early
    engine = Engine(loaded.config, loaded.params, dataclasses.replace(loaded.processor, tokenizer=tokenizer))
    answers = engine.generate([ours_of(prompt) for prompt in PROMPTS[:3]], max_new_tokens=NEW_TOKENS)
    for prompt, answer in zip(PROMPTS, answers, strict=False):
        given = {name: torch.from_numpy(np.asarray(array)) for name, array in read_by(theirs, prompt).items()}
        out = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=None)
        assert answer == engine.text(out[0, given["input_ids"].shape[1] :].tolist()), prompt
    assert len({*answers}) == len(answers)
