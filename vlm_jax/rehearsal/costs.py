"""What one instruction costs: floating-point operations, wherever they are fused, and bytes of HBM at its edges.

Bytes are those of operands and results in HBM as they lie there, tiles included. What stays in the chip's vector memory
is free, as is what a fusion computes on the way. Slices count what they touch: a fusion that takes a slice of stacked
weights reads the slice, and one that updates a slice in place writes it.
"""

from dataclasses import dataclass, field

from vlm_jax.rehearsal import kernels
from vlm_jax.rehearsal.hlo import HBM, HOST, Array, Computation, Instruction, Module
from vlm_jax.rehearsal.products import convolution, dot

_FREE = frozenset(
    {
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "add-dependency",
        "partition-id",
        "replica-id",
        "opt-barrier",
        "optimization-barrier",
        "while",
        "conditional",
        "call",
        "domain",
    }
)
_NO_ARITHMETIC = _FREE | {
    "broadcast",
    "iota",
    "reshape",
    "transpose",
    "copy",
    "slice",
    "dynamic-slice",
    "dynamic-update-slice",
    "concatenate",
    "pad",
    "reverse",
    "gather",
    "convert",
    "fusion",
    "custom-call",
    "copy-start",
    "copy-done",
    "slice-start",
    "slice-done",
    "rng-bit-generator",
}
_ALIASES = frozenset({"bitcast", "reshape", "copy", "get-tuple-element", "opt-barrier", "optimization-barrier"})
_WIRES = ("all-", "reduce-scatter", "collective-", "ragged-", "send", "recv")
_SLICES = frozenset({"dynamic-slice", "slice", "gather"})


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one run of one instruction."""

    flops: float = 0.0
    mxu_flops: float = 0.0
    kernel_flops: float = 0.0
    elementwise_flops: float = 0.0
    hbm_bytes: float = 0.0
    host_bytes: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops + other.flops,
            self.mxu_flops + other.mxu_flops,
            self.kernel_flops + other.kernel_flops,
            self.elementwise_flops + other.elementwise_flops,
            self.hbm_bytes + other.hbm_bytes,
            self.host_bytes + other.host_bytes,
        )

    def __mul__(self, times: float) -> "Cost":
        return Cost(
            self.flops * times,
            self.mxu_flops * times,
            self.kernel_flops * times,
            self.elementwise_flops * times,
            self.hbm_bytes * times,
            self.host_bytes * times,
        )


@dataclass
class Costs:
    """The instructions of a module, priced."""

    module: Module
    mxu: int
    attended_share: float | None = None
    unknown_calls: dict[Instruction, float] = field(default_factory=dict)
    """Custom calls of no known cost, and their bytes."""
    _inside: dict[str, Cost] = field(default_factory=dict)

    def cost(self, computation: Computation, instruction: Instruction) -> Cost:
        """Of an instruction that runs by itself; bodies of loops and branches are not counted with it."""
        if instruction.opcode in _FREE:
            return Cost()
        work = self._work(computation, instruction)
        hbm, host = self._bytes(computation, instruction)
        return work + Cost(hbm_bytes=hbm, host_bytes=host)

    def _work(self, computation: Computation, instruction: Instruction) -> Cost:
        """Floating-point operations, those of called computations included."""
        opcode = instruction.opcode
        if opcode in ("dot", "convolution"):
            left, right = (computation.by_name[name].arrays[0] for name in instruction.operands[:2])
            product = (dot if opcode == "dot" else convolution)(instruction, left, right)
            passes = _passes(instruction, left, right)
            return Cost(flops=product.flops, mxu_flops=passes * product.padded_flops(self.mxu))
        if opcode == "custom-call":
            return self._call(computation, instruction)
        if opcode == "fusion" or opcode.startswith("async-start"):
            return sum((self._within(name) for name in instruction.called), Cost())
        if opcode in ("reduce", "reduce-window", "sort", "scatter", "map", "select-and-scatter"):
            return Cost(elementwise_flops=computation.by_name[instruction.operands[0]].arrays[0].elements)
        if opcode in _NO_ARITHMETIC or opcode.startswith(_WIRES) or not instruction.arrays:
            return Cost()
        return Cost(elementwise_flops=instruction.arrays[0].elements)

    def _within(self, name: str) -> Cost:
        """Operations of a fused computation."""
        if name not in self._inside:
            fused = self.module.computations[name]
            self._inside[name] = sum((self._work(fused, instruction) for instruction in fused.instructions), Cost())
        return self._inside[name]

    def _call(self, computation: Computation, call: Instruction) -> Cost:
        arrays = [computation.by_name[name].arrays[0] for name in call.operands if computation.by_name[name].arrays]
        kernel = kernels.splash(call, arrays, self.attended_share)
        if not kernels.is_known(call, kernel):
            self.unknown_calls[call] = sum(a.stored_bytes for a in (*arrays, *call.arrays) if a.space == HBM)
        if kernel is None:
            return Cost()
        return Cost(kernel_flops=kernel.flops, mxu_flops=kernel.padded_flops(self.mxu))

    def _bytes(self, computation: Computation, instruction: Instruction) -> tuple[float, float]:
        """Bytes of HBM and of the host's memory that are read and written."""
        opcode, results = instruction.opcode, instruction.arrays
        if opcode == "custom-call" and kernels.is_free(instruction):
            return 0.0, 0.0
        if opcode.endswith(("-start", "-update", "-done", "send", "recv")):
            return self._asynchronous(computation, instruction)
        operands = [computation.by_name[name].arrays[0] for name in instruction.operands if name in computation.by_name]
        if opcode in _SLICES:
            return _sum([(results[0], 2.0)], like=operands[0])
        if opcode == "dynamic-update-slice":
            return _sum([(operands[1], 2.0)], like=results[0])
        if opcode == "scatter":
            return _sum([(operands[-1], 2.0), (operands[1], 1.0)], like=results[0])
        if opcode == "fusion":
            return self._fusion(computation, instruction)
        return _sum(
            [(array, 1.0) for name in instruction.operands for array in computation.by_name[name].arrays]
            + [(array, 1.0) for array in results]
        )

    def _asynchronous(self, computation: Computation, instruction: Instruction) -> tuple[float, float]:
        """Of what is begun: all is counted where it begins."""
        opcode, arrays = instruction.opcode, instruction.arrays
        kind = self._begun(instruction)
        if kind in ("send", "recv"):
            return _sum([(arrays[0], 1.0)])
        if kind == "dynamic-update-slice":
            update = computation.by_name[instruction.operands[1]].arrays[0]
            return _sum([(update, 1.0), (_moved(update, arrays[0]), 1.0)])
        if kind == "copy" or kind in _SLICES:
            large = [array for array in arrays if array.dims][:2]
            small = min(large, key=lambda array: array.elements, default=arrays[0])
            return _sum([(_moved(small, array), 1.0) for array in large])
        if opcode.endswith("-start"):
            return _sum([(array, 2.0 if kind == "all-reduce" else 1.0) for array in arrays])
        return 0.0, 0.0

    def _begun(self, instruction: Instruction) -> str:
        """What an asynchronous instruction begins; dumps wrap it in a computation of its own."""
        if instruction.opcode == "async-start" and instruction.called:
            root = self.module.computations[instruction.called[0]].root
            return root.opcode if root is not None else ""
        return instruction.opcode.removesuffix("-start")

    def goes_to_host(self, instruction: Instruction) -> bool:
        """Whether a copy that is begun ends in the host's memory."""
        # A copy names where it goes first; all else its operands, of which an update in place is also the result.
        first = instruction.arrays[0].space == HOST
        return first and self._begun(instruction) in ("copy", "dynamic-update-slice")

    def _fusion(self, computation: Computation, fusion: Instruction) -> tuple[float, float]:
        fused = self.module.computations[fusion.called[0]]
        moved: list[tuple[Array, float]] = []
        for number, name in enumerate(fusion.operands):
            for array in computation.by_name[name].arrays[:1]:
                inner = fused.parameters.get(number)
                read = self._read(fused, inner) if inner else None
                whole = array.elements or 1
                moved.append((array, 1.0 if read is None else min(1.0, read / whole)))
        if fused.root is not None:
            moved += self._written(fused, fused.root, fusion)
        return _sum(moved)

    def _read(self, fused: Computation, name: str) -> float | None:
        """Elements of a value that a fused computation reads; None for all of them."""
        total = 0.0
        for user in fused.users.get(name, ()):
            if user.opcode in _ALIASES:
                more = self._read(fused, user.name)
            elif user.opcode in _SLICES and user.operands[0] == name:
                more = float(user.arrays[0].elements) if name not in user.operands[1:] else None
            elif _hands_on(user, name):
                more = 0.0
            elif user.opcode == "fusion":
                more = self._read_by(fused, user, name)
            else:
                more = None
            if more is None:
                return None
            total += more
        return total

    def _read_by(self, fused: Computation, user: Instruction, name: str) -> float | None:
        """What a fusion within the fusion reads of a value; if it only passes it on, what its users read."""
        inner = self.module.computations[user.called[0]]
        total = 0.0
        for number, operand in enumerate(user.operands):
            if operand != name:
                continue
            parameter = inner.parameters[number]
            if inner.root is not None and _strip(inner, inner.root.name) == parameter:
                more = self._read(fused, user.name)
            else:
                more = self._read(inner, parameter)
            if more is None:
                return None
            total += more
        return total

    def _written(self, fused: Computation, root: Instruction, fusion: Instruction) -> list[tuple[Array, float]]:
        """Results of a fusion with the share of each that is written."""
        values = root.operands if root.opcode == "tuple" else (root.name,)
        if len(values) != len(fusion.arrays):
            return [(array, 1.0) for array in fusion.arrays]
        return [(array, self._share_written(fused, value)) for value, array in zip(values, fusion.arrays, strict=True)]

    def _share_written(self, fused: Computation, name: str) -> float:
        made = fused.by_name[_strip(fused, name)]
        if made.opcode == "fusion":
            inner = self.module.computations[made.called[0]]
            return self._share_written(inner, inner.root.name) if inner.root and inner.root.opcode != "tuple" else 1.0
        if made.opcode == "parameter" or made.opcode.startswith(_WIRES):
            return 0.0  # handed through, or written by the wires
        if made.opcode == "dynamic-update-slice":
            update = fused.by_name[made.operands[1]].arrays[0]
            return update.elements / max(1, made.arrays[0].elements)
        if made.opcode == "scatter":
            return min(1.0, fused.by_name[made.operands[-1]].arrays[0].elements / max(1, made.arrays[0].elements))
        return 1.0


