"""Pictures cut into tiles, from a file and a conversation to ids, pixels and answers: in from transformers, and out."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from chat_texts import BOS, ENDS, LLAVA, SMOLVLM, build_tokenizer
from harness import load, saved_shapes
from transformers import AutoProcessor, Idefics3Processor, LlavaNextProcessor, PreTrainedTokenizerFast
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from weights import write_weights

from data_pipelines.examples import Example, Image, Text
from data_pipelines.template import Processor, TemplateConfig
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.cli import run
from vlm_jax.convert import load_hf, save_hf
from vlm_jax.convert.image_processors import read_image_processor
from vlm_jax.convert.processors import save_processor_hf
from vlm_jax.generation import Engine
from vlm_jax.models.encoders import normalise
from vlm_jax.models.vit import PatchStem, ViTConfig
from vlm_jax.pictures import Pictures

MEAN, STD = (0.48, 0.45, 0.41), (0.27, 0.26, 0.28)
NUMBERS = {"image_mean": MEAN, "image_std": STD}
SIZES = [(45, 61), (200, 37), (30, 141), (28, 28), (9, 90)]
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
SIZES_OF_TEXT = {
    "hidden_size": 36,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "model_type": "llama",
}
VIT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 28,
    "patch_size": 7,
}


def png(height, width):
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)).save(file, "png")
    return file.getvalue()


PICTURES = [png(*size) for size in SIZES]


def tokenizer_of(kind, *more):
    made = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(kind), bos_token=BOS.get(kind), eos_token=ENDS[kind], pad_token=ENDS[kind]
    )
    made.add_special_tokens({"extra_special_tokens": ["<image>", *more]})
    return made


def llava_next():
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(size={"shortest_edge": 28}, crop_size=28, image_grid_pinpoints=PINPOINTS, **NUMBERS),
        tokenizer_of("llama3"),
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA,
    )
    config = transformers.LlavaNextConfig(
        text_config={**SIZES_OF_TEXT, "vocab_size": len(processor.tokenizer)},
        vision_config={**VIT, "model_type": "clip_vision_model"},
        image_token_index=processor.image_token_id,
        image_grid_pinpoints=PINPOINTS,
    )
    return processor, config, "LlavaNextForConditionalGeneration"


def idefics3():
    marks = [f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)]
    processor = Idefics3Processor(
        Idefics3ImageProcessorPil(size={"longest_edge": 84}, max_image_size={"longest_edge": 28}, **NUMBERS),
        tokenizer_of("smollm", *marks),
        image_seq_len=4,
        chat_template=SMOLVLM,
    )
    config = transformers.Idefics3Config(
        text_config={**SIZES_OF_TEXT, "vocab_size": len(processor.tokenizer)},
        vision_config=VIT,
        image_token_id=processor.image_token_id,
        scale_factor=2,
        pad_token_id=0,
    )
    return processor, config, "Idefics3ForConditionalGeneration"


@pytest.fixture(scope="module", params=[llava_next, idefics3])
def imported(request, tmp_path_factory):
    """(transformers' processor, its model, our model with its processor, the directory)."""
    directory = tmp_path_factory.mktemp("tiled") / request.param.__name__
    processor, config, kind = request.param()
    torch.manual_seed(0)
    getattr(transformers, kind)(config).eval().save_pretrained(directory)
    write_weights(directory, saved_shapes(directory), 0)
    processor.save_pretrained(directory)
    return processor, load(directory, kind), load_model(str(directory)), directory


def messages(pictures):
    shown = [{"type": "image"}] * pictures
    return [{"role": "user", "content": [*shown, {"type": "text", "text": "Что здесь?"}]}]


def theirs_of(processor, pictures):
    text = processor.apply_chat_template(messages(len(pictures)), add_generation_prompt=True)
    opened = [PIL.Image.open(io.BytesIO(picture)) for picture in pictures]
    return processor(text=[text], images=[opened] if isinstance(processor, Idefics3Processor) else opened)


def prompt(pictures):
    return Example((*(Image(data=picture) for picture in pictures), Text("Что здесь?", role="user")))


def assert_same(ours, theirs, config):
    for pictures in ([picture] for picture in PICTURES):
        out = theirs_of(theirs, pictures)
        assert ours.render(prompt(pictures), "assistant").tokens.tolist() == list(out["input_ids"][0])
        slots = np.asarray(normalise(jnp.asarray(ours.slots(Image(data=pictures[0]))), config.encoder))
        pixels = np.asarray(out["pixel_values"])[0]
        assert np.abs(pixels - slots.transpose(0, 3, 1, 2)).max() < 1e-5
    out = theirs_of(theirs, PICTURES[:3])
    assert ours.render(prompt(PICTURES[:3]), "assistant").tokens.tolist() == list(out["input_ids"][0])


def test_ids_and_pixels(imported, tmp_path):
    processor, _, model, _ = imported
    assert model.config.tiling is not None
    assert_same(model.processor, processor, model.config)
    save_hf(model.config, model.params, tmp_path)
    save_processor_hf(model.processor, model.config, tmp_path)
    assert_same(model.processor, AutoProcessor.from_pretrained(tmp_path), model.config)
    again = load_model(str(tmp_path))
    assert (again.config, again.processor) == (model.config, model.processor)


def test_the_model_alone_goes_out_with_its_tiles(imported, tmp_path):
    *_, directory = imported
    config, params = load_hf(directory)
    save_hf(config, params, tmp_path)
    assert load_hf(tmp_path)[0].tiling == config.tiling


@pytest.fixture
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_answers(imported, quick_compilation, tmp_path, capsys):
    processor, theirs, model, directory = imported
    asked = [PICTURES[:1], PICTURES[2:4], PICTURES[1:2]]
    engine = Engine(model.config, model.params, model.processor)
    # The first two take as many slots, rounded up, so that they are one batch; the third is as the command has it.
    answers = engine.generate([prompt(pictures) for pictures in asked[:2]], max_new_tokens=8)
    answers.append("".join(engine.stream(prompt(asked[2]), max_new_tokens=8)))
    assert len(set(answers)) == 3
    for pictures, answer in zip(asked, answers, strict=True):
        given = {name: torch.tensor(np.asarray(value)) for name, value in theirs_of(processor, pictures).items()}
        out = theirs.generate(
            **given, max_new_tokens=8, do_sample=False, eos_token_id=engine.processor.tokenizer.end_id
        )
        assert answer == engine.text(out[0, given["input_ids"].shape[1] :].tolist())
    (tmp_path / "p.png").write_bytes(PICTURES[1])
    command = ["generate", "--model", str(directory), "--image", str(tmp_path / "p.png"), "--prompt", "Что здесь?"]
    assert run([*command, "--max-new-tokens", "8"]) == 0
    assert capsys.readouterr().out == answers[2] + "\n"


def test_internvl_cuts_the_same_tiles():
    theirs = GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=6, **NUMBERS)
    ours = read_image_processor({"image_processor_type": "GotOcr2ImageProcessor", **theirs.to_dict()})
    assert ours.tiling is not None
    processor = Processor(None, TemplateConfig(), ours.preprocessing, (28, 28), 16, Pictures(ours.tiling))
    encoder = ViTConfig((28, 28), PatchStem(7), mean=MEAN, std=STD)
    for picture in PICTURES:
        expected = np.asarray(theirs(PIL.Image.open(io.BytesIO(picture)))["pixel_values"])
        slots = np.asarray(normalise(jnp.asarray(processor.slots(Image(data=picture))), encoder))
        assert np.abs(expected - slots.transpose(0, 3, 1, 2)).max() < 1e-5
