"""What is known of each TPU generation: speeds, sizes and the shapes that a slice can have.

Sources, by the letters used below:

D  Google Cloud documentation, cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}: tables "key specifications" and
   "configurations" (read in 2026).
G  Google Kubernetes Engine documentation, "Plan TPUs in GKE": machine types ct4p-hightpu-4t, ct5lp-hightpu-4t,
   ct5p-hightpu-4t, ct6e-standard-4t (those of slices of several hosts).
S  Austin et al., "How to Scale Your Model" (2025), jax-ml.github.io/scaling-book/tpus: tables of chips, links and
   hosts, and which axes of a slice wrap around.
C  the TPU compiler itself (libtpu 0.0.42.1): the HBM that it names when a program needs too much.
"""

import dataclasses
import math

from vlm_jax.errors import UserError
from vlm_jax.parallel.peaks import TPU_PEAKS

GIB = 2**30
GB = 10**9


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU generation. Bandwidths are in bytes a second, sizes in bytes, both of one chip unless said otherwise."""

    name: str
    """As in a topology, "v5p"."""
    peak_flops: float
    """Floating-point operations a second in bfloat16 (D)."""
    mxu: int
    """Rows and columns of a matrix unit (D)."""
    hbm_bytes: int
    """HBM that the compiler gives to a program (C): less than the nominal size, for some is reserved."""
    hbm_bandwidth: float
    """Bytes a second between HBM and the chip (D)."""
    torus_axes: int
    """Dimensions of the interconnect, 2 or 3 (D)."""
    link_bandwidth: float
    """Bytes a second over one link in one direction (S); an axis has two links, and the nominal rate (D) is 1/0.9."""
    wrap_multiple: int
    """2 axes: the length of an axis that wraps around. 3 axes: all wrap where each is a multiple of it (S)."""
    host_link_bandwidth: float
    """Bytes a second between a chip and the memory of its host, in one direction (S, PCIe)."""
    max_chips: int
    """Chips of the largest slice (D)."""
    chips_per_host: int
    """Chips of one virtual machine in a slice of several (G)."""
    host_memory: int
    """Memory of that machine (G)."""
    host_cpus: int
    """Virtual processors of that machine (G)."""
    dcn_bandwidth: float
    """Bytes a second that such a machine sends to others over the data-centre network (D; v4: S)."""
    small_slices: tuple[tuple[int, ...], ...]
    """Shapes that exist (D): all of them with 2 axes, those under one 4x4x4 cube with 3."""
    options: tuple[tuple[str, str], ...] = ()
    """Further arguments of the compiler's topology; v4 has two cores a chip that it can treat as one."""

    def exists(self, shape: tuple[int, ...]) -> bool:
        """Whether a slice of this shape can be had. With 3 axes: cubes side by side, shortest axis first."""
        if shape in self.small_slices:
            return True
        cubes = self.torus_axes == 3 and len(shape) == 3 and all(size and size % 4 == 0 for size in shape)
        return cubes and tuple(sorted(shape)) == shape and math.prod(shape) <= self.max_chips

    def wraps(self, shape: tuple[int, ...]) -> tuple[bool, ...]:
        """For each axis of a slice, whether its ends are joined to a ring."""
        if self.torus_axes == 2:
            return tuple(size == self.wrap_multiple for size in shape)
        return (all(size % self.wrap_multiple == 0 for size in shape),) * len(shape)

    def describe_shapes(self) -> str:
        """The shapes that exist, for messages."""
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.small_slices)
        if self.torus_axes == 2:
            return shapes
        return f"{shapes}, and AxBxC with multiples of 4, A <= B <= C, up to {self.max_chips} chips (such as 4x4x8)"


_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_UNDER_A_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))

CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            peak_flops=TPU_PEAKS["v4"],
            mxu=128,
            hbm_bytes=int(30.75 * GIB),
            hbm_bandwidth=1200e9,
            torus_axes=3,
            link_bandwidth=45e9,
            wrap_multiple=4,
            host_link_bandwidth=15e9,
            max_chips=4096,
            chips_per_host=4,
            host_memory=407 * GB,
            host_cpus=240,
            dcn_bandwidth=25e9,
            small_slices=_UNDER_A_CUBE,
            options=(("chip_config_name", "megacore"),),
        ),
        Chip(
            name="v5e",
            peak_flops=TPU_PEAKS["v5e"],
            mxu=128,
            hbm_bytes=int(15.75 * GIB),
            hbm_bandwidth=819e9,
            torus_axes=2,
            link_bandwidth=45e9,
            wrap_multiple=16,
            host_link_bandwidth=15e9,
            max_chips=256,
            chips_per_host=4,
            host_memory=192 * GB,
            host_cpus=112,
            dcn_bandwidth=12.5e9,
            small_slices=_FLAT,
        ),
        Chip(
            name="v5p",
            peak_flops=TPU_PEAKS["v5p"],
            mxu=128,
            hbm_bytes=int(95.74 * GIB),
            hbm_bandwidth=2765e9,
            torus_axes=3,
            link_bandwidth=90e9,
            wrap_multiple=4,
            host_link_bandwidth=15e9,
            max_chips=6144,
            chips_per_host=4,
            host_memory=448 * GB,
            host_cpus=208,
            dcn_bandwidth=25e9,
            small_slices=_UNDER_A_CUBE,
        ),
        Chip(
            name="v6e",
            peak_flops=TPU_PEAKS["v6e"],
            mxu=256,
            hbm_bytes=int(31.25 * GIB),
            hbm_bandwidth=1638e9,
            torus_axes=2,
            link_bandwidth=90e9,
            wrap_multiple=16,
            host_link_bandwidth=32e9,
            max_chips=256,
            chips_per_host=4,
            host_memory=720 * GB,
            host_cpus=180,
            dcn_bandwidth=50e9,
            small_slices=_FLAT,
        ),
    )
}
"""By name. TPU7x is left out: it shows two devices a chip, and there is no public run of it to calibrate with here."""


def find_chip(name: str) -> Chip:
    """The generation of that name.

    Raises:
        UserError: if there is none.
    """
    if name not in CHIPS:
        raise UserError(f"topology: unknown TPU generation '{name}'; there are {', '.join(CHIPS)}")
    return CHIPS[name]
