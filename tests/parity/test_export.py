"""VLMs made here, written for transformers: the same numbers there, and from a picture file the same answers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from harness import assert_same, run
from PIL import Image

from data_pipelines.images import ImagePreprocessing
from data_pipelines.template import PrefixTemplate, Processor, TemplateConfig
from data_pipelines.tokenizers import SentencePieceConfig, train_sentencepiece
from vlm_jax.convert import load_hf, run_hf_inputs, save_hf
from vlm_jax.convert.processors import save_processor_hf
from vlm_jax.generation import Engine, as_image, question
from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.adapters import MLPAdapterConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vit import PatchStem, ViTConfig
from vlm_jax.models.vlm import PromptLayout, VLMConfig
from vlm_jax.parallel import abstract_params

IMAGE = 96

DECODER = DecoderConfig(97, width=36, layers=3, heads=6, key_value_heads=2, head_size=10, mlp_width=52, context=64)
PLAIN = ViTConfig((28, 28), PatchStem(7), width=24, layers=2, heads=3, mlp_width=40)
DINOV2 = dataclasses.replace(
    PLAIN, class_token=True, layer_scale=True, activation="gelu", position_grid=(5, 5), position_resampling="bicubic"
)
CLIP = dataclasses.replace(
    PLAIN, stem=PatchStem(7, bias=False), class_token=True, stem_norm=True, activation="quick_gelu", final_norm="none"
)
TWO, ONE = MLPAdapterConfig(layers=2), MLPAdapterConfig(layers=1, pixel_shuffle=2, bias=False)


def model(encoder: ViTConfig, adapter: MLPAdapterConfig = TWO, decoder: DecoderConfig = DECODER) -> VLMConfig:
    return VLMConfig(decoder, encoder, adapter, layout=PromptLayout(IMAGE))


CASES = {
    "vit_trained_here": (model(PLAIN), "Llava"),
    "vit_without_final_norm": (model(dataclasses.replace(PLAIN, final_norm="none")), "Llava"),
    "dinov2": (model(DINOV2), "Llava"),
    "dinov2_without_final_norm": (model(dataclasses.replace(DINOV2, final_norm="none", mlp_width=48)), "Llava"),
    "clip": (model(CLIP), "Llava"),
    "qwen3": (model(PLAIN, decoder=dataclasses.replace(DECODER, query_key_norm=True)), "Llava"),
    "pixel_shuffle": (model(PLAIN, ONE), "Idefics3"),
}


def random_params(config: VLMConfig):
    """Parameters that leave no part without effect."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = 0.3 if len(leaf.shape) < 3 else 0.5 * leaf.shape[1] ** -0.5
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(draw, abstract_params(boxed_params(build_model(config))))


def inputs_for(config: VLMConfig, nested: bool):
    """Two rows of two pictures each."""
    rng = np.random.default_rng(1)
    block = [IMAGE] * config.prompt_tokens
    ids = np.array([[*rng.integers(3, 90, 3), *block, *rng.integers(3, 90, 2), *block, 5, 6] for _ in range(2)])
    pixels = rng.standard_normal((4, 3, 28, 28), np.float32)
    return {"input_ids": ids, "pixel_values": pixels.reshape(2, 2, 3, 28, 28) if nested else pixels}


