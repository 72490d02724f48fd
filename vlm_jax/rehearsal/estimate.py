"""Memory and time of a layout by rule of thumb: good enough to say which layouts are worth compiling."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

from vlm_jax.config import Experiment, Stage
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.parallel import MeshConfig, build_layout
from vlm_jax.parallel.rules import AXES
from vlm_jax.rehearsal.machine import group_rings
from vlm_jax.rehearsal.topology import Topology, absent_devices

_BF16, _F32 = 2.0, 4.0
"""Bytes of an element."""

_EFFICIENCY = 0.75
"""Share of the peak that products reach."""

_HOP_SECONDS = 1e-6
"""Of a collective, for every device in its ring."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What is expected of a layout before it is compiled."""

    memory: float
    """Bytes a chip."""
    seconds: float
    """Of a step, communication hidden where it can be."""


def estimate(experiment: Experiment, stage: Stage, topology: Topology, params: int, trained: int) -> Estimate:
    """Memory and time of a stage on the experiment's mesh.

    Args:
        experiment: with the mesh that is asked about.
        stage: of it.
        topology: where.
        params, trained: how many parameters there are and train.

    Raises:
        UserError: if the mesh does not make the topology's chips.
    """
    wires = _wires_of(topology, tuple(experiment.mesh.sizes.values()), experiment.mesh.across_slices)
    decoder, mesh = experiment.model.decoder, wires.mesh
    shares = mesh["data"] * mesh["fsdp"] * mesh["sequence"]
    positions = stage.data.rows * stage.data.length / stage.accumulation / shares
    memory = _memory(decoder, stage, mesh, positions, params, trained)
    again = _Recomputed.of(decoder, stage.data.length)
    tokens = stage.data.rows * stage.data.length
    products = (4 * params + 2 * trained + 2 * params * again.share) * tokens
    compute = products / topology.chips / (_EFFICIENCY * topology.chip.peak_flops)
    kept = decoder.layers * positions * stage.accumulation * _BF16 * again.kept / mesh["tensor"]
    compute += 2 * kept / topology.chip.hbm_bandwidth  # written, and read again
    hidden, exposed = _talk(decoder, stage, wires, positions, params, trained)
    offloaded = 2 * decoder.layers * positions * stage.accumulation * _BF16 * again.offloaded / mesh["tensor"]
    hidden += offloaded / topology.chip.host_link_bandwidth
    return Estimate(memory, max(compute, hidden) + 0.1 * min(compute, hidden) + exposed)


def _memory(
    decoder: DecoderConfig, stage: Stage, mesh: Mapping[str, int], positions: float, params: int, trained: int
) -> float:
    """State, what is kept for the backward pass, what a layer works on, and logits; bytes a chip."""
    kept = decoder.width + _Recomputed.of(decoder, stage.data.length).kept / mesh["tensor"]
    chunk = min(stage.objective.chunk or stage.data.length, stage.data.length)
    logits = positions * chunk / stage.data.length * decoder.vocabulary_size / mesh["tensor"]
    widest = max(decoder.width, decoder.mlp_width / mesh["tensor"])
    # Parameters, two moments and gradients in float32; what is frozen in bfloat16; a few layers gathered whole.
    state = (4 * _F32 * trained + _BF16 * (params - trained)) / (mesh["fsdp"] * mesh["tensor"])
    gathered = 2 * _BF16 * params / decoder.layers / mesh["tensor"]
    return state + gathered + positions * _BF16 * (decoder.layers * kept + 6 * widest) + 3 * _F32 * logits


@dataclasses.dataclass(frozen=True)
class _Wires:
    """A mesh, and bytes a second along each of its axes."""

    mesh: Mapping[str, int]
    rates: Mapping[str, float]