def _hands_on(user: Instruction, name: str) -> bool:
    """Whether a value is taken without being read: updated in place, handed on, or left to the wires."""
    if user.opcode == "dynamic-update-slice":
        return user.operands[0] == name and name not in user.operands[1:]
    if user.opcode == "custom-call":
        return kernels.is_free(user)
    return user.opcode == "tuple" or user.opcode.startswith(_WIRES)


def _strip(computation: Computation, name: str) -> str:
    """The value behind changes of layout."""
    instruction = computation.by_name[name]
    while instruction.opcode in ("bitcast", "reshape", "convert") and instruction.operands:
        instruction = computation.by_name[instruction.operands[0]]
    return instruction.name


def _moved(part: Array, place: Array) -> Array:
    """So many elements as `part` has, in the memory of `place`."""
    return Array(part.dtype, part.dims, place.layout if part.dims == place.dims else f"S({place.space})")


def _sum(moved: list[tuple[Array, float]], like: Array | None = None) -> tuple[float, float]:
    """Bytes in HBM and on the host, of arrays with the share of each that counts; all in the memory of `like`."""
    hbm = sum(array.stored_bytes * share for array, share in moved if (like or array).space == HBM)
    host = sum(array.stored_bytes * share for array, share in moved if (like or array).space == HOST)
    return hbm, host


def _passes(instruction: Instruction, left: Array, right: Array) -> int:
    """How often the matrix unit multiplies in bfloat16 for one product: float32 takes 3 or 6 where it was asked for."""
    if "f32" not in (left.dtype, right.dtype):
        return 1
    return 6 if "highest" in instruction.head else 3 if "{high," in instruction.head else 1
