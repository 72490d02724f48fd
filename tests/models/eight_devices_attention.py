"""Attention by a kernel over rows and heads that eight devices share; a program of its own, since the number of devices
is fixed when jax starts.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python eight_devices_attention.py
"""

import jax
import numpy as np
from packed_rows import assert_same, outputs_and_gradients, plain, random_heads, random_rows

from vlm_jax.parallel import MeshConfig, build_layout, use_layout

CASES = (
    # kernel, mesh, rows, length, heads, groups, window
    ("splash", {"data": 2, "sequence": 2, "tensor": 2}, 2, 300, 4, 2, 0),
    ("splash_dynamic", {"data": 2, "sequence": 2, "tensor": 2}, 2, 300, 4, 1, 0),
    ("splash", {"data": 1, "fsdp": 2, "tensor": 4}, 2, 140, 8, 2, 60),
    ("splash_dynamic", {"data": 8}, 2, 130, 2, 1, 0),  # fewer rows than devices
    ("xla", {"data": 1, "sequence": 4, "tensor": 2}, 1, 1100, 2, 2, 0),
)


def main():
    jax.config.update("jax_disable_most_optimizations", True)
    for kernel, mesh, rows, length, heads, groups, window in CASES:
        rng = np.random.default_rng(length)
        batch = random_rows(rng, rows, length, one_path=kernel == "splash")
        arrays = random_heads(rng, rows, length, heads, groups, 8)
        with use_layout(build_layout(MeshConfig(**mesh))):
            found = outputs_and_gradients(kernel, batch, arrays, window)
        assert_same(found, plain(batch, arrays, window))
        print(kernel, mesh, flush=True)


if __name__ == "__main__":
    main()