@functools.lru_cache(maxsize=1024)
def _wires_of(topology: Topology, sizes: tuple[int, ...], across: Literal["data", "fsdp"]) -> _Wires:
    """Looked up once for each mesh: a search asks for the same ones with thousands of choices."""
    axes: dict[str, Any] = dict(zip(AXES, sizes, strict=True))
    config = MeshConfig(**axes, slices=topology.slices, across_slices=across)
    layout, chip = build_layout(config, absent_devices(topology)), topology.chip
    rings = {axis: group_rings(topology, layout.mesh, [axis]) for axis, size in layout.shape.items() if size > 1}
    rates = {axis: sum(ring.bandwidth for ring in some) for axis, some in rings.items()}
    if topology.slices > 1:
        rates[across] = chip.dcn_bandwidth / topology.chips_of_a_host
    return _Wires(dict(layout.shape), rates)


def _talk(
    decoder: DecoderConfig, stage: Stage, wires: _Wires, positions: float, params: int, trained: int
) -> tuple[float, float]:
    """Seconds of communication that (runs beside compute, stands between products)."""
    mesh, rates, parts = wires.mesh, wires.rates, stage.accumulation
    hidden = exposed = 0.0
    if mesh["fsdp"] > 1:
        gathers = 2 if decoder.remat == "none" else 3
        moved = parts * (gathers * _BF16 * params + _F32 * trained) / mesh["tensor"]
        hidden += moved / rates["fsdp"] + parts * gathers * decoder.layers * mesh["fsdp"] * _HOP_SECONDS
    if mesh["data"] > 1:
        hidden += 2 * _F32 * trained / (mesh["fsdp"] * mesh["tensor"]) / rates["data"]
    for axis, share in (("tensor", 1.0), ("sequence", decoder.key_value_heads / decoder.heads)):
        if mesh[axis] > 1:
            times = parts * 6 * decoder.layers
            exposed += times * (share * positions * decoder.width * _BF16 / rates[axis] + mesh[axis] * _HOP_SECONDS)
    return hidden, exposed


@dataclasses.dataclass(frozen=True)
class _Recomputed:
    """What a rematerialisation policy costs a layer and position; the table is `models/rematerialisation.py`'s."""

    kept: float
    """Numbers on the chip besides the layer's input."""
    offloaded: float
    """Numbers on the host."""
    share: float
    """Of the layer's forward products, those that run again."""

    @classmethod
    def of(cls, decoder: DecoderConfig, length: int) -> "_Recomputed":
        width, middle = decoder.width, decoder.mlp_width
        heads, groups = decoder.heads * decoder.head_size, decoder.key_value_heads * decoder.head_size
        qkv, scores = 2 * heads + 2 * groups, heads * length
        numbers = {
            "none": qkv + 14 * width + 5 * middle,  # also what norms and activations need, partly in float32
            "attention": heads,
            "qkv": qkv,
            "all_but_mlp": qkv + width,
            "products": qkv + width + 2 * middle,
            "weight_dots": qkv - heads + width + 2 * middle,
            "dots": qkv + width + 2 * middle + decoder.heads * length,
        }
        inwards, outwards, mlp = width * (heads + 2 * groups), heads * width, 2 * width * middle
        again = {
            "full": inwards + outwards + mlp + scores,
            "attention": inwards + outwards + mlp,
            "qkv": outwards + mlp,
            "all_but_mlp": mlp,
            "weight_dots": scores,
        }
        name = decoder.remat.removeprefix("save_").removeprefix("offload_")
        kept = float(numbers.get(name, 0))
        away = decoder.remat.startswith("offload_")
        share = again.get(name, 0) / (inwards + outwards + 1.5 * mlp + scores)
        return cls(0.0 if away else kept, kept if away else 0.0, share)


def divisors(number: int) -> list[int]:
    """In rising order."""
    return [d for d in range(1, number + 1) if number % d == 0]


def factorisations(number: int, parts: int) -> list[tuple[int, ...]]:
    """Every way to write a number as a product of so many factors, in order."""
    if parts == 1:
        return [(number,)]
    return [(d, *rest) for d in divisors(number) for rest in factorisations(number // d, parts - 1)]
