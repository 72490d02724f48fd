"""Safetensors files for tests, written by the reference library."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

Write = Callable[..., Path]


@pytest.fixture
def write_tensors(tmp_path: Path) -> Write:
    """Writes a directory of safetensors: one file, or as many shards as asked for, with their index."""

    def write(tensors: Mapping[str, np.ndarray], shards: int = 1, name: str = "model") -> Path:
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        if shards == 1:
            save_file(dict(tensors), directory / "model.safetensors", {"format": "pt"})
            return directory
        names = list(tensors)
        weight_map = {}
        for i in range(shards):
            file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
            save_file({key: tensors[key] for key in names[i::shards]}, directory / file, {"format": "pt"})
            weight_map |= dict.fromkeys(names[i::shards], file)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        return directory

    return write
