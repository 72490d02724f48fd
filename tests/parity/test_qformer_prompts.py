"""From a picture's file and a question to the answer: imported BLIP-2 and InstructBLIP, beside transformers."""

import json

import numpy as np
import PIL.Image
import pytest
import tokenizers
import torch
import transformers
from cases_qformer import QUERIES, SIZES, VIT
from cases_vlms import LLAMA
from chat_texts import BOS, ENDS, build_tokenizer
from harness import saved_shapes
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from weights import write_weights

from vlm_jax.checkpoints.reference import load_model
from vlm_jax.cli import run
from vlm_jax.errors import UserError
from vlm_jax.generation import Engine, as_image, question

TEXT = "What is here? Круг или квадрат?"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "is", "here", "?", "круг", "или", "ква", "##драт", "a", "##b"]


def bert():
    words = {word: number for number, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {name: f"[{name[:3].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token")}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


@pytest.fixture(scope="module", params=["Blip2", "InstructBlip"])
def saved(request, tmp_path_factory):
    """(directory, transformers' model, its processor)."""
    kind, directory = request.param, tmp_path_factory.mktemp(request.param) / "model"
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer("metaspace"),
        bos_token=BOS["metaspace"],
        eos_token=ENDS["metaspace"],
        pad_token=ENDS["metaspace"],
    )
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    pixels = BlipImageProcessorPil(size={"height": 28, "width": 28})
    made = (pixels, tokenizer) if kind == "Blip2" else (pixels, tokenizer, bert())
    processor = getattr(transformers, f"{kind}Processor")(*made, num_query_tokens=QUERIES)
    extra = {"vocab_size": len(WORDS), "max_position_embeddings": 40} if kind == "InstructBlip" else {}
    config = getattr(transformers, f"{kind}Config")(
        text_config={**LLAMA, "vocab_size": len(tokenizer)},
        vision_config=VIT,
        qformer_config={**SIZES, **extra},
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    cls = getattr(transformers, f"{kind}ForConditionalGeneration")
    cls(config).save_pretrained(directory)
    write_weights(directory, saved_shapes(directory), 1)
    processor.save_pretrained(directory)
    model = cls.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()
    return directory, model, processor


def test_ids_pixels_and_answers_are_the_same(saved, tmp_path):
    directory, model, processor = saved
    assert run(["convert", "from-hf", str(directory), str(tmp_path / "ours")]) == 0
    loaded = load_model(str(tmp_path / "ours"))
    engine = Engine(loaded.config, loaded.params, loaded.processor)
    pixels = np.random.default_rng(0).integers(0, 256, (31, 44, 3), np.uint8)
    asked = question(TEXT, [as_image(pixels)])
    rendered = engine.render(asked)
    inputs = processor(images=PIL.Image.fromarray(pixels), text=TEXT, return_tensors="pt")
    assert rendered.tokens.tolist() == inputs["input_ids"][0].tolist()
    if "qformer_input_ids" in inputs:
        instruction = [id for id in rendered.instruction if id]
        assert instruction == inputs["qformer_input_ids"][0].tolist()
        assert len({*instruction}) > 6
    with torch.no_grad():
        found = model.generate(**inputs, max_new_tokens=32, min_new_tokens=32, do_sample=False, eos_token_id=None)
    theirs = found[0, inputs["input_ids"].shape[1] :].tolist()
    assert engine.generate([asked], max_new_tokens=32) == [engine.text(theirs)]
    assert len({*theirs}) > 4


def test_out_again_it_answers_the_same(saved, tmp_path):
    directory, model, processor = saved
    assert run(["convert", "from-hf", str(directory), str(tmp_path / "ours")]) == 0
    assert run(["convert", "to-hf", str(tmp_path / "ours"), str(tmp_path / "out")]) == 0
    exported = type(model).from_pretrained(tmp_path / "out", attn_implementation="eager", dtype=torch.float32)
    again = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(again) is type(processor)
    picture = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 33, 3), np.uint8))
    first, second = (made(images=picture, text=TEXT, return_tensors="pt") for made in (processor, again))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name].to(tensor.dtype), tensor, atol=0.02, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(exported(**first).logits, model(**first).logits, atol=1e-4, rtol=0)
    same = load_model(str(tmp_path / "out")).processor
    assert same.template == load_model(str(tmp_path / "ours")).processor.template


def test_without_its_instructions_tokenizer_a_model_does_not_come_in(saved, tmp_path):
    directory, _, _ = saved
    if not (directory / "qformer_tokenizer").exists():
        assert "qformer_tokenizer" not in json.dumps(sorted(file.name for file in directory.iterdir()))
        return
    (directory / "qformer_tokenizer").rename(tmp_path / "away")
    try:
        with pytest.raises(UserError, match=r"qformer_tokenizer/tokenizer\.json: is missing"):
            load_model(str(directory))
    finally:
        (tmp_path / "away").rename(directory / "qformer_tokenizer")
