"""Adapters: how the encoder's features meet the decoder. One file each; this is the union that configs choose from."""

from vlm_jax.models.adapters.mlp import MLPAdapter, MLPAdapterConfig
from vlm_jax.models.layers import Precision

AdapterConfig = MLPAdapterConfig


def build_adapter(config: AdapterConfig, grid: tuple[int, int], width: int, precision: Precision) -> MLPAdapter:
    """The adapter's module, for an encoder with a (rows, columns) grid of patches and a decoder of the given width."""
    return MLPAdapter(config, grid, width, precision)
