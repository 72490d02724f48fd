"""What a compiled program costs on one chip: the figures that a report shows, and what the counting needs to know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ring:
    """Members of a group along one axis of the torus; a line where its ends are not joined."""

    axis: str
    """Of the torus: "x", "y" or "z". What goes along the same one shares its links."""
    members: int
    bandwidth: float
    """Bytes/s that a chip sends to the others along it: one link of a line, both of a ring, parts of links that other
    groups use, too."""


@dataclass(frozen=True)
class Machine:
    """One chip and its wires, as the counting sees them."""

    peak_flops: float
    """FLOP/s of the matrix unit in bfloat16."""
    hbm_bandwidth: float
    """Bytes/s."""
    ici: Mapping[str, Sequence[Ring]] = field(default_factory=dict)
    """What each group of mesh axes, named as in `Traffic.axes`, has inside a slice: rings that work at once."""
    ici_default: float = 0.0
    """Bytes/s of one link, and for groups that `ici` does not name; 0 makes those an error."""
    ici_hop_seconds: float = 1e-6
    """Latency of one hop."""
    dcn_bandwidth: float = 0.0
    """Bytes/s of the network between slices, a chip's share of its host's."""
    dcn_seconds: float = 100e-6
    """Latency of one exchange between slices."""
    host_bandwidth: float = 16e9
    """Bytes/s between a chip and its host's memory."""
    mxu: int = 128
    """Rows and columns of the matrix unit: contracted and produced dimensions are padded to it."""


@dataclass(frozen=True)
class Traffic:
    """One kind of collective along one group of mesh axes, over a whole step, for one chip."""

    kind: str
    """all-gather, all-reduce, reduce-scatter, all-to-all, collective-permute, or as XLA calls it."""
    axes: str
    """Mesh axes joined by "+"; "other" where the groups follow none."""
    network: str
    """ici, or dcn where a group spans slices."""
    count: float = 0.0
    """Times a step."""
    operand_bytes: float = 0.0
    """What the instructions take."""
    bytes: float = 0.0
    """What a chip sends by the ring algorithm."""
    seconds: float = 0.0
    """Alone on its wires."""
    exposed_seconds: float = 0.0
    """Of those, what the compiled schedule leaves uncovered; waiting for others on the same wires included."""

    @property
    def exposed_bytes(self) -> float:
        """The share of `bytes` that the chip waits for."""
        return self.bytes * min(1.0, self.exposed_seconds / self.seconds) if self.seconds else 0.0


@dataclass(frozen=True)
class Operation:
    """One instruction of the compiled program, with all its repetitions."""

    name: str
    opcode: str
    source: str
    """The JAX operation it came from (`op_name`)."""
    times: float
    flops: float
    hbm_bytes: float
    seconds: float


@dataclass(frozen=True)
class ProgramCosts:
    """What one execution of a compiled program costs one chip: counted or predicted, never measured."""

    flops: float
    """Matrix products and convolutions, with the repetitions of loops; without kernels."""
    kernel_flops: float
    """Pallas kernels, by formula; where chips have unequal parts, of a chip on average."""
    mxu_flops: float
    """Both, with dimensions padded to the matrix unit's tiles: what it is busy with."""
    elementwise_flops: float
    hbm_bytes: float
    """Read and written by instructions and kernels."""
    host_bytes: float
    """Copied between the chip and its host's memory."""
    traffic: tuple[Traffic, ...]
    compute_seconds: float
    """`mxu_flops` at the peak."""
    hbm_seconds: float
    core_seconds: float
    """Instruction by instruction the longer of compute and HBM: the step without communication."""
    ici_seconds: float
    """Of collectives within a slice, one after the other; the two directions of a ring count as one."""
    ici_busiest_seconds: float
    """Of the torus axis, and direction along it, whose links are busy the longest."""
    dcn_seconds: float
    host_seconds: float
    scheduled: float
    """Seconds of the schedule as compiled: what is asynchronous runs beside what stands between its start and done."""
    scheduled_alone: float
    """The same walk with wires of infinite speed."""
    largest: tuple[Operation, ...] = ()
    """Instructions that take the most time, longest first."""
    unknown_calls: Mapping[str, float] = field(default_factory=dict)
    """Custom calls of no known cost: target -> bytes of operands and results, counted as HBM traffic."""
    unknown_loops: Sequence[str] = ()
    """Loops whose number of trips could not be read, counted once."""

    @property
    def collective_bytes(self) -> dict[str, dict[str, float]]:
        """Bytes a chip sends: {kind: {axes: bytes}}; what goes between slices stands under "axes@dcn"."""
        table: dict[str, dict[str, float]] = {}
        for line in self.traffic:
            axes = line.axes if line.network == "ici" else f"{line.axes}@dcn"
            row = table.setdefault(line.kind, {})
            row[axes] = row.get(axes, 0.0) + line.bytes
        return table

    @property
    def serial(self) -> float:
        """Seconds with nothing overlapped."""
        return self.core_seconds + self.ici_seconds + self.dcn_seconds + self.host_seconds

    @property
    def overlapped(self) -> float:
        """Seconds with everything overlapped: the busiest resource."""
        wires = max(self.ici_busiest_seconds, self.dcn_seconds, self.host_seconds)
        return max(self.compute_seconds, self.hbm_seconds, wires)

    @property
    def exposed_share(self) -> float:
        """Share of the scheduled step in which the chip waits for communication."""
        return (self.scheduled - self.scheduled_alone) / self.scheduled if self.scheduled else 0.0
