"""Memory and time of a layout by rule of thumb: good enough to say which layouts are worth compiling."""

import dataclasses

from vlm_jax.config import Experiment, Stage
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.parallel import build_layout
from vlm_jax.rehearsal.machine import group_bandwidth
from vlm_jax.rehearsal.topology import Topology, absent_devices

_PIECES = 2.0
"""Bytes of what is kept for the backward pass (bfloat16)."""


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
    layout = build_layout(experiment.mesh, absent_devices(topology))
    mesh, chip = layout.shape, topology.chip
    decoder = experiment.model.decoder
    shards = mesh["fsdp"] * mesh["tensor"]
    rows = stage.data.rows / stage.accumulation / (mesh["data"] * mesh["fsdp"])
    positions = rows * stage.data.length / mesh["sequence"]
    kept = decoder.layers * positions * _kept_elements(decoder, mesh["tensor"]) * _PIECES
    live = 8 * positions * max(decoder.width, decoder.mlp_width / mesh["tensor"]) * _PIECES
    chunk = min(getattr(stage.objective, "chunk", 0) or stage.data.length, stage.data.length)
    logits = 3 * 4 * rows * chunk / mesh["sequence"] * decoder.vocabulary_size / mesh["tensor"]
    # Parameters, two moments and gradients in float32; what is frozen in bfloat16.
    state = (16 * trained + 2 * (params - trained)) / shards
    memory = state + kept + live + logits + 4 * params / decoder.layers / mesh["tensor"]

    tokens = stage.data.rows * stage.data.length
    passes = (2 * params + 2 * params + 2 * trained) * (1 + _recomputed(decoder) / 3)
    compute = passes * tokens / topology.chips / (0.75 * chip.peak_flops)
    moved = stage.accumulation * (2 + (_recomputed(decoder) > 0)) * 2 * params / mesh["tensor"]
    reduced = stage.accumulation * 4 * trained / mesh["tensor"]
    wires = 0.0
    if mesh["fsdp"] > 1:
        wires += (moved + reduced) / group_bandwidth(topology, layout.mesh, ["fsdp"])
    if mesh["data"] > 1:
        across = topology.slices > 1 and experiment.mesh.across_slices == "data"
        slow = chip.dcn_bandwidth / topology.chips_of_a_host
        bandwidth = slow if across else group_bandwidth(topology, layout.mesh, ["data"])
        wires += 2 * 4 * trained / shards / bandwidth
    exchanged = 4 * decoder.layers * positions * stage.accumulation * decoder.width * _PIECES
    exposed = 0.0
    for axis, share in (("tensor", 1.0), ("sequence", decoder.key_value_heads / decoder.heads)):
        if mesh[axis] > 1:  # it stands between products that need it
            exposed += 1.5 * share * exchanged / group_bandwidth(topology, layout.mesh, [axis])
    return Estimate(memory, max(compute, wires) + 0.1 * min(compute, wires) + exposed)


def _kept_elements(decoder: DecoderConfig, tensor: int) -> float:
    """Elements a position and layer that stay for the backward pass."""
    if decoder.remat == "full":
        return decoder.width
    heads = (decoder.heads + 2 * decoder.key_value_heads) * decoder.head_size
    products = (heads + 2 * decoder.mlp_width) / tensor + 2 * decoder.width
    return decoder.width + products * (2.0 if decoder.remat == "none" else 1.0)


def _recomputed(decoder: DecoderConfig) -> float:
    """Share of the forward pass that is done again."""
    return {"none": 0.0, "full": 1.0}.get(decoder.remat, 0.15)


def divisors(number: int) -> list[int]:
    """In rising order."""
    return [d for d in range(1, number + 1) if number % d == 0]


def factorisations(number: int, parts: int) -> list[tuple[int, ...]]:
    """Every way to write a number as a product of so many factors, in order."""
    if parts == 1:
        return [(number,)]
    return [(d, *rest) for d in divisors(number) for rest in factorisations(number // d, parts - 1)]
