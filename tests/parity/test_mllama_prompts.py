"""Llama 3.2 Vision from a prompt to an answer: its processor's ids, tiles and masks, and greedy tokens."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from cases_mllama import TEXT, VISION
from chat_texts import BOS, ENDS, build_tokenizer
from harness import saved_shapes
from picture_turns import ours_of, read_by
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from weights import write_weights

from data_pipelines.examples import Image
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.convert import load_hf
from vlm_jax.convert.processors import load_processor_hf, save_processor_hf
from vlm_jax.generation import Engine
from vlm_jax.models.encoders import normalise

MEAN, STD = (0.48, 0.45, 0.41), (0.27, 0.26, 0.28)
NEW_TOKENS = 16

PROGRAM = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['content'] is string %}{{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}{{- '<|image|>' }}{%- else %}{{- part['text'] }}{%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

PROMPTS = (
    (([(40, 61)], "Как?"),),
    (([(9, 100)], "Что на картинке?"), ([], "Красный круг."), ([(33, 20), (5, 5)], "What's common?")),
    (([(14, 14), (300, 20)], "Yes or no?"),),
    (([], "Is there a red circle?"),),
)
"""Turns of user and assistant: sizes of pictures (height, width), and a text."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A whole directory as transformers saves it: model, tokenizer, chat template, image processor."""
    path = tmp_path_factory.mktemp("mllama")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer("llama3"), bos_token=BOS["llama3"], eos_token=ENDS["llama3"],
        pad_token=ENDS["llama3"],
    )  # fmt: skip
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|image|>"]})
    images = MllamaImageProcessorPil(size={"height": 14, "width": 14}, image_mean=MEAN, image_std=STD)
    transformers.MllamaProcessor(images, tokenizer, chat_template=PROGRAM).save_pretrained(path)
    config = transformers.MllamaConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer) - 1},
        vision_config=VISION,
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    torch.manual_seed(0)
    transformers.MllamaForConditionalGeneration(config).eval().save_pretrained(path)
    write_weights(path, saved_shapes(path))
    return path


@pytest.fixture(scope="module")
def theirs(directory):
    return transformers.AutoProcessor.from_pretrained(directory, backend="pil")


def assert_same_prompts(ours, theirs, config):
    for prompt in PROMPTS:
        out = read_by(theirs, prompt, add_special_tokens=False)
        rendered = ours.render(ours_of(prompt), "assistant")
        assert rendered.tokens.tolist() == out["input_ids"][0].tolist(), prompt
        pictures = [part for part in ours_of(prompt).trunk if isinstance(part, Image)]
        for place, (image, cut) in enumerate(zip(pictures, rendered.cuts, strict=True)):
            used = cut.grid[0] * cut.grid[1]
            assert config.encoder.grids.index(cut.grid) + 1 == out["aspect_ratio_ids"][0, place]
            assert used == out["aspect_ratio_mask"][0, place].sum()
            pixels = np.asarray(normalise(ours.slots(image), config.encoder)).transpose(0, 3, 1, 2)
            np.testing.assert_allclose(pixels[:used], out["pixel_values"][0, place, :used], atol=1e-5)
            assert not ours.slots(image)[used:].any()


def test_prompts_are_those_of_the_processor(directory, theirs, tmp_path):
    config, _ = load_hf(directory)
    ours = load_processor_hf(directory, config)
    assert_same_prompts(ours, theirs, config)
    save_processor_hf(ours, config, tmp_path)
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    assert_same_prompts(ours, transformers.AutoProcessor.from_pretrained(tmp_path, backend="pil"), config)
    assert load_processor_hf(tmp_path, config) == ours


def greedy(directory, theirs, prompt):
    model = transformers.MllamaForConditionalGeneration.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    ).eval()
    given = {
        name: torch.from_numpy(np.asarray(array))
        for name, array in read_by(theirs, prompt, add_special_tokens=False).items()
    }
    out = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=None)
    return out[0, given["input_ids"].shape[1] :].tolist()


def test_answers_are_those_of_transformers(directory, theirs):
    loaded = load_model(str(directory))
    tokenizer = loaded.processor.tokenizer
    tokenizer = tokenizer.with_ids(end_ids=(tokenizer.image_id,))  # which is never written, so nothing stops early
    engine = Engine(loaded.config, loaded.params, dataclasses.replace(loaded.processor, tokenizer=tokenizer))
    asked = PROMPTS[1::2]  # three pictures in two turns, and none
    answers = engine.generate([ours_of(prompt) for prompt in asked], max_new_tokens=NEW_TOKENS)
    for prompt, answer in zip(asked, answers, strict=True):
        assert answer == engine.text(greedy(directory, theirs, prompt)), prompt
    assert len({*answers}) == len(answers)
