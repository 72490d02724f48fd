"""Imports a directory onto four devices and says what each of them holds; a program of its own, since the number of
devices is fixed when jax starts.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 python four_devices.py DIRECTORY
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from vlm_jax.convert import load_hf, save_hf
from vlm_jax.parallel import MeshConfig, build_layout


def main(directory: str) -> None:
    """Prints JSON."""
    layout = build_layout(MeshConfig(fsdp=2, tensor=2))
    config, params = load_hf(directory, layout=layout)
    _, alone = load_hf(directory)
    same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), params, alone)
    save_hf(config, params, directory + "-out")
    weights = [Path(place, "model.safetensors").read_bytes() for place in (directory, directory + "-out")]
    block = params["layers"]["block_0"]
    found = {
        "same": all(jax.tree.leaves(same)),
        "out": weights[0] == weights[1],
        "devices": sorted({len(leaf.sharding.device_set) for leaf in jax.tree.leaves(params)}),
        "up": [list(shard.data.shape) for shard in block["mlp"]["up"]["kernel"].addressable_shards],
        "embedding": [list(shard.data.shape) for shard in params["embedding"].addressable_shards],
        "norm": [list(shard.data.shape) for shard in params["norm"]["scale"].addressable_shards],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
