"""GGUF files, written here by the reference library, against the Hugging Face directories of the same models."""

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from vlm_jax.convert import load_hf, save_hf
from vlm_jax.convert.gguf_tensors import GEMMA2_NAMES, NAMES, GGUFTensors, load_gguf, split_pairs
from vlm_jax.convert.tensors import SafetensorsDirectory
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.decoder import DecoderConfig, SelfAttentionBlock
from vlm_jax.models.rope import LinearRope, Llama3Rope
from vlm_jax.parallel import abstract_params

LLAMA = DecoderConfig(
    vocabulary_size=40,
    width=64,
    layers=2,
    heads=4,
    key_value_heads=2,
    head_size=32,
    mlp_width=96,
    context=128,
    rope_base=5000.0,
    tied_embeddings=False,
)
GEMMA = dataclasses.replace(
    LLAMA, norm_offset=1.0, embedding_scale=64**0.5, activation="gelu_tanh", tied_embeddings=True, norm_epsilon=1e-6
)
CONFIGS = {
    "llama": LLAMA,
    "qwen2": dataclasses.replace(LLAMA, attention_bias=True, head_size=16, tied_embeddings=True),
    "qwen3": dataclasses.replace(LLAMA, query_key_norm=True),
    "gemma": GEMMA,
    "gemma2": dataclasses.replace(
        GEMMA,
        post_norms=True,
        attention_softcap=50.0,
        logit_softcap=30.0,
        pattern=(SelfAttentionBlock(16), SelfAttentionBlock(0)),
    ),
}


def random_params(config: DecoderConfig) -> Any:
    rng = np.random.default_rng(0)
    shapes = abstract_params(boxed_params(build_model(config)))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), shapes)


def metadata(arch: str, config: DecoderConfig) -> dict[str, Any]:
    found: dict[str, Any] = {
        f"{arch}.block_count": config.layers,
        f"{arch}.context_length": config.context,
        f"{arch}.embedding_length": config.width,
        f"{arch}.feed_forward_length": config.mlp_width,
        f"{arch}.attention.head_count": config.heads,
        f"{arch}.attention.head_count_kv": config.key_value_heads,
        f"{arch}.attention.key_length": config.head_size,
        f"{arch}.rope.freq_base": config.rope_base,
        f"{arch}.attention.layer_norm_rms_epsilon": config.norm_epsilon,
    }
    if arch == "gemma2":
        found |= {"gemma2.attention.sliding_window": 16, "gemma2.attn_logit_softcapping": 50.0}
        found |= {"gemma2.final_logit_softcapping": 30.0}
    return found


