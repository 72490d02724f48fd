"""Optimised TPU HLO -> what it costs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vlm_jax.rehearsal import kernels
from vlm_jax.rehearsal.collectives import Collective, Grid
from vlm_jax.rehearsal.costs import Cost, Costs
from vlm_jax.rehearsal.hlo import Instruction, parse
from vlm_jax.rehearsal.program import Machine, Operation, ProgramCosts, Traffic
from vlm_jax.rehearsal.steps import Begin, Fetch, Planner, Repeat, Step, Work
from vlm_jax.rehearsal.timeline import (
    DCN,
    Line,
    Timeline,
    Wire,
    compute_seconds,
    hbm_seconds,
    host_seconds,
    line_of,
    wire_seconds,
    wires_of,
)

_LARGEST = 20


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
        attended_share: share of queries x keys that attention kernels work on; None: what a causal mask leaves of
            their blocks, all where they have no table of blocks.

    Raises:
        UserError: text that is no scheduled HLO; traffic over wires of which the machine has none.
    """
    module = parse(text)
    costs = Costs(module, machine.mxu, attended_share)
    planner = Planner(module, costs, Grid(mesh, tuple(slices or ()), module.partitions))
    steps = planner.plan(module.entry)
    sums = _Sums(machine)
    for step, times in _flatten(steps):
        sums.add(step, times)
    timeline = Timeline(machine)
    scheduled = timeline.run(steps)
    alone = Timeline(machine, instant=True).run(steps)
    unknown: dict[str, float] = {}
    for call, size in costs.unknown_calls.items():
        name = kernels.target(call)
        unknown[name] = unknown.get(name, 0.0) + size * sums.times.get(call, 0.0)
    return ProgramCosts(
        flops=sums.total.flops,
        kernel_flops=sums.total.kernel_flops,
        mxu_flops=sums.total.mxu_flops,
        elementwise_flops=sums.total.elementwise_flops,
        hbm_bytes=sums.total.hbm_bytes,
        host_bytes=sums.total.host_bytes,
        traffic=tuple(sums.traffic(timeline.exposed)),
        compute_seconds=compute_seconds(sums.total, machine),
        hbm_seconds=hbm_seconds(sums.total, machine),
        core_seconds=sums.core_seconds,
        ici_seconds=sums.ici_seconds(),
        ici_busiest_seconds=max((s for wire, s in sums.wires.items() if wire != DCN), default=0.0),
        dcn_seconds=sums.wires.get(DCN, 0.0),
        host_seconds=host_seconds(sums.total, machine),
        scheduled=scheduled,
        scheduled_alone=alone,
        largest=sums.largest(),
        unknown_calls=unknown,
        unknown_loops=tuple(planner.unknown_loops),
    )


def _flatten(steps: Sequence[Step], times: int = 1) -> Iterator[tuple[Step, int]]:
    """Every step with how often it runs."""
    for step in steps:
        if isinstance(step, Repeat):
            yield from _flatten(step.steps, times * step.trips)
        else:
            yield step, times


@dataclass
class _Sums:
    """What adds up over a program."""

    machine: Machine
    total: Cost = field(default_factory=Cost)
    wires: dict[Wire, float] = field(default_factory=dict)
    """Seconds for which each is busy."""
    core_seconds: float = 0.0
    times: dict[Instruction, float] = field(default_factory=dict)
    _costs: dict[Instruction, Cost] = field(default_factory=dict)
    _seconds: dict[Instruction, float] = field(default_factory=dict)
    _lines: dict[Line, list[tuple[Collective, int]]] = field(default_factory=dict)

    def add(self, step: Step, times: int) -> None:
        """One step that runs so many times."""
        if isinstance(step, Begin):
            self._lines.setdefault(line_of(step.collective), []).append((step.collective, times))
            seconds = times * wire_seconds(step.collective, self.machine)
            for wire in wires_of(step.collective, self.machine):
                self.wires[wire] = self.wires.get(wire, 0.0) + seconds
            self._count(step.instruction, Cost(), seconds, times)
        elif isinstance(step, (Work, Fetch)):
            cost, machine = step.cost, self.machine
            self.total += cost * times
            seconds = times * max(compute_seconds(cost, machine), hbm_seconds(cost, machine))
            if isinstance(step, Work) or step.key:
                self.core_seconds += seconds
                self._count(step.instruction, cost, seconds, times)

    def _count(self, instruction: Instruction, cost: Cost, seconds: float, times: int) -> None:
        self.times[instruction] = times
        self._costs[instruction] = cost
        self._seconds[instruction] = self._seconds.get(instruction, 0.0) + seconds

    def ici_seconds(self) -> float:
        """Of all collectives within a slice, one after the other, but opposite directions of an axis together."""
        busy: dict[str, dict[int, float]] = {}
        for (_, axes, network), entries in self._lines.items():
            if network == "ici":
                directions = busy.setdefault(axes, {})
                for collective, times in entries:
                    seconds = times * wire_seconds(collective, self.machine)
                    directions[collective.direction] = directions.get(collective.direction, 0.0) + seconds
        return sum(both.get(0, 0.0) + max(both.get(1, 0.0), both.get(-1, 0.0)) for both in busy.values())

    def traffic(self, exposed: Mapping[Line, float]) -> Iterator[Traffic]:
        """Collectives by kind and axes, those with the most bytes first."""
        for line, entries in sorted(self._lines.items(), key=lambda item: -sum(c.bytes * n for c, n in item[1])):
            yield Traffic(
                *line,
                count=sum(times for _, times in entries),
                operand_bytes=sum(times * collective.operand_bytes for collective, times in entries),
                bytes=sum(times * collective.bytes for collective, times in entries),
                seconds=sum(times * wire_seconds(collective, self.machine) for collective, times in entries),
                exposed_seconds=exposed.get(line, 0.0),
            )

    def largest(self) -> tuple[Operation, ...]:
        """The instructions that take the most time."""
        longest = sorted(self._seconds, key=lambda instruction: -self._seconds[instruction])[:_LARGEST]
        return tuple(
            Operation(
                name=instruction.name,
                opcode=instruction.opcode,
                source=instruction.source,
                times=(times := self.times[instruction]),
                flops=times * (self._costs[instruction].flops + self._costs[instruction].kernel_flops),
                hbm_bytes=times * self._costs[instruction].hbm_bytes,
                seconds=self._seconds[instruction],
            )
            for instruction in longest
        )
