"""Where arrays live: one mesh, one table of rules."""

from vlm_jax.parallel.mesh import (
    MeshConfig,
    batch_sharding,
    build_mesh,
    check_fits,
    parameter_shardings,
    replicated,
    use_mesh,
    without_axes,
)

__all__ = [
    "MeshConfig",
    "batch_sharding",
    "build_mesh",
    "check_fits",
    "parameter_shardings",
    "replicated",
    "use_mesh",
    "without_axes",
]
