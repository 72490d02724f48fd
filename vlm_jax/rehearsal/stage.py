"""One stage, rehearsed: its very programs, compiled for chips that are not there, and what that says of a run."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax

from vlm_jax.config import Experiment
from vlm_jax.models.flops import stage_flops
from vlm_jax.parallel import Layout, build_layout, device_bytes
from vlm_jax.parallel.xla_flags import set_flags
from vlm_jax.rehearsal.analysis import analyse
from vlm_jax.rehearsal.calibration_table import Calibration, calibration_of
from vlm_jax.rehearsal.compiler import Compiled, DoesNotFitError, compile_lowered
from vlm_jax.rehearsal.host import HostNeeds, host_needs
from vlm_jax.rehearsal.machine import build_machine, slice_numbers
from vlm_jax.rehearsal.memory import Tensor
from vlm_jax.rehearsal.program import ProgramCosts
from vlm_jax.rehearsal.quick import compile_quickly
from vlm_jax.rehearsal.topology import Topology, absent_devices
from vlm_jax.training.divisibility import check_layout
from vlm_jax.training.program import StageProgram, build_program

Watch = Callable[[str], contextlib.AbstractContextManager[Any]]
"""Shows what is being done while it is."""


@dataclasses.dataclass(frozen=True)
class StageReport:
    """What is predicted of one stage. A step is one optimiser step; sizes are bytes, times seconds."""

    name: str
    topology: Topology
    mesh: Mapping[str, int]
    params: int
    trained_params: int
    tokens: int
    """Positions of the global batch, visual tokens included."""
    model_flops: float
    """Of a step, over all chips."""
    compile_seconds: float
    argument_bytes: int
    """A chip's, as are the other sizes of its memory: state and batch."""
    peak_bytes: int
    """All that must be there at once; what would be needed, if the stage does not fit."""
    fits: bool
    tensors: tuple[Tensor, ...]
    """The largest in a chip's memory."""
    calibration: Calibration
    programs: Mapping[str, ProgramCosts] = dataclasses.field(default_factory=dict)
    """What the step runs, one after the other: "encoder" where it is frozen, and "step". Empty if it does not fit."""
    host: HostNeeds | None = None

    @property
    def chips(self) -> int:
        """Over all slices."""
        return self.topology.chips

    @property
    def hbm_bytes(self) -> int:
        """That a chip has."""
        return self.topology.chip.hbm_bytes

    @property
    def headroom(self) -> float:
        """Share of a chip's memory that is left; negative if the stage does not fit."""
        return 1 - self.peak_bytes / self.hbm_bytes

    @property
    def compiled_flops(self) -> float:
        """Of matrix products, convolutions and kernels, over all chips."""
        return self.chips * self._sum(lambda costs: costs.flops + costs.kernel_flops)

    @property
    def collective_bytes(self) -> dict[str, dict[str, float]]:
        """{kind: {mesh axes: bytes that a chip sends}}."""
        table: dict[str, dict[str, float]] = {}
        for costs in self.programs.values():
            for kind, by_axes in costs.collective_bytes.items():
                for axes, count in by_axes.items():
                    table.setdefault(kind, {}).setdefault(axes, 0.0)
                    table[kind][axes] += count
        return table

    @property
    def overlapped(self) -> float:
        """Step time if everything that can run at once did."""
        return self._sum(lambda costs: costs.overlapped)

    @property
    def serial(self) -> float:
        """Step time if nothing did."""
        return self._sum(lambda costs: costs.serial)

    @property
    def scheduled(self) -> float:
        """Step time of the compiled schedule."""
        return self._sum(lambda costs: costs.scheduled)

    @property
    def calibrated(self) -> float:
        """`scheduled`, corrected by how long a published run took against its own prediction."""
        return self.scheduled * self.calibration.slowdown

    @property
    def exposed_communication(self) -> float:
        """Share of the scheduled step in which a chip waits for communication."""
        waiting = self._sum(lambda costs: costs.scheduled - costs.scheduled_alone)
        return waiting / self.scheduled if self.scheduled else 0.0

    def mfu(self, seconds: float) -> float:
        """Model FLOPs of a step over what the chips could have done in that time."""
        return self.model_flops / (seconds * self.chips * self.topology.chip.peak_flops) if seconds else 0.0

    def _sum(self, figure: Callable[[ProgramCosts], float]) -> float:
        return sum(figure(costs) for costs in self.programs.values())


def no_watch(what: str) -> contextlib.AbstractContextManager[None]:
    """Shows nothing."""
    return contextlib.nullcontext()


