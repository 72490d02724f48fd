"""How often a `while` runs: TPU programs do not say, so it is read from the counter that the loop carries.

A loop made from a scan carries a tuple of which one place is the counter:

    condition:  root = compare(gte(param, k), limit), direction=LT
    body:       root = tuple(..., add(gte(param, k), step), ...)      place k
    before:     init = tuple(..., start, ...)                         place k

Limit, step and start may be constants, places of the tuple that the body passes on, or stand in a loop around.
"""

import re
from dataclasses import dataclass

from vlm_jax.rehearsal.hlo import Computation, Instruction, Module

_KNOWN = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_SAME = frozenset({"copy", "copy-done", "copy-start", "bitcast", "convert", "reshape", "optimization-barrier"})
_MIRRORED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE", "EQ": "EQ"}


@dataclass(frozen=True, slots=True)
class Trips:
    """How often a loop's body runs; not `certain` where something could not be read."""

    count: int
    certain: bool


class Loops:
    """The loops of a module."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._caller: dict[str, tuple[Computation, Instruction]] = {}
        self._counts: dict[Instruction, Trips] = {}
        for computation in module.computations.values():
            for instruction in computation.instructions:
                if instruction.opcode in ("while", "call", "fusion"):
                    for name in instruction.called:
                        self._caller[name] = (computation, instruction)

    def body(self, loop: Instruction) -> Computation:
        """The computation that a `while` repeats."""
        return self._module.computations[loop.attribute("body")]

    def is_body(self, computation: Computation) -> bool:
        """Whether it is the body of a `while`."""
        caller = self._caller.get(computation.name)
        return caller is not None and caller[1].attribute("body") == computation.name

    def trips(self, loop: Instruction) -> Trips:
        """How often a `while` repeats it. What cannot be read counts as one trip, and is not certain."""
        if loop not in self._counts:
            self._counts[loop] = self._count(loop)
        return self._counts[loop]

    def _count(self, loop: Instruction) -> Trips:
        known = _KNOWN.search(loop.attributes)
        if known:
            return Trips(int(known[1]), True)
        condition = self._module.computations[loop.attribute("condition")]
        if condition.root is None:
            return Trips(1, False)
        found = self._comparison(condition, condition.root)
        if found is None:
            return Trips(1, False)
        place, limit, direction = found
        start, step = self._start(loop, place), self._step(loop, place)
        if direction == "NE" and step and start is not None and (limit - start) % step == 0:
            direction = "LT" if step > 0 else "GT"
        if direction in ("GT", "GE"):  # counts down
            limit, start, step = -limit, None if start is None else -start, None if step is None else -step
            direction = {"GT": "LT", "GE": "LE"}[direction]
        if direction not in ("LT", "LE"):
            return Trips(1, False)
        certain = start is not None and step is not None and step > 0
        distance = limit + (direction == "LE") - (start or 0)
        return Trips(max(0, -(-distance // (step if certain and step else 1))), certain)

    def _comparison(self, condition: Computation, root: Instruction) -> tuple[int, int, str] | None:
        """The counter's place, its limit and the direction of the condition's comparison."""
        if root.opcode == "fusion":
            inner = self._module.computations[root.called[0]]
            return self._comparison(inner, inner.root) if inner.root else None
        if root.opcode != "compare":
            return None
        left, right = root.operands
        direction = root.attribute("direction")
        place, limit = self._place(condition, left), self.constant(condition, right)
        if place is None or limit is None:
            place, limit = self._place(condition, right), self.constant(condition, left)
            direction = _MIRRORED.get(direction, direction)
        return None if place is None or limit is None else (place, limit, direction)

    def _start(self, loop: Instruction, place: int) -> int | None:
        computation, _ = self._caller[loop.attribute("body")]
        initial = self._strip(computation, loop.operands[0])
        if initial is None or initial.opcode != "tuple":
            return None
        return self.constant(computation, initial.operands[place])

    def _step(self, loop: Instruction, place: int) -> int | None:
        body = self.body(loop)
        if body.root is None or body.root.opcode != "tuple":
            return None
        return self._increment(body, body.root.operands[place], place)

    def _increment(self, computation: Computation, name: str, place: int) -> int | None:
        """The constant that is added to the counter."""
        instruction = self._strip(computation, name)
        if instruction is None:
            return None
        if instruction.opcode == "fusion":
            inner = self._module.computations[instruction.called[0]]
            return self._increment(inner, inner.root.name, place) if inner.root else None
        if instruction.opcode not in ("add", "subtract"):
            return None
        left, right = instruction.operands
        if self._place(computation, left) == place:
            step = self.constant(computation, right)
            return -step if step is not None and instruction.opcode == "subtract" else step
        if instruction.opcode == "add" and self._place(computation, right) == place:
            return self.constant(computation, left)
        return None

    def _strip(self, computation: Computation, name: str) -> Instruction | None:
        """The instruction whose value this is, behind copies and changes of layout."""
        instruction = computation.by_name.get(name)
        while instruction is not None and instruction.opcode in _SAME:
            instruction = computation.by_name.get(instruction.operands[0])
        return instruction

    def _outside(self, computation: Computation, number: int) -> tuple[Computation, str] | None:
        """Who passes parameter `number` to a fused or called computation."""
        caller = self._caller.get(computation.name)
        if caller is None or caller[1].opcode == "while":
            return None
        return caller[0], caller[1].operands[number]

    def _place(self, computation: Computation, name: str) -> int | None:
        """Which place of the loop's tuple this value is, unchanged."""
        instruction = self._strip(computation, name)
        if instruction is None:
            return None
        if instruction.opcode == "parameter":
            outside = self._outside(computation, int(instruction.inner))
            return self._place(*outside) if outside else None
        if instruction.opcode != "get-tuple-element":
            return None
        whole = self._strip(computation, instruction.operands[0])
        return int(instruction.attribute("index")) if whole is not None and whole.opcode == "parameter" else None

    def constant(self, computation: Computation, name: str) -> int | None:
        """The integer that this value always has; None where that cannot be seen."""
        instruction = self._strip(computation, name)
        if instruction is None:
            return None
        if instruction.opcode == "constant":
            return int(instruction.inner) if re.fullmatch(r"-?\d+", instruction.inner) else None
        if instruction.opcode == "parameter":
            outside = self._outside(computation, int(instruction.inner))
            return self.constant(*outside) if outside else None
        if instruction.opcode in ("add", "subtract", "multiply"):
            left, right = (self.constant(computation, operand) for operand in instruction.operands)
            if left is None or right is None:
                return None
            sign = -1 if instruction.opcode == "subtract" else 1
            return left * right if instruction.opcode == "multiply" else left + sign * right
        if instruction.opcode == "get-tuple-element":
            return self._element(computation, instruction)
        return None

    def _element(self, computation: Computation, element: Instruction) -> int | None:
        """The constant at a place of a tuple, of a finished loop, or of the tuple that the loop around carries."""
        place = int(element.attribute("index"))
        whole = self._strip(computation, element.operands[0])
        if whole is not None and whole.opcode == "tuple":
            return self.constant(computation, whole.operands[place])
        caller = self._caller.get(computation.name)
        if whole is not None and whole.opcode == "while":
            outside, loop = computation, whole
        elif whole is not None and whole.opcode == "parameter" and caller is not None and caller[1].opcode == "while":
            outside, loop = caller
        else:
            return None
        root = self.body(loop).root
        if root is None or root.opcode != "tuple" or self._place(self.body(loop), root.operands[place]) != place:
            return None
        initial = self._strip(outside, loop.operands[0])
        if initial is None or initial.opcode != "tuple":
            return None
        return self.constant(outside, initial.operands[place])
