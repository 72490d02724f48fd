"""Whether a host has the memory that loading takes: asked before anything is read."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vlm_jax.errors import UserError
from vlm_jax.parallel import Layout


def check_host_memory(abstract: Any, layout: Layout) -> None:
    """Makes sure that this host can hold the parameters of its devices, which pass through its memory or stay there.

    Args:
        abstract: all parameters with their shardings.
        layout: of the devices.

    Raises:
        UserError: if they are more than its free memory; nothing is checked where the system does not tell.
    """
    free = free_memory()
    needed = sum(_held(leaf, layout) for leaf in jax.tree.leaves(abstract))
    if free is not None and needed > free:
        raise UserError(
            f"this host's devices hold {needed / 1e9:.1f} GB of parameters, but only {free / 1e9:.1f} GB of its memory "
            "are free; take more hosts and raise mesh.fsdp, or a smaller model"
        )


def _held(leaf: jax.ShapeDtypeStruct, layout: Layout) -> int:
    """Bytes of a parameter on this process's devices; on accelerators a part passes through the host but once."""
    size = np.dtype(leaf.dtype).itemsize
    assert leaf.sharding is not None
    own = sum(device.process_index == jax.process_index() for device in layout.mesh.devices.flat)
    held = own * math.prod(leaf.sharding.shard_shape(leaf.shape)) * size
    return held if jax.default_backend() == "cpu" else min(held, math.prod(leaf.shape) * size)


def free_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that programs may still take; None where there is no /proc/meminfo."""
    if not meminfo.exists():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None