def layout_on(experiment: Experiment, topology: Topology) -> Layout:
    """The experiment's mesh on the topology's devices.

    Raises:
        UserError: if it does not make their number.
    """
    mesh = dataclasses.replace(experiment.mesh, slices=topology.slices)
    return build_layout(mesh, absent_devices(topology))


def rehearse_stage(
    experiment: Experiment,
    index: int,
    topology: Topology,
    *,
    quick: bool = False,
    watch: Watch = no_watch,
) -> StageReport:
    """Compiles what a step of a stage runs and counts what it costs. A stage that does not fit has a report, too.

    Args:
        experiment: what would be trained.
        index: of the stage.
        topology: where.
        quick: end the compiler before it generates code (`rehearsal.quick`): faster by far, but the code's size is
            missing in the peak, and a kernel that needs too much fast memory stays unfound.
        watch: shows what is being done.

    Raises:
        UserError: the mesh does not fit the topology, the model not the mesh, or the compiler refuses the program.
    """
    layout = layout_on(experiment, topology)
    program = build_program(experiment, index, layout)
    check_layout(experiment, layout)
    state, batch = program.abstract_state(), program.abstract_batch()
    report = _expectations(program, topology)
    options = compiler_flags(experiment, topology)
    lowered: dict[str, Any] = {}
    if not quick:
        with watch(f"{program.stage.name}: tracing"):
            lowered = program.lower()
    # Features that are cached come from the disk.
    encodes = program.encoder is not None and batch.images is not None and not program.stage.cache_features
    machine, slices = build_machine(topology, layout.mesh), slice_numbers(layout.mesh)
    costs, compiled = {}, {}
    for name in ("encoder", "step") if encodes else ("step",):
        with watch(f"{program.stage.name}: compiling the {name}"):
            try:
                if quick:
                    made = compile_quickly(experiment, index, topology, name, options)
                else:
                    made = compile_lowered(lowered[name], options)
            except DoesNotFitError as error:
                needed = error.needed + (report.argument_bytes if error.temporaries_only else 0)
                return dataclasses.replace(
                    report, peak_bytes=needed, tensors=error.tensors, compile_seconds=error.seconds
                )
        with watch(f"{program.stage.name}: counting the {name}"):
            costs[name] = analyse(made.text, layout.shape, machine, slices)
        compiled[name] = dataclasses.replace(made, text="")
    step, peak = compiled["step"], _peak(compiled, state)
    return dataclasses.replace(
        report,
        compile_seconds=sum(made.seconds for made in compiled.values()),
        argument_bytes=step.argument_bytes,
        peak_bytes=peak,
        fits=peak <= topology.chip.hbm_bytes,
        tensors=step.tensors,
        programs=costs,
        host=host_needs(topology, program.stage, state, batch, step.host_bytes),
    )


def compiler_flags(experiment: Experiment, topology: Topology) -> dict[str, Any]:
    """The flags that a run on such a slice would set; what LIBTPU_INIT_ARGS says already stays, there as here."""
    return set_flags(topology.chip.name, topology.slices, offload=experiment.offloads(), environment=dict(os.environ))


def _expectations(program: StageProgram, topology: Topology) -> StageReport:
    """What is known before anything is compiled."""
    stage, rules = program.stage, program.rules
    data = stage.data
    state = program.abstract_state()
    trained, frozen = (sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for tree in (state.trained, state.frozen))
    flops = stage_flops(
        program.model.config,
        lambda name: rules[name].rate != 0,
        data.rows,
        data.length,
        data.images,
        features_given=stage.cache_features,
    )
    return StageReport(
        name=stage.name,
        topology=topology,
        mesh=dict(program.layout.shape),
        params=trained + frozen,
        trained_params=trained,
        tokens=data.rows * data.length,
        model_flops=flops.total,
        compile_seconds=0.0,
        argument_bytes=device_bytes(state) + device_bytes(program.abstract_batch()),
        peak_bytes=0,
        fits=False,
        tensors=(),
        calibration=calibration_of(topology.chip),
    )


def _peak(compiled: Mapping[str, Compiled], state: Any) -> int:
    """Of the programs' peaks the higher; while the encoder runs, the whole state lies there, too."""
    peak = compiled["step"].peak_bytes
    if "encoder" in compiled:
        others = device_bytes(state) - device_bytes(state.frozen["encoder"])
        peak = max(peak, compiled["encoder"].peak_bytes + others)
    return peak
