import jax
import pytest

from vlm_jax.parallel.peaks import TPU_PEAKS, peak_flops
from vlm_jax.rehearsal.chips import CHIPS


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("TPU v2", None),
        ("cpu", None),
    ],
)
def test_devices_are_known_by_their_names(kind, peak):
    assert peak_flops(kind) == peak


def test_a_cpu_has_none():
    assert peak_flops(jax.devices("cpu")[0]) is None


def test_rehearsal_counts_with_the_same_peaks():
    assert {name: chip.peak_flops for name, chip in CHIPS.items()} == TPU_PEAKS
