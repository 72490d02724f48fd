"""Flags of the TPU compiler for training, by generation, each with its reason and where it was seen to help.

On a TPU they take effect through the variable LIBTPU_INIT_ARGS, which must be set before jax starts its backend;
a rehearsal gives the same ones to the compiler as options. Flags of the runtime, such as those of megascale, are not
here: without a TPU nobody would notice that one of them is unknown, and an unknown one ends the process.

Sources, by the letters used below:

M  AI-Hypercomputer/maxtext, benchmarks/xla_flags_library.py and the model configs beside it.
A  apple/axlearn, axlearn/common/compiler_options.py.
L  marin-community/marin, the default environment of its TPU jobs (levanter).
C  seen in the HLO that libtpu 0.0.42.1 makes with the flag and without it.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path

VARIABLE = "LIBTPU_INIT_ARGS"


@dataclasses.dataclass(frozen=True)
class Flag:
    """A value, and why."""

    value: bool | int
    reason: str
    source: str
    """Letters of the module's docstring."""


_ASYNC_ALL_GATHER = {
    "xla_enable_async_all_gather": Flag(True, "an all-gather is a start and a done, with room between them", "MA"),
    "xla_tpu_enable_async_collective_fusion": Flag(
        True, "the steps of a collective are fused with the products that run meanwhile; off on v5p by itself", "MAC"
    ),
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": Flag(
        True, "the same for all-gathers, which FSDP needs before every layer", "MAC"
    ),
    "xla_tpu_enable_async_collective_fusion_multiple_steps": Flag(
        True, "a collective may go on over several products", "MA"
    ),
    "xla_tpu_overlap_compute_collective_tc": Flag(True, "the core computes while a collective is under way", "MA"),
}

_NOT_ON_THE_CORE = "either the core or the sparse cores carry a collective"
_ON_SPARSE_CORES = {
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": Flag(False, _NOT_ON_THE_CORE, "M"),
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": Flag(
        True, "the sparse cores move all-gathers while the core computes", "MC"
    ),
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": Flag(
        True, "the same for gradients, which the core else waits for", "MC"
    ),
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": Flag(True, "the same for what is not sharded", "MC"),
    "xla_tpu_use_tc_device_shape_on_sc": Flag(True, "needed by the three before", "M"),
    "xla_sc_disable_megacore_partitioning": Flag(True, "needed by the three before", "M"),
    "xla_sc_enable_instruction_fusion": Flag(False, "needed by the three before", "M"),
}

_MORE_FAST_MEMORY = "fusions and kernels may use more of the 128 MiB of VMEM than 16 MiB, and so read HBM less often"

FLAGS: Mapping[str, Mapping[str, Flag]] = {
    "v4": {
        **_ASYNC_ALL_GATHER,
        "xla_enable_async_collective_permute": Flag(True, "the same for permutes; later ones have it by default", "A"),
    },
    "v5e": {**_ASYNC_ALL_GATHER, "xla_tpu_scoped_vmem_limit_kib": Flag(50_000, _MORE_FAST_MEMORY, "L")},
    "v5p": {**_ASYNC_ALL_GATHER, "xla_tpu_scoped_vmem_limit_kib": Flag(50_000, _MORE_FAST_MEMORY, "L")},
    "v6e": {
        **_ASYNC_ALL_GATHER,
        **_ON_SPARSE_CORES,
        "xla_tpu_scoped_vmem_limit_kib": Flag(98_304, _MORE_FAST_MEMORY, "MAL"),
        "xla_jf_spmd_threshold_for_windowed_einsum_mib": Flag(
            1_000_000, "no product is cut up to hide its all-gather: at v6e's speed the pieces are too small", "A"
        ),
    },
}
"""By generation."""

ACROSS_SLICES: Mapping[str, Flag] = {
    "xla_tpu_enable_data_parallel_all_reduce_opt": Flag(
        True, "gradients are summed over the data-centre network while the next layer's are computed", "MA"
    ),
    "xla_tpu_data_parallel_opt_different_sized_ops": Flag(
        True, "the same where gradients differ in size, over iterations of a loop", "MA"
    ),
}
"""Besides, where several slices train together."""

OFFLOAD: Mapping[str, Flag] = {
    "xla_tpu_enable_scheduler_memory_pressure_tracking": Flag(
        True, "what comes from the host is fetched late enough not to fill HBM", "MA"
    ),
    "xla_tpu_host_transfer_overlap_limit": Flag(24, "so many transfers from and to the host at a time", "MA"),
    "xla_latency_hiding_scheduler_rerun": Flag(2, "the schedule is made again, with less memory, if it is short", "MA"),
}
"""Besides, where activations or the optimiser's state lie on the host."""


def flags_for(generation: str, slices: int = 1, *, offload: bool = False) -> dict[str, Flag]:
    """All flags for a slice, or for several.

    Args:
        generation: "v5p" and so on; none for one that is not known.
        slices: that train together.
        offload: whether something lies on the host.
    """
    if generation not in FLAGS:
        return {}
    return {**FLAGS[generation], **(ACROSS_SLICES if slices > 1 else {}), **(OFFLOAD if offload else {})}


def compiler_options(generation: str, slices: int = 1, *, offload: bool = False) -> dict[str, bool | int]:
    """The same as options of `lowered.compile(compiler_options=…)`."""
    return {name: flag.value for name, flag in flags_for(generation, slices, offload=offload).items()}


def set_flags(
    generation: str, slices: int = 1, *, offload: bool = False, environment: MutableMapping[str, str] = os.environ
) -> dict[str, bool | int]:
    """Adds the flags to LIBTPU_INIT_ARGS, for the backend that jax starts later.

    What the variable says already stays and wins; if it is set and empty, nothing is added.

    Args:
        generation, slices, offload: see `flags_for`.
        environment: where the variable is.

    Returns:
        The flags that were added.
    """
    given = environment.get(VARIABLE)
    if given is not None and not given.strip():
        return {}
    named = set(re.findall(r"--(\w+)", given or ""))
    added = {
        name: value
        for name, value in compiler_options(generation, slices, offload=offload).items()
        if name not in named
    }
    words = [f"--{name}={str(value).lower()}" for name, value in added.items()]
    if words:
        environment[VARIABLE] = " ".join([*(given or "").split(), *words])
    return added


_DEVICES = {"0x005e": "v4", "0x0062": "v5p", "0x0063": "v5e", "0x006f": "v6e"}
"""PCI device numbers of TPUs, whose vendor is 0x1ae0 (jax/_src/hardware_utils.py)."""


def attached_generation(devices: Path = Path("/sys/bus/pci/devices")) -> str:
    """The generation of the TPUs that this machine has; "" = none, or none that is known. It starts no backend.

    Args:
        devices: where Linux lists devices.
    """
    for vendor in sorted(devices.glob("*/vendor")):
        try:
            if vendor.read_text().strip() != "0x1ae0":
                continue
            device = (vendor.parent / "device").read_text().strip()
        except OSError:
            continue
        if device in _DEVICES:
            return _DEVICES[device]
    return ""
