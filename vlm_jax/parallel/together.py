"""Programs that several processes begin to run at the same moment."""

from typing import Any

import jax

from vlm_jax.parallel.processes import count, wait_for_all


def compiled_together(program: Any) -> Any:
    """A jitted function that all processes compile before any of them runs it; as it is for one that is alone.

    One may have it in its cache where another compiles for minutes, and what connects processes on CPUs (gloo) gives up
    after half a minute.
    """
    if count() == 1:
        return program
    compiled: dict[Any, Any] = {}

    def run(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        key = structure, tuple((leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves)
        if key not in compiled:
            compiled[key] = program.lower(*args).compile()
            wait_for_all()
        return compiled[key](*args)

    return run
