"""Collective operations: what kind, along which axes of the mesh, how many bytes a chip sends, over which network.

Groups are written in three ways, all of the same four groups of two:

    {{0,1},{2,3},{4,5},{6,7}}                       listed
    [4,2]<=[8]          [4,2]<=[2,4]T(1,0)          the numbers 0..7 in a shape, perhaps transposed, cut into rows
    mesh['a'=4,'b'=2] {'b'}                         the axes of a mesh of the compiler's own

Device numbers are places in the mesh, row by row: `mesh.devices.flat` in jax's words. A program for several slices is
one for the devices of each, numbered from 0; between slices it sends to the host, which does the rest.

Bytes that a chip of a group of n sends, by the ring algorithms (Thakur et al. 2005, "Optimization of collective
communication operations in MPICH"), where the whole array has `size` bytes:

    all-gather, reduce-scatter, all-to-all      (n - 1) / n · size
    all-reduce                              2 · (n - 1) / n · size
    collective-permute                              what it sends on

An all-to-all's bytes go past the chips in between; the time that this takes is `timeline.wire_seconds`' affair.
"""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlm_jax.rehearsal.hlo import Computation, Instruction

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
    "collective-permute",
)
OTHER = "other"
"""What groups that follow no axes of the mesh are called."""

_GROUPS = re.compile(
    r"replica_groups=(\{\{.*?\}\}|\{\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?|(?:maximal_)?mesh\[.*?\}(?=,|$))"
)
_PAIRS = re.compile(r"source_target_pairs=\{(.*?)\}\}")
_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH_AXIS = re.compile(r"'?([A-Za-z_]\w*)'?=(\d+)")
_MESH_PART = re.compile(r"'?([A-Za-z_]\w*)'?(?::\((\d+)\)(\d+))?")


@dataclass(frozen=True, slots=True)
class Collective:
    """One exchange, as one chip takes part in it."""

    kind: str
    axes: str
    """Axes of the mesh joined by "+", or "other"."""
    network: str
    """ici, or dcn where it spans slices."""
    members: int
    operand_bytes: float
    bytes: float
    """That a chip sends."""
    direction: int = 0
    """Of a permutation along a ring: 1 to the next chip, -1 to the one before, 0 both or neither."""


@dataclass(frozen=True)
class Grid:
    """The mesh, and which slice each device is in."""

    mesh: Mapping[str, int]
    slices: tuple[int, ...] = ()
    partitions: int = 0
    """Devices that the program numbers; 0 = all of the mesh."""

    @functools.cached_property
    def numbered(self) -> np.ndarray:
        """int[partitions]: the place in the mesh of each device of the program."""
        everywhere = np.arange(math.prod(self.mesh.values()))
        if not self.slices or self.partitions in (0, len(everywhere)):
            return everywhere
        return everywhere[np.asarray(self.slices) == self.slices[0]]

    @functools.cached_property
    def places(self) -> np.ndarray:
        """int[partitions, axes]: coordinates of each device of the program."""
        return np.stack(np.unravel_index(self.numbered, tuple(self.mesh.values()) or (1,)), axis=1)

    @functools.cached_property
    def slice_axes(self) -> str:
        """The axes along which slices differ."""
        numbers = np.asarray(self.slices or [0] * len(self.numbered)).reshape(tuple(self.mesh.values()))
        varies = [name for axis, name in enumerate(self.mesh) if (numbers != numbers.take([0], axis)).any()]
        return "+".join(varies) or OTHER

    def axes(self, groups: Sequence[Sequence[int]]) -> str:
        """The axes that the groups lie along: in each group every combination of their places, and no other."""
        first = self.places[list(groups[0])]
        along = [axis for axis in range(first.shape[1]) if (first[:, axis] != first[0, axis]).any()]
        sizes = [len({*self.places[:, axis]}) for axis in range(first.shape[1])]
        if not along or any(len(group) != math.prod(sizes[axis] for axis in along) for group in groups):
            return OTHER
        others = [axis for axis in range(len(sizes)) if axis not in along]
        for group in groups:
            places = self.places[list(group)]
            if (places[:, others] != places[0, others]).any() or len({*group}) != len(group):
                return OTHER
        return "+".join(name for axis, name in enumerate(self.mesh) if axis in along)

    def network(self, groups: Sequence[Sequence[int]]) -> str:
        """dcn where a group has members in several slices."""
        spans = self.slices and any(len({self.slices[self.numbered[n]] for n in group}) > 1 for group in groups)
        return "dcn" if spans else "ici"


def base_kind(opcode: str) -> str | None:
    """The kind of a collective's opcode, begun asynchronously or not; None for other instructions and for `-done`."""
    name = opcode.removesuffix("-start")
    return name if name in KINDS else None


def read_collective(computation: Computation, instruction: Instruction, grid: Grid) -> Collective | None:
    """What an instruction exchanges; None if it is no collective, or one among single devices."""
    kind = base_kind(instruction.opcode)
    if kind is None:
        return None
    operands = [array for name in instruction.operands for array in computation.by_name[name].arrays]
    size = sum(array.bytes for array in operands)
    head = instruction.head
    if kind == "collective-permute":
        pairs = _PAIRS.search(head)
        return _permute(pairs[1] if pairs else "", size, grid)
    groups = parse_groups(head, len(grid.numbered))
    members = len(groups[0])
    if members < 2:
        return None
    if kind == "all-reduce" and _is_scattered(computation, instruction):
        kind = "reduce-scatter"
    whole = size * members if kind == "all-gather" else size
    share = (members - 1) / members
    sent = whole * share * (2 if kind == "all-reduce" else 1)
    return Collective(kind, grid.axes(groups), grid.network(groups), members, size, sent)


