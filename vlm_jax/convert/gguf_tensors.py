"""GGUF files (llama.cpp's format, via the `gguf` package), presented with Hugging Face's names, layouts and config."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, dequantize

from vlm_jax.convert.hf import Progress, load_tensors
from vlm_jax.errors import UserError
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.parallel import Layout

SUPPORTED = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
"""Element types that are read; quantised ones become float32."""

NAMES: tuple[tuple[str, str], ...] = (
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
    ("blk.{layer}.attn_norm.weight", "model.layers.{layer}.input_layernorm.weight"),
    ("blk.{layer}.attn_q.weight", "model.layers.{layer}.self_attn.q_proj.weight"),
    ("blk.{layer}.attn_k.weight", "model.layers.{layer}.self_attn.k_proj.weight"),
    ("blk.{layer}.attn_v.weight", "model.layers.{layer}.self_attn.v_proj.weight"),
    ("blk.{layer}.attn_output.weight", "model.layers.{layer}.self_attn.o_proj.weight"),
    ("blk.{layer}.attn_q.bias", "model.layers.{layer}.self_attn.q_proj.bias"),
    ("blk.{layer}.attn_k.bias", "model.layers.{layer}.self_attn.k_proj.bias"),
    ("blk.{layer}.attn_v.bias", "model.layers.{layer}.self_attn.v_proj.bias"),
    ("blk.{layer}.attn_output.bias", "model.layers.{layer}.self_attn.o_proj.bias"),
    ("blk.{layer}.attn_q_norm.weight", "model.layers.{layer}.self_attn.q_norm.weight"),
    ("blk.{layer}.attn_k_norm.weight", "model.layers.{layer}.self_attn.k_norm.weight"),
    ("blk.{layer}.ffn_norm.weight", "model.layers.{layer}.post_attention_layernorm.weight"),
    ("blk.{layer}.ffn_gate.weight", "model.layers.{layer}.mlp.gate_proj.weight"),
    ("blk.{layer}.ffn_up.weight", "model.layers.{layer}.mlp.up_proj.weight"),
    ("blk.{layer}.ffn_down.weight", "model.layers.{layer}.mlp.down_proj.weight"),
)
"""GGUF's names and Hugging Face's; an architecture may change some."""

GEMMA2_NAMES = (
    ("blk.{layer}.post_attention_norm.weight", "model.layers.{layer}.post_attention_layernorm.weight"),
    ("blk.{layer}.ffn_norm.weight", "model.layers.{layer}.pre_feedforward_layernorm.weight"),
    ("blk.{layer}.post_ffw_norm.weight", "model.layers.{layer}.post_feedforward_layernorm.weight"),
)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How a GGUF architecture differs from Hugging Face's model of `model_type`."""

    model_type: str
    interleaved: bool = False
    """Rotary pairs of q and k lie next to each other; Hugging Face has them half a head apart."""
    norm_offset: float = 0.0
    """What the file's norm scales hold over Hugging Face's: 1 for Gemma, whose scales are kept less one."""
    names: tuple[tuple[str, str], ...] = ()


ARCHITECTURES = {
    "llama": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma": Architecture("gemma", norm_offset=1.0),
    "gemma2": Architecture("gemma2", norm_offset=1.0, names=GEMMA2_NAMES),
}
"""Known values of `general.architecture`. Mistral, SmolLM2 and TinyLlama files say llama."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where a tensor lies in the file and how it is to be read."""

    kind: GGMLQuantizationType
    offset: int
    """Bytes from the start of the file."""
    size: int
    """Bytes."""
    shape: tuple[int, ...]
    """Of the stored array: rows of blocks if the type is quantised."""
    dtype: np.dtype
    restore: Callable[[np.ndarray], np.ndarray]
    """File layout -> Hugging Face layout."""


