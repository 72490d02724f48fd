"""How long a schedule takes: the chip's core, its HBM, the links of its slice and the network between slices.

- Work takes the longer of its matrix products at the peak and its bytes of HBM; what HBM has time for besides goes to
  copies that were begun before.
- A collective needs the links of the torus axes that its chips lie along, both directions of each, or one direction
  where it is a permutation along a ring. Collectives that share links follow each other, also where they go along
  different axes of the mesh; others run at the same time.
- Copies to the host and from it have a wire each.
- What is waited for and is not done keeps the chip waiting: that is exposed. So is a collective without a `-start`.
- A loop runs its first trips one by one, the rest like the last of those: by then what one trip leaves for the next to
  wait for has settled.
"""

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from vlm_jax.errors import UserError
from vlm_jax.rehearsal.collectives import Collective
from vlm_jax.rehearsal.costs import Cost
from vlm_jax.rehearsal.program import Machine, Ring
from vlm_jax.rehearsal.steps import Await, Begin, Fetch, Repeat, Step, Work

Line = tuple[str, str, str]
"""Kind, axes and network of collectives that are reported together."""
Wire = tuple[str, int]
"""A torus axis and a direction along it."""
DCN: Wire = ("", 0)
"""The network between slices."""
_TO_HOST: Wire = ("host", 1)
_FROM_HOST: Wire = ("host", -1)

_TRIPS_WALKED = 3


def line_of(collective: Collective) -> Line:
    """Under what a collective is reported."""
    return collective.kind, collective.axes, collective.network


def wires_of(collective: Collective, machine: Machine) -> list[Wire]:
    """The wires that a collective needs; one that follows no axes of the mesh needs all that there are."""
    if collective.network == "dcn":
        return [DCN]
    rings = machine.ici.get(collective.axes) or itertools.chain(*machine.ici.values())
    names = {ring.axis for ring in rings} or {"ici"}
    directions = (collective.direction,) if collective.direction else (1, -1)
    return [(name, direction) for name in names for direction in directions]


def compute_seconds(cost: Cost, machine: Machine) -> float:
    """Of matrix products at the chip's peak."""
    return cost.mxu_flops / machine.peak_flops


def hbm_seconds(cost: Cost, machine: Machine) -> float:
    """Of bytes at the bandwidth of HBM."""
    return cost.hbm_bytes / machine.hbm_bandwidth


def host_seconds(cost: Cost, machine: Machine) -> float:
    """Of bytes between a chip and its host."""
    return cost.host_bytes / machine.host_bandwidth if cost.host_bytes else 0.0


