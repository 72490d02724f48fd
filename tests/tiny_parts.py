"""Tiny pre-trained parts as files that other programs write: a LLM as GGUF, an encoder as ONNX, both as directories."""

import sys
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import onnx
from onnx import helper, numpy_helper

from vlm_jax.convert import save_hf
from vlm_jax.convert.tensors import SafetensorsDirectory
from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.presets import IMAGENET_MEAN, IMAGENET_STD
from vlm_jax.models.vit import PatchStem, ViTConfig
from vlm_jax.parallel import abstract_params

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("t h", "Ġ th", "e r", "i s", "Ġ is")

DECODER = DecoderConfig(
    len(SPECIAL) + 256 + len(MERGES),
    width=24,
    layers=2,
    heads=6,
    key_value_heads=2,
    head_size=8,
    mlp_width=32,
    context=256,
)
ENCODER = ViTConfig(
    (28, 28),
    PatchStem(14),
    width=24,
    layers=2,
    heads=3,
    mlp_width=48,
    norm_epsilon=1e-5,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    class_token=True,
    layer_scale=True,
    activation="gelu",
    position_grid=(3, 3),
    position_resampling="bicubic",
)

CHAT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nBe short.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def random_params(config, seed=0):
    """Parameters of a part, drawn by NumPy."""
    rng = np.random.default_rng(seed)
    shapes = abstract_params(boxed_params(build_model(config)))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(scale=0.3, size=leaf.shape), jnp.float32), shapes)


def write_directory(config, path: Path, seed=0):
    """A Hugging Face directory without a tokenizer."""
    save_hf(config, random_params(config, seed), path)
    return path


def write_gguf(path: Path, config: DecoderConfig = DECODER, seed=0) -> Path:
    """A GGUF file of the Llama kind, with tokenizer and chat template."""
    tensors = SafetensorsDirectory(write_directory(config, path.with_suffix(".hf"), seed))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.key_value_heads)
    writer.add_key_length(config.head_size)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    _add_tokenizer(writer)
    for name in tensors.shapes:
        writer.add_tensor(*_stored(name, tensors.read(name), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer) -> None:
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + number) for number in range(256 - len(letters))]
    tokens = [*SPECIAL, *letters, *(merge.replace(" ", "") for merge in MERGES)]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in SPECIAL else normal for token in tokens])
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)


def _stored(name: str, array: np.ndarray, config: DecoderConfig) -> tuple[str, np.ndarray]:
    """The name and layout in a GGUF file."""
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "model.layers": "blk",
    }
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    for projection, heads in (("attn_q.", config.heads), ("attn_k.", config.key_value_heads)):
        if projection in name:
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
    return name, np.ascontiguousarray(array)


def write_onnx(path: Path, config: ViTConfig = ENCODER, seed=0) -> Path:
    """An ONNX file with the nodes by which an exported DINOv2 is recognised below `backbone.`; it cannot be run."""
    tensors = SafetensorsDirectory(write_directory(config, path.with_suffix(".hf"), seed))
    nodes, values = [], []

    def value(name, array):
        values.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(kind, scope, inputs, **attributes):
        name = f"/backbone.{scope}.{kind}".replace(".", "/")
        nodes.append(helper.make_node(kind, inputs, [f"{name}_{len(nodes)}"], name, **attributes))
        return nodes[-1].output[0]

    for name in tensors.shapes:
        array = tensors.read(name)
        if name == "embeddings.position_embeddings":
            first, rest = value("onnx::Concat_7", array[:, :1]), value("onnx::Reshape_8", array[:, 1:])
            node("Concat", "embeddings", [first, node("Reshape", "embeddings", [rest, "shape"])], axis=1)
        elif array.ndim == 2:
            weight = value(f"onnx::MatMul_{len(values)}", array.T)
            node("MatMul", name.removesuffix(".weight"), ["x", weight])
        else:
            value("backbone." + name, array)
    scope = "encoder.layer.0.attention.attention"
    head = np.array([1, -1, config.heads, config.width // config.heads])
    node("Reshape", scope, ["x", node("Constant", scope, [], value=numpy_helper.from_array(head))])
    node("LayerNormalization", "encoder.layer.0.norm1", ["x"], epsilon=config.norm_epsilon)
    takes = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3, *config.image_size])
    onnx.save(helper.make_model(helper.make_graph(nodes, "model", [takes], [], values)), path)
    return path


def install(monkeypatch, directory: Path, name: str, distribution: str = "") -> Path:
    """An empty package that can be imported, and maybe a distribution that installs it; returns its directory."""
    package = directory / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('a package that carries weights is not to be run')\n")
    if distribution:
        info = directory / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "top_level.txt").write_text(f"{name}\n")
    monkeypatch.setattr(sys, "path", [str(directory), *sys.path])
    return package