def gguf_arrays(arch: str, config: DecoderConfig, directory: Path) -> dict[str, np.ndarray]:
    """The tensors of a Hugging Face directory as llama.cpp's converter stores them."""
    tensors = SafetensorsDirectory(directory)
    names = {**dict(NAMES), **(dict(GEMMA2_NAMES) if arch == "gemma2" else {})}
    found = {}
    for layer in range(config.layers):
        for ours, theirs in names.items():
            name = theirs.format(layer=layer)
            if name not in tensors.shapes:
                continue
            array = tensors.read(name)
            if arch == "llama" and name.split(".")[-2] in ("q_proj", "k_proj"):
                heads = config.heads if "q_proj" in name else config.key_value_heads
                halves = array.reshape(heads, 2, config.head_size // 2, *array.shape[1:])
                array = halves.swapaxes(1, 2).reshape(array.shape)
            if arch.startswith("gemma") and name.split(".")[-2].endswith("norm"):
                array = array + 1
            found[ours.format(layer=layer)] = array
    return found


def write(path: Path, arch: str, fields: dict[str, Any], arrays: dict[str, Any], kinds: dict[str, Kind] | None = None):
    """A GGUF file; `kinds` are the types of tensors that are not float32, whose arrays are bytes then."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in fields.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
    for name, array in arrays.items():
        writer.add_tensor(name, np.ascontiguousarray(array), raw_dtype=(kinds or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def llama(tmp_path: Path):
    """(directory in Hugging Face format, arrays, write(…) -> GGUF file) of a small Llama."""
    save_hf(LLAMA, random_params(LLAMA), tmp_path / "hf")
    arrays = gguf_arrays("llama", LLAMA, tmp_path / "hf")

    def make(changed: dict[str, Any] | None = None, arch: str = "llama", kinds=None, **fields: Any) -> Path:
        known = {name: value for name, value in {**arrays, **(changed or {})}.items() if value is not None}
        given = {**metadata(arch, LLAMA), **{f"{arch}.{key}": value for key, value in fields.items()}}
        given = {key: value for key, value in given.items() if value is not None}
        return write(tmp_path / "model.gguf", arch, given, known, kinds)

    return tmp_path / "hf", arrays, make


@pytest.mark.parametrize("arch", CONFIGS)
def test_a_gguf_file_is_the_same_model_as_its_hugging_face_directory(arch: str, tmp_path: Path) -> None:
    config = CONFIGS[arch]
    params = random_params(config)
    save_hf(config, params, tmp_path / "hf")
    path = write(tmp_path / "m.gguf", arch, metadata(arch, config), gguf_arrays(arch, config, tmp_path / "hf"))
    read, loaded = load_gguf(path)
    assert read == load_hf(tmp_path / "hf")[0] == config
    # a Gemma's scales have 1 added in the file, and one bit is lost on the way back
    tolerance = 1e-6 if arch.startswith("gemma") else 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=0), loaded, params)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1])
def test_element_types_give_what_their_bytes_mean(llama, kind: Kind) -> None:
    _, arrays, make = llama
    stored = {name: gguf.quantize(array, kind) for name, array in arrays.items() if array.ndim == 2}
    tensors = GGUFTensors(make(stored, kinds=dict.fromkeys(stored, kind)))
    name, heads = "blk.1.attn_q.weight", LLAMA.heads
    expected = split_pairs(gguf.dequantize(stored[name], kind), heads)
    got = tensors.read("model.layers.1.self_attn.q_proj.weight")
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == np.float32
    original = split_pairs(arrays[name], heads)
    spread = {"F16": 1e-3, "BF16": 1e-2, "Q8_0": 2e-2, "Q4_0": 0.4, "Q4_1": 0.3}[kind.name]
    assert 0 < np.abs(got - original).max() < spread * np.abs(original).max()


def test_pairs_side_by_side_become_halves() -> None:
    rows = np.array(["a0", "b0", "a1", "b1", "c0", "d0", "c1", "d1"])
    assert split_pairs(rows, 2).tolist() == ["a0", "a1", "b0", "b1", "c0", "c1", "d0", "d1"]


def q4_k(rng: np.random.Generator, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """(bytes, values) of random Q4_K blocks: 8 groups of 32 with 6-bit scales and minima, 4 bits a number."""
    d, least = rng.uniform(0.01, 0.1, (2, blocks, 1)).astype(np.float16)
    scale, offset = rng.integers(0, 64, (2, blocks, 8))
    numbers = rng.integers(0, 16, (blocks, 8, 32))
    packed = np.zeros((blocks, 12), int)
    packed[:, :4] = scale[:, :4] | (scale[:, 4:] >> 4) << 6
    packed[:, 4:8] = offset[:, :4] | (offset[:, 4:] >> 4) << 6
    packed[:, 8:] = scale[:, 4:] & 15 | (offset[:, 4:] & 15) << 4
    nibbles = numbers[:, 0::2] | numbers[:, 1::2] << 4
    halves = [part.view(np.uint8) for part in (d, least)]
    data = np.concatenate([*halves, packed.astype(np.uint8), nibbles.reshape(blocks, 128).astype(np.uint8)], 1)
    big, small = d.astype(np.float32)[..., None], least.astype(np.float32)[..., None]
    return data, (big * scale[..., None] * numbers - small * offset[..., None]).reshape(blocks, 256)


def q6_k(rng: np.random.Generator, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """(bytes, values) of random Q6_K blocks: 16 groups of 16 with 8-bit scales, 6 bits a number."""
    d = rng.uniform(0.001, 0.01, (blocks, 1)).astype(np.float16)
    scale = rng.integers(-128, 128, (blocks, 16)).astype(np.int8)
    numbers = rng.integers(0, 64, (blocks, 2, 4, 32))  # half, quarter of the half, number
    low, high = numbers & 15, numbers >> 4
    lower = low[:, :, :2] | low[:, :, 2:] << 4
    upper = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    parts = [lower.reshape(blocks, 128), upper.reshape(blocks, 64)]
    data = np.concatenate([*(part.astype(np.uint8) for part in parts), scale.view(np.uint8), d.view(np.uint8)], 1)
    values = numbers.reshape(blocks, 16, 16) - 32
    return data, (d.astype(np.float32)[..., None] * scale[..., None] * values).reshape(blocks, 256)


@pytest.mark.parametrize(("kind", "blocks_of"), [(Kind.Q4_K, q4_k), (Kind.Q6_K, q6_k)])
def test_blocks_of_256_are_read_as_they_are_specified(llama, kind: Kind, blocks_of) -> None:
    _, _, make = llama
    data, values = blocks_of(np.random.default_rng(1), 6)
    rows = data.reshape(3, -1)  # 3 rows of two blocks
    tensors = GGUFTensors(make({"blk.0.ffn_up.weight": rows}, kinds={"blk.0.ffn_up.weight": kind}))
    got = tensors.read("model.layers.0.mlp.up_proj.weight")
    assert tensors.shapes["model.layers.0.mlp.up_proj.weight"] == got.shape == (3, 512)
    np.testing.assert_allclose(got, values.reshape(3, 512), rtol=1e-6)


def test_scalings_of_rope(llama) -> None:
    _, _, make = llama
    config, _ = load_gguf(make(**{"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}))
    assert config.rope_scaling == LinearRope(4.0)
    wanted = Llama3Rope(8.0, 1.0, 4.0, 8192)
    wavelengths = 2 * np.pi * 5000.0 ** (np.arange(16) / 16)
    smooth = np.clip((8192 / wavelengths - 1) / 3, 0, 1)
    factors = (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32)
    assert factors.max() > 7.9
    config, _ = load_gguf(make({"rope_freqs.weight": factors}))
    assert config.rope_scaling == wanted
    with pytest.raises(UserError, match=r"rope_freqs\.weight is not Llama 3's scaling"):
        GGUFTensors(make({"rope_freqs.weight": factors[::-1]}))


def test_parameters_can_be_held_in_another_dtype(llama) -> None:
    _, _, make = llama
    _, params = load_gguf(make(), dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


def test_what_is_wrong_with_a_file_is_said(llama, tmp_path: Path) -> None:
    _, arrays, make = llama

    def refused(path: Path, *parts: str) -> None:
        with pytest.raises(UserError) as error:
            load_gguf(path)
        said = str(error.value)
        assert "\n" not in said
        assert all(part in said for part in (str(path), *parts)), said

    refused(tmp_path / "none.gguf", "no such file")
    (tmp_path / "text.gguf").write_text("not a model")
    refused(tmp_path / "text.gguf", "does not start with GGUF")
    refused(make(arch="rwkv7"), "'rwkv7' is not known", "llama, qwen2")
    five = gguf.quantize(arrays["blk.0.ffn_up.weight"], Kind.Q5_0)
    many = dict.fromkeys(("blk.0.ffn_up.weight", "blk.1.ffn_up.weight"), five)
    refused(make(many, kinds=dict.fromkeys(many, Kind.Q5_0)), "blk.0.ffn_up.weight is Q5_0 and 1 more", "Q4_K, Q6_K")
    refused(make(block_count=None), "llama.block_count")
    refused(make(expert_count=8), "mixture of experts")
    refused(make({"token_embd.weight": None}), "token_embd.weight")
    refused(make({"blk.1.attn_k.weight": None}), "missing", "model.layers.1.self_attn.k_proj.weight")
    refused(make({"blk.1.surprise.weight": np.zeros(3, np.float32)}), "not expected", "blk.1.surprise.weight")
    refused(make({"output_norm.weight": np.zeros(3, np.float32)}), "another shape", "model.norm.weight")


@pytest.mark.parametrize("share", [0.0005, 0.002, 0.01, 0.02, 0.3, 0.999])
def test_a_truncated_file_is_refused(llama, share: float, tmp_path: Path) -> None:
    _, _, make = llama
    data = make().read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: max(5, int(share * len(data)))])
    with pytest.raises(UserError, match=r"cut\.gguf: truncated or damaged"):
        load_gguf(path)