def wire_seconds(collective: Collective, machine: Machine) -> float:
    """Of a collective that has its wires for itself: bytes at their bandwidth, and the latency of the hops.

    An all-to-all does not go from neighbour to neighbour: of m chips along an axis each sends its m-th parts
    floor(m²/4) links far in all, and as many parts cross the middle of a line.

    Raises:
        UserError: if the machine has no such wires.
    """
    if collective.network == "dcn":
        if not machine.dcn_bandwidth:
            raise UserError("rehearsal: the program talks between slices; name their network's bandwidth")
        return collective.bytes / machine.dcn_bandwidth + machine.dcn_seconds
    link, members = machine.ici_default, collective.members
    rings = machine.ici.get(collective.axes) or (Ring("", members, link),)
    bandwidth = sum(ring.bandwidth for ring in rings)
    if not bandwidth:
        raise UserError(f"rehearsal: no bandwidth is known for collectives along '{collective.axes}'")
    if collective.kind == "collective-permute":
        # One direction of one ring.
        return collective.bytes / min(bandwidth / 2, link or math.inf) + machine.ici_hop_seconds
    latency = sum(ring.members / 2 for ring in rings) * machine.ici_hop_seconds
    if collective.kind.endswith("all-to-all"):
        whole = collective.bytes * members / (members - 1)
        return max(whole * (ring.members**2 // 4 / ring.members) / ring.bandwidth for ring in rings) + latency
    return collective.bytes / bandwidth + latency * (2 if collective.kind == "all-reduce" else 1)


@dataclass
class Timeline:
    """A walk along a schedule; `now` is how far it has come, in seconds."""

    machine: Machine
    instant: bool = False
    """Whether wires take no time, to see what the rest takes."""
    now: float = 0.0
    exposed: dict[Line, float] = field(default_factory=dict)
    """Seconds in which the chip waited, by what for."""
    _free: dict[Wire, float] = field(default_factory=dict)
    _flying: dict[str, Line | None] = field(default_factory=dict)
    """Key -> what collective it is; None for a copy to or from the host."""
    _ends: dict[str, float] = field(default_factory=dict)
    """When what was begun under a key, last of all, is done."""
    _copies: deque[list] = field(default_factory=deque)
    """[key, seconds of HBM left], first come, first served."""

    def run(self, steps: Sequence[Step]) -> float:
        """Walks along the whole program and returns when all of it is done."""
        self._walk(steps)
        for key in list(self._flying):
            self._wait(key)
        self._pass(sum(left for _, left in self._copies))
        return self.now

    def _walk(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if isinstance(step, Work):
                compute = compute_seconds(step.cost, self.machine)
                memory = hbm_seconds(step.cost, self.machine) + host_seconds(step.cost, self.machine)
                self._pass(max(compute, memory), memory)
            elif isinstance(step, Fetch):
                self._fetch(step)
            elif isinstance(step, Begin):
                self._begin(step)
            elif isinstance(step, Await):
                self._wait(step.key)
            else:
                self._repeat(step)

    def _pass(self, seconds: float, memory: float = 0.0) -> None:
        """Time goes by in which HBM is busy for `memory` seconds; in the rest it copies."""
        self.now += seconds
        spare = seconds - memory
        while self._copies and spare > 0:
            done = min(spare, self._copies[0][1])
            self._copies[0][1] -= done
            spare -= done
            if self._copies[0][1] <= 0:
                self._copies.popleft()

    def _fetch(self, step: Fetch) -> None:
        """A copy between HBM and the core's own memory waits for HBM, one to or from the host for that wire."""
        memory, host = hbm_seconds(step.cost, self.machine), host_seconds(step.cost, self.machine)
        if host:
            self._fly(step.key, [_TO_HOST if step.outwards else _FROM_HOST], host, None)
        if memory:
            self._copies.append(["" if host else step.key, memory])

    def _begin(self, step: Begin) -> None:
        seconds = 0.0 if self.instant else wire_seconds(step.collective, self.machine)
        self._fly(step.key, wires_of(step.collective, self.machine), seconds, line_of(step.collective))

    def _fly(self, key: str, wires: Sequence[Wire], seconds: float, line: Line | None) -> None:
        """Something takes these wires for so long, as soon as all of them are free."""
        end = max([self.now, *(self._free.get(wire, 0.0) for wire in wires)]) + seconds
        for wire in wires:
            self._free[wire] = end
        self._flying[key], self._ends[key] = line, end

    def _wait(self, key: str) -> None:
        """Until what was begun under this key is done: communication, or else a copy and all copies before it."""
        if key in self._flying:
            end, line = self._ends[key], self._flying.pop(key)
            if end > self.now:
                if line is not None:
                    self.exposed[line] = self.exposed.get(line, 0.0) + end - self.now
                self._pass(end - self.now)
            return
        if any(copy[0] == key for copy in self._copies):
            left = 0.0
            for copy in self._copies:
                left += copy[1]
                if copy[0] == key:
                    break
            self._pass(left)

    def _repeat(self, step: Repeat) -> None:
        for before, after in step.carried.items():
            if before in self._flying:
                self._flying[after], self._ends[after] = self._flying.pop(before), self._ends[before]
        start, waited, free, ends = self.now, dict(self.exposed), dict(self._free), dict(self._ends)
        for _ in range(min(step.trips, _TRIPS_WALKED)):
            start, waited, free, ends = self.now, dict(self.exposed), dict(self._free), dict(self._ends)
            self._walk(step.steps)
        more = step.trips - _TRIPS_WALKED
        if more <= 0:
            return
        self.now += more * (self.now - start)
        for line, seconds in self.exposed.items():
            self.exposed[line] = seconds + more * (seconds - waited.get(line, 0.0))
        for wire, until in self._free.items():
            self._free[wire] = until + more * (until - free.get(wire, until))
        for key, end in self._ends.items():
            self._ends[key] = end + more * (end - ends.get(key, end))
