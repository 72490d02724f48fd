"""A model goes out, and comes back in, here and in transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from harness import assert_same, run
from safetensors.numpy import load_file

from vlm_jax.convert import load_hf, save_hf


def assert_comes_back(
    config: Any, params: Any, theirs: Any, inputs: Mapping[str, np.ndarray], path: Path, architecture: Any
) -> None:
    """What `save_hf` writes is the same model: for `load_hf` bit for bit, and for transformers with nothing amiss.

    Args:
        config, params: ours.
        theirs: transformers' model that they came from.
        inputs: shown to both of transformers' models.
        path: an empty directory.
        architecture: transformers' class that reads it.
    """
    save_hf(config, params, path / "out")
    again, same = load_hf(path / "out")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, same, params)
    save_hf(again, same, path / "twice")
    first, second = (load_file(path / name / "model.safetensors") for name in ("out", "twice"))
    assert first.keys() == second.keys()
    exported, info = architecture.from_pretrained(
        path / "out", attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not {name: keys for name, keys in info.items() if keys}
    assert_same(run(exported.eval(), inputs), run(theirs, inputs), inputs)
