"""Whether a host has the memory that loading takes: asked before anything is read."""

from pathlib import Path
from typing import Any

import jax

from vlm_jax.errors import UserError
from vlm_jax.parallel import Layout, device_bytes, host_bytes


def check_host_memory(abstract: Any, layout: Layout) -> None:
    """Makes sure that this host can hold the parameters of its devices, which pass through its memory or stay there.

    Args:
        abstract: all parameters with their shardings.
        layout: of the devices.

    Raises:
        UserError: if they are more than its free memory; nothing is checked where the system does not tell.
    """
    free = free_memory()
    own = [device for device in layout.mesh.devices.flat if device.process_index == jax.process_index()]
    # On accelerators a part that several hold passes through the host but once.
    needed = len(own) * device_bytes(abstract) if jax.default_backend() == "cpu" else host_bytes(abstract, own)
    if free is not None and needed > free:
        raise UserError(
            f"this host's devices hold {needed / 1e9:.1f} GB of parameters, but only {free / 1e9:.1f} GB of its memory "
            "are free; take more hosts and raise mesh.fsdp, or a smaller model"
        )


def free_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that programs may still take; None where there is no /proc/meminfo."""
    if not meminfo.exists():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None
