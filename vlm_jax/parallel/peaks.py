"""The most that one device computes: floating-point operations a second in bfloat16, dense.

Sources: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, "key specifications" (a TPU7x chip is two devices); NVIDIA's
data sheets of A100, H100 and H200, SXM, without sparsity.
"""

import re

import jax

TPU_PEAKS = {"v4": 275e12, "v5e": 197e12, "v5p": 459e12, "v6e": 918e12}
"""By generation, a chip."""

_KINDS = (
    (r"^TPU v4$", TPU_PEAKS["v4"]),
    (r"^TPU v5 ?(lite|e)$", TPU_PEAKS["v5e"]),
    (r"^TPU v5p?$", TPU_PEAKS["v5p"]),
    (r"^TPU v6 ?(lite|e)$", TPU_PEAKS["v6e"]),
    (r"^TPU ?7x$", 2307e12 / 2),
    (r"\bA100\b.*SXM", 312e12),
    (r"\bH(100|200)\b(?!.*(PCIe|NVL))", 989e12),
)
"""Names that devices go by, and their peaks."""


def peak_flops(device: jax.Device | str) -> float | None:
    """FLOP/s of a device, or of one that goes by this name; None where it is not known, as of a CPU."""
    kind = device if isinstance(device, str) else device.device_kind
    return next((peak for pattern, peak in _KINDS if re.search(pattern, kind)), None)
