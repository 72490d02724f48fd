"""Two steps of a tiny cross-attention model on a mesh of all devices; a program of its own, as `eight_devices.py`.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python eight_devices_crossed.py OUT DATA FSDP TENSOR
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
from eight_devices import batch_for, run
from flax import traverse_util

from vlm_jax.config import load_experiment
from vlm_jax.models.adapters import CrossAttentionConfig
from vlm_jax.models.adapters.mlp import MLPAdapterConfig
from vlm_jax.parallel import MeshConfig

TINY = Path(__file__).parents[1] / "training" / "tiny_experiment.py"


def crossed():
    """The tiny model with a block before each of its layers."""
    tiny = load_experiment(str(TINY)).model
    adapter = CrossAttentionConfig(every=1, memory=MLPAdapterConfig(layers=1), norm="layer", query_key_norm=True)
    return dataclasses.replace(tiny, adapter=adapter)


def crossed_batch(model, length=24):
    """Rows with a picture, but for the last, which is text; the first positions of a row stand before it."""
    batch = batch_for(model)
    seen = np.zeros((*batch.tokens.shape, 2), np.int32)
    seen[:-1, 3:, 1] = 1
    return dataclasses.replace(batch, visual_index=None, block_ids=np.zeros_like(batch.block_ids), visible_images=seen)


def opened(params):
    """Gates that are not 0, so that what the blocks do shows."""
    flat = traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict({k: v + 0.5 if k.endswith("_gate") else v for k, v in flat.items()}, sep="/")


def main(directory, *sizes):
    """Writes OUT/losses.npy and OUT/params.npz."""
    out, state = run(MeshConfig(*map(int, sizes)), model=crossed(), make_batch=crossed_batch, change=opened)
    np.save(Path(directory, "losses.npy"), out["losses"])
    np.savez(Path(directory, "params.npz"), **traverse_util.flatten_dict(state.params, sep="/"))


if __name__ == "__main__":
    main(*sys.argv[1:])
