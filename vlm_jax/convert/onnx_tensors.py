"""Weights out of ONNX graphs (the `onnx` package), under the names that the exported PyTorch model gave them.

An exporter folds what it can: the weights of linear maps are stored transposed and without a name, and parts of learned
positions become constants. The names of the nodes that use them say which they are.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from vlm_jax.convert.hf import Progress, load_tensors
from vlm_jax.errors import UserError
from vlm_jax.models.vit import ViTConfig
from vlm_jax.parallel import Layout


@dataclasses.dataclass(frozen=True)
class Source:
    """Which initialisers make up a tensor, and how."""

    initialisers: tuple[str, ...]
    transposed: bool = False
    """Linear weights: MatMul takes [in, out], PyTorch keeps [out, in]."""


class ONNXTensors:
    """The initialisers below one module of the exported model (`convert.tensors.Tensors`).

    Attributes:
        shapes: {name in the PyTorch module, without the prefix: shape}.
        where: the file.
        graph: the ONNX graph.
        prefix: the module, with its dot: "backbone."; "" = the whole model.
    """

    shapes: Mapping[str, tuple[int, ...]]

    def __init__(self, path: str | Path, prefix: str = "") -> None:
        """Parses the file, and reads no tensor yet.

        Raises:
            UserError: if the file is missing or no ONNX model, or has nothing below the prefix.
        """
        self.where, self.prefix = str(path), prefix
        self.graph = _open(self.where).graph
        self._initialisers = {entry.name: entry for entry in self.graph.initializer}
        self._sources = dict(self._find_sources())
        if not self._sources:
            tops = sorted({name.split(".")[0] for name in self._initialisers if "::" not in name and "." in name})
            raise UserError(
                f"{path}: no weights below {prefix!r}; the file has {', '.join(tops) or 'no named weights'}"
            )
        self.shapes = {name: self._shape(source) for name, source in self._sources.items()}

    def dtype(self, name: str) -> str:
        """The dtype that `read` gives, as numpy and ml_dtypes call it."""
        kind = self._initialisers[self._sources[name].initialisers[0]].data_type
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).name

    def read(self, name: str) -> np.ndarray:
        """One tensor, in PyTorch's layout."""
        source = self._sources[name]
        folder = str(Path(self.where).parent)
        arrays = [numpy_helper.to_array(self._initialisers[part], folder) for part in source.initialisers]
        if source.transposed:
            return arrays[0].T
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)

    def scope(self, node: onnx.NodeProto) -> str:
        """The module that a node belongs to: "/backbone/layernorm/Mul" -> "layernorm"; "" outside the prefix."""
        module = node.name.strip("/").rpartition("/")[0].replace("/", ".")
        return module[len(self.prefix) :] if module.startswith(self.prefix) else ""

    def constant(self, name: str) -> np.ndarray | None:
        """The value that a node's input always has: of a Constant node or an initialiser; None if it is computed."""
        if name in self._initialisers:
            return numpy_helper.to_array(self._initialisers[name], str(Path(self.where).parent))
        for node in self.graph.node:
            if name in node.output and node.op_type == "Constant":
                return numpy_helper.to_array(node.attribute[0].t)
        return None

    def _find_sources(self) -> Iterator[tuple[str, Source]]:
        for name in self._initialisers:
            if name.startswith(self.prefix) and "::" not in name:
                yield name[len(self.prefix) :], Source((name,))
        classes, patches = [], []
        for node in self.graph.node:
            module = self.scope(node)
            unnamed = [name for name in node.input if "::" in name and name in self._initialisers]
            if not module or not unnamed:
                continue
            if node.op_type == "MatMul":
                yield f"{module}.weight", Source((unnamed[0],), transposed=True)
            elif module == "embeddings" and node.op_type == "Concat":
                classes += unnamed
            elif module == "embeddings" and node.op_type == "Reshape":
                patches += unnamed
        # learned positions, split by the exporter: [1, 1, D] of the class token and [1, N, D] of the patches
        if len(classes) == 1 and len(patches) == 1:
            yield "embeddings.position_embeddings", Source((classes[0], patches[0]))

    def _shape(self, source: Source) -> tuple[int, ...]:
        shapes = [tuple(self._initialisers[part].dims) for part in source.initialisers]
        if source.transposed:
            return shapes[0][::-1]
        if len(shapes) == 1:
            return shapes[0]
        return (shapes[0][0], sum(shape[1] for shape in shapes), *shapes[0][2:])


