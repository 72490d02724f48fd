"""Weights that are a pure function of a tensor's name and shape, so that tests with and without torch have the same."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

Shapes = Mapping[str, tuple[int, ...]]


def value(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Normal float32 numbers: matrices with variance 1 / fan-in; biases around 0 and other vectors around 1, so that
    a bias or scale which is left out or swapped does not go unnoticed."""
    x = np.random.default_rng([zlib.crc32(name.encode()), seed]).standard_normal(shape, np.float32)
    if len(shape) > 1:
        return x * np.float32(np.prod(shape[1:]) ** -0.5)
    return np.asarray(np.float32(0.25) * x + np.float32(0 if name.endswith("bias") else 1))


def write_weights(directory: Path, shapes: Shapes, seed: int = 0) -> None:
    """DIRECTORY/model.safetensors with `value` for every tensor."""
    tensors = {name: value(name, tuple(shape), seed) for name, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def write_directory(directory: Path, config: str, shapes: Shapes, seed: int = 0) -> None:
    """A Hugging Face directory: config.json and model.safetensors."""
    json.loads(config)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(config)
    write_weights(directory, shapes, seed)
