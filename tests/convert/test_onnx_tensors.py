"""ONNX graphs as PyTorch's exporter writes them: anonymous weights are found by the nodes that use them."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from vlm_jax.convert import load_hf, save_hf
from vlm_jax.convert.onnx_tensors import ONNXTensors, load_onnx, read_dinov2_config
from vlm_jax.convert.tensors import SafetensorsDirectory
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.presets import IMAGENET_MEAN, IMAGENET_STD
from vlm_jax.models.vit import PatchStem, ViTConfig
from vlm_jax.parallel import abstract_params

CONFIG = ViTConfig(
    (42, 42),
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
    position_resampling="bicubic",
)


@pytest.fixture
def tensors(tmp_path: Path) -> dict[str, np.ndarray]:
    """The tensors of a random DINOv2 under their names in PyTorch."""
    rng = np.random.default_rng(0)
    shapes = abstract_params(boxed_params(build_model(CONFIG)))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), shapes)
    save_hf(CONFIG, params, tmp_path / "hf")
    directory = SafetensorsDirectory(tmp_path / "hf")
    return {name: directory.read(name) for name in directory.shapes}


@dataclasses.dataclass
class Graph:
    """Nodes and initialisers, named as the exporter names them."""

    prefix: str
    nodes: list[Any] = dataclasses.field(default_factory=list)
    values: list[Any] = dataclasses.field(default_factory=list)

    def node(self, kind: str, scope: str, inputs: list[str], **attributes: Any) -> str:
        name = "/" + f"{self.prefix}{scope}.{kind}".replace(".", "/")
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}_{len(self.nodes)}"], name, **attributes))
        return self.nodes[-1].output[0]

    def constant(self, scope: str, value: Any) -> str:
        return self.node("Constant", scope, [], value=numpy_helper.from_array(np.asarray(value)))

    def value(self, name: str, array: np.ndarray) -> str:
        self.values.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name


def exported(
    tensors: dict[str, np.ndarray],
    path: Path,
    prefix: str = "backbone.",
    size: int | None = 28,
    fused_norms: bool = False,
    heads: bool = True,
) -> Path:
    """A file with the nodes that tell what weights are; it is not complete enough to be run."""
    graph = Graph(prefix)
    for name, array in tensors.items():
        if name == "embeddings.position_embeddings":
            first = graph.value("onnx::Concat_7", array[:, :1])
            rest = graph.value("onnx::Reshape_8", array[:, 1:])
            grid = graph.node("Reshape", "embeddings", [rest, graph.constant("embeddings", [1, 3, 3, 24])])
            graph.node("Concat", "embeddings", [first, grid], axis=1)
        elif array.ndim == 2:
            weight = graph.value(f"onnx::MatMul_{len(graph.values)}", array.T)
            graph.node("MatMul", name.removesuffix(".weight"), ["x", weight])
        else:
            graph.value(prefix + name, array)
    scope = "encoder.layer.0.attention.attention"
    batch = graph.node("Shape", scope, ["x"])
    parts = [batch, batch, *(graph.constant(scope, [number]) for number in ((3, 8) if heads else (4, 5)))]
    graph.node("Reshape", scope, ["x", graph.node("Concat", scope, parts, axis=0)])
    norm = "encoder.layer.0.norm1"
    if fused_norms:
        graph.node("LayerNormalization", norm, ["x", f"{prefix}{norm}.weight"], epsilon=1e-5)
    else:
        graph.node("Pow", norm, ["x", graph.constant(norm, np.float32(2))])
        graph.node("Add", norm, ["x", graph.constant(norm, np.float32(1e-5))])
    if prefix:
        graph.value("head.weight", np.zeros((2, 24), np.float32))
    shape = ["batch", 3, size or "height", size or "width"]
    takes = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    model = helper.make_model(helper.make_graph(graph.nodes, "model", [takes], [], graph.values))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("prefix", ["backbone.", "deep.inside.", ""])
def test_an_exported_graph_is_the_same_model_as_its_hugging_face_directory(tensors, tmp_path, prefix) -> None:
    config, params = load_onnx(exported(tensors, tmp_path / "m.onnx", prefix), prefix)
    _, expected = load_hf(tmp_path / "hf")
    assert config == dataclasses.replace(CONFIG, image_size=(28, 28), position_grid=(3, 3))
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_what_the_graph_leaves_open(tensors, tmp_path: Path) -> None:
    config, _ = load_onnx(exported(tensors, tmp_path / "m.onnx", size=None, fused_norms=True))
    assert config == CONFIG
    found = ONNXTensors(exported(tensors, tmp_path / "m.onnx", heads=False), "backbone.")
    with pytest.raises(UserError, match="does not show how many heads"):
        read_dinov2_config(found)


def test_names_are_those_of_pytorch(tensors, tmp_path: Path) -> None:
    found = ONNXTensors(exported(tensors, tmp_path / "m.onnx"), "backbone.")
    assert dict(found.shapes) == {name: array.shape for name, array in tensors.items()}
    for name, array in tensors.items():
        np.testing.assert_array_equal(found.read(name), array)
        assert found.dtype(name) == "float32"


def test_what_is_wrong_with_a_file_is_said(tensors, tmp_path: Path) -> None:
    path = exported(tensors, tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"no weights below 'encoder\.'; the file has backbone, head"):
        load_onnx(path, "encoder.")
    with pytest.raises(UserError, match=r"no DINOv2 below 'head\.'"):
        load_onnx(path, "head.")
    with pytest.raises(UserError, match="no such file"):
        load_onnx(tmp_path / "none.onnx")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"cut\.onnx: truncated"):
        load_onnx(cut)
    del tensors["encoder.layer.1.mlp.fc2.weight"], tensors["encoder.layer.1.norm2.bias"]
    with pytest.raises(UserError, match=r"2 missing .*norm2\.bias.*mlp\.fc2\.weight"):
        load_onnx(exported(tensors, path))