@pytest.mark.parametrize("name", CASES)
def test_an_exported_model_gives_the_same_logits(name, tmp_path):
    config, architecture = CASES[name]
    params = random_params(config)
    save_hf(config, params, tmp_path / "out")
    cls = getattr(transformers, f"{architecture}ForConditionalGeneration")
    theirs, info = cls.from_pretrained(
        tmp_path / "out", attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not {key: value for key, value in info.items() if value}
    inputs = inputs_for(config, architecture == "Idefics3")
    assert_same(run_hf_inputs(config, params, inputs), run(theirs.eval(), inputs), inputs)
    _, same = load_hf(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, same, params)


TEXTS = ["What shape is shown?", "Какого цвета круг?", "Is there a red circle in the picture?", "да", "no", "жёлтый"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(directory, Engine) of a model whose tokenizer was trained here, as `vlm convert to-hf` writes it."""
    tokenizer = train_sentencepiece(TEXTS, SentencePieceConfig(vocabulary_size=300))
    sizes = {"vocabulary_size": tokenizer.vocabulary_size, "context": 256, "tied_embeddings": False}
    decoder = dataclasses.replace(DECODER, **sizes)
    layout = PromptLayout(tokenizer.image_id)
    config = dataclasses.replace(model(PLAIN, decoder=decoder), layout=layout)
    params = random_params(config)
    template, images = TemplateConfig(), ImagePreprocessing(interpolation="pillow_bicubic")
    processor = Processor(tokenizer, template, images, config.image_size, config.prompt_tokens)
    directory = tmp_path_factory.mktemp("exported") / "model"
    save_hf(config, params, directory)
    save_processor_hf(processor, config, directory)
    return directory, Engine(config, params, processor)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_answers_to_pictures_and_questions_are_the_same(exported, tmp_path, count):
    directory, engine = exported
    rng = np.random.default_rng(count)
    pictures = [rng.integers(0, 256, (35, 50, 3), np.uint8) for _ in range(count)]
    files = [tmp_path / f"{number}.png" for number in range(count)]
    for file, pixels in zip(files, pictures, strict=True):
        Image.fromarray(pixels).save(file)
    text = "Is there a red circle? Нет ли круга?"
    ours = engine.generate([question(text, [as_image(pixels) for pixels in pictures])], max_new_tokens=64)

    processor = transformers.AutoProcessor.from_pretrained(directory)
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    content = [{"type": "image", "path": str(file)} for file in files] + [{"type": "text", "text": text}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    rendered = engine.processor.render(question(text, [as_image(pixels) for pixels in pictures]), "assistant")
    assert inputs["input_ids"][0].tolist() == rendered.tokens.tolist()
    found = theirs.generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert ours == [engine.text(found.tolist())]
    assert len(set(found.tolist())) > 4


def test_a_paligemma_in_the_engine_answers_as_outside(tmp_path):
    tokenizer = train_sentencepiece(TEXTS, SentencePieceConfig(vocabulary_size=300))
    decoder = dataclasses.replace(
        DECODER,
        vocabulary_size=tokenizer.vocabulary_size,
        context=256,
        tied_embeddings=False,
        norm_offset=1.0,
        embedding_scale=36**0.5,
        activation="gelu_tanh",
    )
    layout = PromptLayout(tokenizer.image_id, "prompt", 1)
    config = VLMConfig(decoder, PLAIN, MLPAdapterConfig(layers=1), layout=layout)
    params = random_params(config)
    save_hf(config, params, tmp_path / "out")
    theirs = transformers.PaliGemmaForConditionalGeneration.from_pretrained(tmp_path / "out", dtype=torch.float32)
    images = ImagePreprocessing()
    processor = Processor(tokenizer, PrefixTemplate(), images, config.image_size, config.prompt_tokens)
    engine = Engine(config, params, processor)
    picture = as_image(np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8))
    prompt = question("Is there a red circle in the picture?", [picture])
    rendered = processor.render(prompt, "assistant")
    pixels = (processor.pixels(picture) / 255 - 0.5) / 0.5
    ids = torch.from_numpy(rendered.tokens[None]).long()
    found = theirs.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        token_type_ids=torch.zeros_like(ids),
        pixel_values=torch.from_numpy(np.moveaxis(pixels, -1, 0)[None].astype(np.float32)),
        max_new_tokens=64,
        do_sample=False,
        eos_token_id=tokenizer.end_id,
    )[0, ids.shape[1] :]
    assert engine.generate([prompt], max_new_tokens=64) == [engine.text(found.tolist())]
    assert len(set(found.tolist())) > 4
