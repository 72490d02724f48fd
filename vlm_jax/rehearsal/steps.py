"""A scheduled computation as steps: what the chip works on, what it begins beside that, and what it waits for.

Asynchronous work has three forms: `X-start` and `X-done`; `send` and `recv` to the host, which belong together by the
name of their rendezvous; and a chain of fusions in which one collective is begun (AsyncCollectiveStart), carried on
beside matrix products, and ended (AsyncCollectiveDone). The links of a chain show the same collective again and again:
it runs once.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from vlm_jax.rehearsal import kernels
from vlm_jax.rehearsal.collectives import (
    Collective,
    Grid,
    base_kind,
    exchange_between_slices,
    read_collective,
    rendezvous,
)
from vlm_jax.rehearsal.costs import Cost, Costs
from vlm_jax.rehearsal.hlo import Computation, Instruction, Module
from vlm_jax.rehearsal.loops import Loops


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """The chip computes, or moves bytes of HBM; nothing else runs on it meanwhile."""

    instruction: Instruction
    cost: Cost


@dataclass(frozen=True, slots=True, eq=False)
class Fetch:
    """A copy is begun that runs beside the work; without a key, nobody waits for it."""

    instruction: Instruction
    cost: Cost
    key: str = ""
    outwards: bool = False
    """Where it reaches the host: to it, not from it."""


@dataclass(frozen=True, slots=True, eq=False)
class Begin:
    """Communication is begun."""

    instruction: Instruction
    collective: Collective
    key: str


@dataclass(frozen=True, slots=True, eq=False)
class Await:
    """The chip goes on when what has this key is done."""

    key: str


@dataclass(frozen=True, slots=True, eq=False)
class Repeat:
    """A loop. What was begun before it under one key goes on in its body under another."""

    steps: list["Step"]
    trips: int
    carried: Mapping[str, str] = field(default_factory=dict)


Step = Work | Fetch | Begin | Await | Repeat


class Planner:
    """Turns the computations of a module into steps."""

    def __init__(self, module: Module, costs: Costs, grid: Grid) -> None:
        self._module, self._costs, self._grid = module, costs, grid
        self._loops = Loops(module)
        self._plans: dict[str, list[Step]] = {}
        self.unknown_loops: list[str] = []
        """Loops whose trips could not be read for certain."""

    def plan(self, computation: Computation) -> list[Step]:
        """The steps of a computation, in the order of its schedule."""
        if computation.name not in self._plans:
            self._plans[computation.name] = [
                step for instruction in computation.instructions for step in self._steps(computation, instruction)
            ]
        return self._plans[computation.name]

    def _steps(self, computation: Computation, instruction: Instruction) -> Iterator[Step]:
        opcode = instruction.opcode
        if opcode == "while":
            yield self._repeat(computation, instruction)
        elif opcode == "call":
            yield from self.plan(self._module.computations[instruction.called[0]])
        elif opcode == "conditional":
            branches = [self.plan(self._module.computations[name]) for name in instruction.called]
            yield from max(branches, key=_weight)
        elif opcode == "fusion":
            yield from self._fusion(computation, instruction)
        elif opcode.endswith("-done"):
            key = self._origin(computation, instruction.operands[0]) if opcode != "send-done" else None
            if key:
                yield Await(key)
        elif opcode in ("send", "recv"):
            yield from self._between_slices(computation, instruction)
        elif base_kind(opcode):
            yield from self._exchange(computation, instruction)
        elif opcode.endswith("-start"):
            yield from self._start(computation, instruction)
        else:
            cost = self._costs.cost(computation, instruction)
            if cost != Cost():
                yield Work(instruction, cost)

    def _exchange(self, computation: Computation, instruction: Instruction) -> Iterator[Step]:
        """A collective that stands by itself; without a `-start` it is waited for at once."""
        collective = read_collective(computation, instruction, self._grid)
        cost, key = self._costs.cost(computation, instruction), _key(computation, instruction)
        yield Fetch(instruction, cost)
        if collective is not None:
            yield Begin(instruction, collective, key)
            if not instruction.opcode.endswith("-start"):
                yield Await(key)

    def _start(self, computation: Computation, instruction: Instruction) -> Iterator[Step]:
        """Asynchronous work that is no collective, or one wrapped in a computation of its own."""
        key = _key(computation, instruction)
        for inner, wrapped in self._within(instruction):
            collective = read_collective(inner, wrapped, self._grid)
            if collective is not None:
                yield Fetch(instruction, self._costs.cost(computation, instruction))
                yield Begin(instruction, collective, key)
                return
        outwards = self._costs.goes_to_host(instruction)
        yield Fetch(instruction, self._costs.cost(computation, instruction), key, outwards)

    def _within(self, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        """What an instruction calls, and what that calls: the sparse cores' collectives lie two computations deep."""
        for name in instruction.called:
            inner = self._module.computations[name]
            for wrapped in inner.instructions:
                yield inner, wrapped
                if wrapped.opcode in ("call", "fusion"):
                    yield from self._within(wrapped)

    def _between_slices(self, computation: Computation, instruction: Instruction) -> Iterator[Step]:
        collective = exchange_between_slices(instruction, self._grid)
        yield Fetch(instruction, self._costs.cost(computation, instruction))
        if collective is not None:
            yield Begin(instruction, collective, rendezvous(instruction))

    def _fusion(self, computation: Computation, fusion: Instruction) -> Iterator[Step]:
        """A fusion, which may hold a collective, or a part of one that runs beside it."""
        fused = self._module.computations[fusion.called[0]]
        held = [inner for inner in fused.instructions if base_kind(inner.opcode)]
        calls = {kernels.target(inner) for inner in fused.instructions if inner.opcode == "custom-call"}
        keys = {self._chain(computation, inner): inner for inner in held}
        chained = "AsyncCollectiveStart" in calls or "AsyncCollectiveDone" in calls
        for key, inner in keys.items():
            collective = read_collective(fused, inner, self._grid)
            if collective is None or "AsyncCollectiveDone" in calls or (not chained and self._is_link(fused, inner)):
                continue
            yield Begin(fusion, collective, key)
            if not chained:
                yield Await(key)
        cost = self._costs.cost(computation, fusion)
        if cost != Cost():
            yield Work(fusion, cost)
        if "AsyncCollectiveDone" in calls:
            yield from (Await(key) for key in keys)

    def _is_link(self, fused: Computation, inner: Instruction) -> bool:
        """Whether a collective in a fusion only carries on what another fusion began."""
        return "chain_id=" in inner.attributes or "async_collective" in fused.name

    def _chain(self, computation: Computation, inner: Instruction) -> str:
        chain = re.search(r'chain_id="?(\d+)', inner.attributes)
        channel = inner.attribute("channel_id")
        return f"{computation.name}/{inner.opcode}/{channel}/{chain[1] if chain else ''}"

    def _repeat(self, computation: Computation, loop: Instruction) -> Repeat:
        trips, body = self._loops.trips(loop), self._loops.body(loop)
        if not trips.certain:
            self.unknown_loops.append(loop.name)
        carried = {}
        initial = computation.by_name[loop.operands[0]]
        if initial.opcode == "tuple" and body.root is not None and body.root.opcode == "tuple":
            for outside, inside in zip(initial.operands, body.root.operands, strict=True):
                before, after = self._origin(computation, outside), self._origin(body, inside)
                if before and after:
                    carried[before] = after
        return Repeat(self.plan(body), trips.count, carried)

    def _origin(self, computation: Computation, name: str, depth: int = 0) -> str | None:
        """The key of the asynchronous work that a value is, also where loops carry it around."""
        instruction = computation.by_name[name]
        opcode = instruction.opcode
        if opcode == "recv":
            return rendezvous(instruction)
        if opcode.endswith("-start"):
            return _key(computation, instruction)
        if opcode.endswith("-update") or opcode == "bitcast":
            return self._origin(computation, instruction.operands[0], depth)
        if opcode != "get-tuple-element" or depth > 4:
            return None
        whole, place = computation.by_name[instruction.operands[0]], int(instruction.attribute("index"))
        if whole.opcode == "tuple":
            return self._origin(computation, whole.operands[place], depth + 1)
        if whole.opcode == "while":
            computation = self._loops.body(whole)
        elif whole.opcode != "parameter" or not self._loops.is_body(computation):
            return None
        root = computation.root
        if root is None or root.opcode != "tuple" or place >= len(root.operands) or root.operands[place] == name:
            return None
        return self._origin(computation, root.operands[place], depth + 1)


def _key(computation: Computation, instruction: Instruction) -> str:
    return f"{computation.name}/{instruction.name}"


def _weight(steps: list[Step]) -> float:
    """How much there is in a branch; the heavier one counts."""
    total = 0.0
    for step in steps:
        if isinstance(step, Repeat):
            total += step.trips * _weight(step.steps)
        elif isinstance(step, Begin):
            total += step.collective.bytes
        elif isinstance(step, (Work, Fetch)):
            total += step.cost.mxu_flops + step.cost.hbm_bytes
    return total
