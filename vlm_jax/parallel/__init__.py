"""Where arrays live: one mesh, one table of rules."""

from vlm_jax.parallel.layout import (
    Layout,
    abstract_params,
    batch_shardings,
    build_layout,
    check_fits,
    device_bytes,
    host_bytes,
    parameter_shardings,
    replicated,
    row_sharding,
    use_layout,
    without_axes,
)
from vlm_jax.parallel.mesh import MeshConfig
from vlm_jax.parallel.rows import held_places, put_batch, put_same

__all__ = [
    "Layout",
    "MeshConfig",
    "abstract_params",
    "batch_shardings",
    "build_layout",
    "check_fits",
    "device_bytes",
    "held_places",
    "host_bytes",
    "parameter_shardings",
    "put_batch",
    "put_same",
    "replicated",
    "row_sharding",
    "use_layout",
    "without_axes",
]
