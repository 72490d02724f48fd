"""Where arrays live: one mesh, one table of rules."""

from vlm_jax.parallel.mesh import (
    MeshConfig,
    abstract_params,
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
    "abstract_params",
    "batch_sharding",
    "build_mesh",
    "check_fits",
    "parameter_shardings",
    "replicated",
    "use_mesh",
    "without_axes",
]
