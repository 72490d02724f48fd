"""Optimised HLO as text -> computations and instructions, without a protocol buffer or a jaxlib that understands it.

The text is that of `compiled.as_text()` or of XLA's dumps. A line is an instruction:

    %all-gather.1 = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=1, replica_groups=[1,4]<=[4], ...
     name           type, layout, tiles, memory space    opcode     operands, attributes

Attributes are kept as text and read when asked for: they are most of the file.
"""

import functools
import math
import re
from dataclasses import dataclass, field

from vlm_jax.errors import UserError

_BYTES = {"pred": 1, "token": 0, "opaque": 0, "bf16": 2}
_NUMBERED = re.compile(r"[a-z]+?(\d+)")
_LEAF = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_TILE = re.compile(r"T\(([\d,*]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*->.*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_AFTER_TUPLE = re.compile(r"\) ([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)")
_SOURCE = re.compile(r'op_name="([^"]*)"')

HOST, VMEM, HBM = 5, 1, 0
"""Memory spaces that XLA writes as S(n); the chip's own main memory has none."""


@dataclass(frozen=True, slots=True)
class Array:
    """An array's type as written: bf16[64,128]{1,0:T(8,128)(2,1)S(1)}."""

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def item_bytes(self) -> float:
        """Bytes of an element; half a byte for 4-bit types."""
        if self.dtype in _BYTES:
            return _BYTES[self.dtype]
        bits = _NUMBERED.match(self.dtype)
        return int(bits[1]) / 8 if bits else 4

    @property
    def bytes(self) -> float:
        """Bytes of the elements."""
        return self.elements * self.item_bytes

    @property
    def stored_bytes(self) -> float:
        """Bytes in memory: the minor dimensions are padded to whole tiles."""
        tile = _TILE.search(self.layout)
        if not tile or "*" in tile[1] or not self.dims:
            return self.bytes
        order = [int(place) for place in self.layout.split(":")[0].split(",") if place]
        sizes = [self.dims[place] for place in reversed(order)]
        tiles = [int(size) for size in tile[1].split(",")]
        if len(tiles) > len(sizes):
            return self.bytes
        whole = sizes[: len(sizes) - len(tiles)]
        padded = [-(-size // edge) * edge for size, edge in zip(sizes[len(whole) :], tiles, strict=True)]
        return math.prod(whole + padded) * self.item_bytes

    @property
    def space(self) -> int:
        """Memory space: 0 HBM, 1 the chip's vector memory, 5 the host, others small."""
        found = _SPACE.search(self.layout)
        return int(found[1]) if found else HBM


@functools.lru_cache(maxsize=65536)
def parse_type(text: str) -> tuple[Array, ...]:
    """The arrays of a type, those of a tuple in their order, nested ones flattened."""
    return tuple(
        Array(dtype, tuple(int(size.lstrip("<=")) for size in dims.split(",") if size), layout)
        for dtype, dims, layout in _LEAF.findall(text)
    )


@dataclass(slots=True, eq=False)
class Instruction:
    """One instruction. `inner` is the text between the parentheses: operands, a parameter's number or a literal."""

    name: str
    type: str
    opcode: str
    inner: str
    attributes: str
    operands: tuple[str, ...] = ()

    @property
    def arrays(self) -> tuple[Array, ...]:
        return parse_type(self.type)

    @property
    def head(self) -> str:
        """Attributes without metadata and the backend's own configuration."""
        for stop in (", metadata={", ", backend_config="):
            place = self.attributes.find(stop)
            if place >= 0:
                return self.attributes[:place]
        return self.attributes

    @property
    def called(self) -> tuple[str, ...]:
        """Computations that it calls, in the order in which they are written."""
        head = self.head
        branches = re.search(r"branch_computations=\{([^}]*)\}", head)
        if branches:
            return tuple(name.strip().lstrip("%") for name in branches[1].split(","))
        return tuple(_CALLED.findall(head))

    @property
    def source(self) -> str:
        """The JAX operation that it came from."""
        found = _SOURCE.search(self.attributes)
        return found[1] if found else ""

    def attribute(self, name: str) -> str:
        """Value of a plain attribute, such as `direction`; empty where it has none."""
        found = re.search(rf'\b{name}="?%?([\w.\-]+)', self.head)
        return found[1] if found else ""


@dataclass(slots=True, eq=False)
class Computation:
    """A named list of instructions, in the order in which they run where the module is scheduled."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    by_name: dict[str, Instruction] = field(default_factory=dict)
    root: Instruction | None = None
    _users: dict[str, list[Instruction]] | None = None
    _parameters: dict[int, str] | None = None

    @property
    def users(self) -> dict[str, list[Instruction]]:
        """Name -> instructions that take it."""
        if self._users is None:
            self._users = {}
            for instruction in self.instructions:
                for name in dict.fromkeys(instruction.operands):
                    self._users.setdefault(name, []).append(instruction)
        return self._users

    @property
    def parameters(self) -> dict[int, str]:
        """Number -> name."""
        if self._parameters is None:
            self._parameters = {int(i.inner): i.name for i in self.instructions if i.opcode == "parameter"}
        return self._parameters


@dataclass(frozen=True, slots=True)
class Module:
    """A compiled program."""

    computations: dict[str, Computation]
    entry: Computation
    partitions: int = 0
    """Devices that run it together; of several slices, those of one. 0 where the text does not say."""


def parse(text: str) -> Module:
    """Reads a module in one pass.

    Raises:
        UserError: if it has no entry computation, or is not scheduled.
    """
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    entry: Computation | None = None
    if "is_scheduled=true" not in text[: text.find("\n")]:
        raise UserError(
            "rehearsal: the compiled program's text is no scheduled HLO module; pass what the compiler gave"
        )
    for line in text.splitlines():
        if current is None:
            header = None if line.startswith((" ", "HloModule")) else _HEADER.match(line)
            if header:
                current = computations[header[2]] = Computation(header[2])
                entry = current if header[1] else entry
        elif line == "}" or line.startswith("}, execution_thread"):
            current = None
        else:
            _read(line, current)
    if entry is None:
        raise UserError("rehearsal: the compiled program's text has no ENTRY computation; it may be cut short")
    partitions = re.search(r"\bnum_partitions=(\d+)", text[: text.find("\n")])
    return Module(computations, entry, int(partitions[1]) if partitions else 0)


def _read(line: str, computation: Computation) -> None:
    """Adds the line's instruction; a line that begins none goes on with the attributes of the last."""
    start = _INSTRUCTION.match(line)
    if not start:
        if computation.instructions:
            computation.instructions[-1].attributes += line
        return
    place = start.end()
    if line[place] == "(":
        after = _AFTER_TUPLE.search(line, place)
        if not after:
            return
        kind, opcode, place = line[place : after.start() + 1], after[1], after.end()
    else:
        gap = line.index(" ", place)
        stop = line.index("(", gap)
        kind, opcode, place = line[place:gap], line[gap + 1 : stop], stop + 1
    end = _closing(line, place)
    inner = line[place:end]
    operands = () if opcode in ("constant", "parameter") else tuple(_NAME.findall(inner))
    instruction = Instruction(start[2], kind, opcode, inner, line[end + 1 :], operands)
    computation.instructions.append(instruction)
    computation.by_name[instruction.name] = instruction
    if start[1]:
        computation.root = instruction


def _closing(line: str, place: int) -> int:
    """Where the parenthesis that was open at `place` closes."""
    end = line.find(")", place)
    opened = line.count("(", place, end)
    while opened and end >= 0:
        following = line.find(")", end + 1)
        opened += line.count("(", end + 1, following) - 1
        end = following
    return end if end >= 0 else len(line)