def _is_scattered(computation: Computation, instruction: Instruction) -> bool:
    """Whether an all-reduce is half of a reduce-scatter: within a fusion, and only a slice of it leaves."""
    root = computation.root
    if computation.name.startswith("all-reduce-scatter"):
        return True
    return root is not None and root is not instruction and root.opcode == "dynamic-slice"


def exchange_between_slices(instruction: Instruction, grid: Grid) -> Collective | None:
    """What a `send` hands to the host for the network between slices, as a collective of the slices."""
    kind = re.search(r'_xla_megascale_transfer_type="?(\w+)', instruction.attributes)
    if instruction.opcode != "send" or kind is None:
        return None
    size = instruction.arrays[0].bytes
    members = max(2, len({*grid.slices}))
    name = kind[1].lower().replace("_", "-")
    share = (members - 1) / members
    factor = {"all-reduce": 2 * share, "all-gather": members - 1, "reduce-scatter": share, "all-to-all": share}
    return Collective(name, grid.slice_axes, "dcn", members, size, size * factor.get(name, 1.0))


def rendezvous(instruction: Instruction) -> str:
    """The name under which a `send` and a `recv` between slices belong together."""
    found = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', instruction.attributes)
    return found[1] if found else ""


def _permute(text: str, size: float, grid: Grid) -> Collective | None:
    pairs = np.asarray([int(number) for number in re.findall(r"\d+", text)], int).reshape(-1, 2)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    if not len(pairs):
        return None
    moves = grid.places[pairs[:, 1]] - grid.places[pairs[:, 0]]
    along = [axis for axis in range(moves.shape[1]) if moves[:, axis].any()]
    axes = "+".join(name for axis, name in enumerate(grid.mesh) if axis in along)
    direction = 0
    if len(along) == 1:
        length = list(grid.mesh.values())[along[0]]
        steps = moves[:, along[0]] % length
        direction = int(np.sign((steps <= length / 2).mean() - 0.5)) if length > 2 else 0
    return Collective("collective-permute", axes, grid.network(pairs.tolist()), 2, size, size, direction)


@functools.lru_cache(maxsize=1024)
def parse_groups(head: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """The groups that an instruction's attributes name; without any, all devices are one."""
    found = _GROUPS.search(head)
    text = found[1] if found else "{}"
    if text.startswith("{{"):
        return tuple(tuple(int(n) for n in group.split(",") if n) for group in text[2:-2].split("},{"))
    if text.startswith("["):
        numbers, shape = _iota(text)
        return tuple(map(tuple, numbers.reshape(shape[0], -1).tolist()))
    if text.startswith("mesh"):
        return _mesh_groups(text)
    return (tuple(range(devices)),)


def _iota(text: str) -> tuple[np.ndarray, list[int]]:
    """Numbers in the order of [a,b]<=[c,d]T(1,0), and the shape a, b."""
    found = _IOTA.search(text)
    assert found is not None, f"replica groups: {text}"
    shape, counted, order = ([int(n) for n in part.split(",")] if part else [] for part in found.groups())
    numbers = np.arange(math.prod(counted)).reshape(counted)
    return (numbers.transpose(order) if order else numbers).reshape(-1), shape


def _mesh_groups(text: str) -> tuple[tuple[int, ...], ...]:
    """Groups along axes of the compiler's own mesh; 'a':(2)4 is a part of axis a: 4 long, behind one of 2."""
    described, chosen = text.rsplit("{", 1)
    head, _, order = described.partition("]")
    axes = [(name, int(size)) for name, size in _MESH_AXIS.findall(head)]
    if "<=" in order:
        numbers, _ = _iota(order)
    elif turned := re.search(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", order):
        counted, turn = ([int(n) for n in part.split(",")] if part else [] for part in turned.groups())
        numbers = np.arange(math.prod(counted)).reshape(counted)
        numbers = (numbers.transpose(turn) if turn else numbers).reshape(-1)
    elif "device_ids=(" in order:
        numbers = np.asarray([int(number) for number in re.findall(r"\d+", order)])
    else:
        numbers = np.arange(math.prod(size for _, size in axes))
    parts = {(name, int(before or 1), int(size or 0)) for name, before, size in _MESH_PART.findall(chosen)}
    shape: list[int] = []
    inside: list[int] = []
    for name, size in axes:
        cut = next((part for part in parts if part[0] == name), None)
        pieces = [size] if cut is None or not cut[2] else [cut[1], cut[2], size // (cut[1] * cut[2])]
        if cut is not None:
            inside.append(len(shape) + (1 if cut[2] else 0))
        shape += pieces
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    members = math.prod(shape[axis] for axis in inside)
    return tuple(map(tuple, numbers.reshape(shape).transpose(outside + inside).reshape(-1, members).tolist()))