def load_onnx(
    path: str | Path,
    prefix: str = "backbone.",
    *,
    dtype: str | None = None,
    layout: Layout | None = None,
    progress: Progress | None = None,
) -> tuple[ViTConfig, dict[str, Any]]:
    """Reads the DINOv2 in an ONNX file that PyTorch exported from transformers' implementation.

    Args:
        path: the file.
        prefix: where the model is in the exported module, with its dot; "" = it is the module.
        dtype: that parameters are held in ("float32", "bfloat16"); None = as stored.
        layout: where parameters go; None = the first device.
        progress: told how far it is.

    Returns:
        (config, parameters of `ViT`); the image size is the one that the graph was traced for.

    Raises:
        UserError: if the file is damaged, or there is no DINOv2 below the prefix.
    """
    tensors = ONNXTensors(path, prefix)
    config, params = load_tensors(read_dinov2_config(tensors), tensors, dtype=dtype, layout=layout, progress=progress)
    assert isinstance(config, ViTConfig)
    size = traced_size(tensors)
    if size is None:
        return config, params
    return dataclasses.replace(config, image_size=size, position_grid=config.position_grid or config.grid), params


def read_dinov2_config(tensors: ONNXTensors) -> dict[str, Any]:
    """The config.json that Hugging Face has for the DINOv2 whose graph this is.

    Sizes come from shapes, the number of heads from the constants to which queries are reshaped, the epsilon of the
    layer norms from the graph. What the graph does not tell follows DINOv2: exact GELU and ImageNet normalisation.

    Raises:
        UserError: if the graph is no DINOv2 or does not show its heads or epsilon.
    """
    shapes = tensors.shapes
    needed = ("embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings", "embeddings.cls_token")
    missing = [name for name in needed if name not in shapes]
    if missing:
        raise UserError(f"{tensors.where}: no DINOv2 below {tensors.prefix!r}: there is no {', '.join(missing)}")
    width, channels, patch, _ = shapes[needed[0]]
    layers = {int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layer.")}
    side = math.isqrt(shapes[needed[1]][1] - 1)
    gated = "encoder.layer.0.mlp.weights_in.weight" in shapes
    hidden = shapes.get("encoder.layer.0.mlp.fc1.bias", (0,))[0]
    return {
        "model_type": "dinov2",
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": side * patch,
        "num_hidden_layers": len(layers),
        "num_attention_heads": _heads(tensors, width),
        "mlp_ratio": 4 if gated else hidden // width,
        "use_swiglu_ffn": gated,
        "hidden_act": "gelu",
        "layer_norm_eps": _epsilon(tensors),
        "qkv_bias": "encoder.layer.0.attention.attention.query.bias" in shapes,
    }


def traced_size(tensors: ONNXTensors) -> tuple[int, int] | None:
    """(height, width) of the pictures that the graph takes; None if it takes any."""
    dims = [dim.dim_value for dim in tensors.graph.input[0].type.tensor_type.shape.dim]
    return (dims[2], dims[3]) if len(dims) == 4 and dims[2] and dims[3] else None


def _heads(tensors: ONNXTensors, width: int) -> int:
    """The heads by which the first attention splits its queries: its reshape to [..., heads, head size]."""
    makers = {output: node for node in tensors.graph.node for output in node.output}
    for node in tensors.graph.node:
        if node.op_type != "Reshape" or not tensors.scope(node).startswith("encoder.layer.0.attention"):
            continue
        shape = tensors.constant(node.input[1])
        parts = list(makers[node.input[1]].input) if shape is None and node.input[1] in makers else []
        known = [tensors.constant(part) for part in parts]
        sizes = shape.tolist() if shape is not None else [int(part.item()) for part in known if part is not None]
        if len(sizes) >= 2 and sizes[-2] * sizes[-1] == width:
            return int(sizes[-2])
    raise UserError(f"{tensors.where}: the graph does not show how many heads attention has; import from safetensors")


def _epsilon(tensors: ONNXTensors) -> float:
    """The epsilon of the first layer norm: an attribute, or the constant added to the variance."""
    for node in tensors.graph.node:
        if tensors.scope(node) != "encoder.layer.0.norm1":
            continue
        if node.op_type == "LayerNormalization":
            return next((_shortest(entry.f) for entry in node.attribute if entry.name == "epsilon"), 1e-5)
        values = [tensors.constant(name) for name in node.input]
        scalars = [value for value in values if value is not None and value.size == 1]
        if node.op_type == "Add" and scalars:
            return _shortest(scalars[0].item())
    raise UserError(f"{tensors.where}: the graph does not show the epsilon of its layer norms; import from safetensors")


def _shortest(value: float) -> float:
    return float(str(np.float32(value)))


def _open(path: str) -> onnx.ModelProto:
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file; give the path of an .onnx file")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise UserError(f"{path}: truncated, or no ONNX model ({str(error)[:100]}); fetch it again") from None
    if not model.graph.node:
        raise UserError(f"{path}: an ONNX model without a graph; fetch it again")
    return model
