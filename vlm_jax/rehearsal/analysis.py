"""Optimised TPU HLO -> what it costs."""

from collections.abc import Mapping, Sequence

from vlm_jax.rehearsal.program import Machine, ProgramCosts


def analyse(
    text: str,
    mesh: Mapping[str, int],
    machine: Machine,
    slices: Sequence[int] | None = None,
    attended_share: float | None = None,
) -> ProgramCosts:
    """Counts what one execution of a compiled program costs one chip.

    Args:
        text: optimised and scheduled HLO of the SPMD program: `compiled.as_text()`, or the file
            `*after_optimizations.txt` that XLA dumps.
        mesh: sizes of the mesh's axes, in its order.
        machine: the chip and its wires.
        slices: slice of each device in the order of `mesh.devices.flat`; None = one slice.
        attended_share: share of queries x keys that attention kernels work on, where the program does not show it
            (None: all of them).

    Raises:
        UserError: text that is not scheduled HLO.
    """
    raise NotImplementedError