class GGUFTensors:
    """The tensors of one file under Hugging Face's names (`convert.tensors.Tensors`); they are dequantised one by one.

    Attributes:
        shapes: {Hugging Face name: shape}.
        where: the file.
        metadata: the file's key-value pairs, the tokenizer's among them (`tokenizer.ggml.*`).
        config: what a Hugging Face config.json of the same model says.
    """

    shapes: Mapping[str, tuple[int, ...]]

    def __init__(self, path: str | Path) -> None:
        """Reads the header.

        Raises:
            UserError: if the file is missing, truncated or no GGUF, or of an architecture or element type that is
                not supported.
        """
        self.where = str(path)
        reader = _open(self.where)
        self.metadata: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}
        name = self.metadata.get("general.architecture")
        if name not in ARCHITECTURES:
            raise UserError(f"{path}: architecture {name!r} is not known; known are {', '.join(ARCHITECTURES)}")
        self.architecture = ARCHITECTURES[name]
        entries = {tensor.name: tensor for tensor in reader.tensors}
        wrong = [f"{n} is {t.tensor_type.name}" for n, t in entries.items() if t.tensor_type.name not in SUPPORTED]
        if wrong:
            rest = f" and {len(wrong) - 1} more" if wrong[1:] else ""
            raise UserError(f"{path}: tensor {wrong[0]}{rest}; supported types are {', '.join(SUPPORTED)}")
        shapes = {n: tuple(int(size) for size in reversed(t.shape)) for n, t in entries.items()}
        self.config = read_config(self.metadata, shapes, self.where)
        factors = entries.pop("rope_freqs.weight", None)
        if factors is not None:
            self.config["rope_scaling"] = _llama3_scaling(np.asarray(factors.data), self.config, self.where)
        renamed = {n: huggingface_name(n, self.architecture) for n in entries}
        self.shapes = {renamed[n]: shapes[n] for n in entries}
        self._stored = {
            renamed[n]: Stored(
                t.tensor_type, int(t.data_offset), t.data.nbytes, t.data.shape, t.data.dtype, self._restore(renamed[n])
            )
            for n, t in entries.items()
        }

    def dtype(self, name: str) -> str:
        """The dtype that `read` gives: always float32."""
        return "float32"

    def read(self, name: str) -> np.ndarray:
        """One tensor, float32, in Hugging Face's layout ([out, in] for linear maps)."""
        stored = self._stored[name]
        with open(self.where, "rb") as file:  # not the reader's memory map: its pages would count as this process's
            file.seek(stored.offset)
            data = file.read(stored.size)
        if len(data) != stored.size:
            raise UserError(f"{self.where}: truncated at {name}; fetch the file again")
        array = dequantize(np.frombuffer(data, stored.dtype).reshape(stored.shape), stored.kind)
        return stored.restore(np.asarray(array, np.float32))

    def _restore(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        heads = {
            "q_proj": self.config["num_attention_heads"],
            "k_proj": self.config["num_key_value_heads"],
        }
        projection = name.rpartition(".")[0].rpartition(".")[2]
        if self.architecture.interleaved and projection in heads:
            return lambda array: split_pairs(array, heads[projection])
        if self.architecture.norm_offset and projection.endswith("norm"):
            return lambda array: array - np.float32(self.architecture.norm_offset)
        return lambda array: array


def load_gguf(
    source: str | Path | GGUFTensors,
    *,
    dtype: str | None = None,
    layout: Layout | None = None,
    progress: Progress | None = None,
) -> tuple[DecoderConfig, dict[str, Any]]:
    """Reads the LLM in a GGUF file.

    Args:
        source: the file, or its tensors where they are open already (a large vocabulary takes seconds to parse).
        dtype: that parameters are held in ("float32", "bfloat16"); None = float32.
        layout: where parameters go; None = the first device.
        progress: told how far it is.

    Returns:
        (config, parameters of `Decoder`).

    Raises:
        UserError: if the file is damaged, or its architecture or element types are not supported.
    """
    tensors = source if isinstance(source, GGUFTensors) else GGUFTensors(source)
    config, params = load_tensors(tensors.config, tensors, dtype=dtype, layout=layout, progress=progress)
    assert isinstance(config, DecoderConfig)
    return config, params


def huggingface_name(name: str, architecture: Architecture) -> str:
    """GGUF's name of a tensor -> Hugging Face's; one that the table lacks stays as it is (loading will list it)."""
    layer = re.match(r"blk\.(\d+)\.", name)
    pattern = re.sub(r"^blk\.\d+\.", "blk.{layer}.", name)
    theirs = {**dict(NAMES), **dict(architecture.names)}.get(pattern)
    if theirs is None:
        return name
    return theirs.replace("{layer}", layer[1]) if layer else theirs


def split_pairs(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection with rotary pairs side by side -> pairs half a head apart.

    One head of size 4: rows [a0 b0 a1 b1] -> [a0 a1 b0 b1].

    Args:
        array: [heads * head size, ...].
    """
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def read_config(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Any]:
    """GGUF metadata -> the config.json that Hugging Face has for the same model.

    Args:
        metadata: the file's key-value pairs.
        shapes: of the file's tensors by their GGUF names: what the metadata leaves out shows in them.
        where: the file, for messages.

    Raises:
        UserError: if a key is missing or the model is a mixture of experts.
    """
    name = metadata["general.architecture"]

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{name}.{key}", default)
        if value is None:
            raise UserError(f"{where}: the metadata has no {name}.{key}; the file is not a complete model")
        return _shortest(value)

    if metadata.get(f"{name}.expert_count", 0):
        raise UserError(f"{where}: a mixture of experts ({name}.expert_count); only dense models can be read")
    if "token_embd.weight" not in shapes:
        raise UserError(f"{where}: there is no tensor token_embd.weight; the file is not a complete model")
    heads = get("attention.head_count")
    head_size = get("attention.key_length", metadata.get(f"{name}.rope.dimension_count", 0)) or None
    biases = "blk.0.attn_q.bias" in shapes
    config = {
        "model_type": ARCHITECTURES[name].model_type,
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": get("embedding_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": head_size or get("embedding_length") // heads,
        "intermediate_size": get("feed_forward_length"),
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base", 10_000.0),
        "rope_scaling": _rope_scaling(metadata, name),
        "tie_word_embeddings": "output.weight" not in shapes,
        "attention_bias": biases and name != "qwen2",
        "hidden_act": "silu",
    }
    if name.startswith("gemma"):
        config |= {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
    if name == "gemma2":
        # GGUF keeps no query scale; llama.cpp knows that the 27B model alone (46 layers) has width / heads
        per_head = config["hidden_size"] / heads if config["num_hidden_layers"] == 46 else config["head_dim"]
        config |= {
            "query_pre_attn_scalar": per_head,
            "attn_logit_softcapping": get("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": get("final_logit_softcapping", 30.0),
            "sliding_window": get("attention.sliding_window", 4096),
        }
    return config


def _rope_scaling(metadata: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    kind = metadata.get(f"{name}.rope.scaling.type", "none")
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": _shortest(metadata.get(f"{name}.rope.scaling.factor", 1.0))}
    original = metadata.get(f"{name}.rope.scaling.original_context_length")
    return scaling | ({"original_max_position_embeddings": original} if original else {})


def _llama3_scaling(factors: np.ndarray, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Llama 3's scaling from `rope_freqs.weight`, by which GGUF divides each rotary frequency.

    The table does not tell the parameters that it was made from: those of every published Llama 3 model are tried.
    """
    half = factors.size
    wavelengths = 2 * np.pi * config["rope_theta"] ** (np.arange(half) / half)
    factor, low, high, original = float(factors.max()), 1.0, 4.0, 8192
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    if not np.allclose(1 / ((1 - smooth) / factor + smooth), factors, rtol=1e-3):
        raise UserError(
            f"{where}: rope_freqs.weight is not Llama 3's scaling (frequency factors 1 and 4, context 8192); "
            "import the model from its Hugging Face directory"
        )
    return {
        "rope_type": "llama3",
        "factor": round(factor, 4),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _shortest(value: Any) -> Any:
    """float32 9.999999747e-06 -> 1e-05: the shortest decimal that means the same float32; other values as they are."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _open(path: str) -> GGUFReader:
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{path}: there is no such file; give the path of a .gguf file")
    with file.open("rb") as start:
        if start.read(4) != b"GGUF":
            raise UserError(f"{path} is not a GGUF file: it does not start with GGUF")
    try:
        reader = GGUFReader(path)
    except (ValueError, LookupError, OverflowError, TypeError, KeyError, MemoryError) as error:
        raise UserError(f"{path}: truncated or damaged ({str(error).splitlines()[0][:120]}); fetch it again") from None
    if reader.byte_order != "I":
        raise UserError(f"{path}: the file is of the other byte order; convert it with the gguf package first")
    return reader
