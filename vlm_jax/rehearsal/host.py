"""What a run asks of each host: memory, and bytes of pictures and tokens a second."""

import dataclasses
import math
from typing import Any

import jax
from jaxtyping import PyTree

from vlm_jax.batch import Batch
from vlm_jax.config import Stage
from vlm_jax.parallel import host_bytes
from vlm_jax.rehearsal.topology import Topology

PROCESS_BYTES = 3 * 2**30
"""Of Python, jax, the TPU's library and the loader's threads, before there is any array."""

BATCHES_HELD = 4
"""Batches on a host at once: two prepared ahead (`make_loader`), one being put together, one on its way out."""


@dataclasses.dataclass(frozen=True)
class HostNeeds:
    """What one virtual machine holds and reads. Sizes are bytes."""

    memory: int
    """That it has."""
    cpus: int
    process: int
    state: int
    """Its share of parameters and optimiser state, which passes through it when a step is restored or saved."""
    largest_tensor: int
    """Of one layer, in float32, as it is read from somebody else's file: whole, and twice while it is converted."""
    batches: int
    """Decoded batches that wait."""
    pictures_kept: int
    """`DataConfig.keep_pictures`."""
    offloaded: int
    """State that the programs keep on the host."""
    picture_bytes: int
    """Decoded pictures a step."""
    token_bytes: int
    """Everything else of a batch, a step."""
    pictures: int
    """Image slots a step."""

    @property
    def needed(self) -> int:
        """At the worst moment: saving, or loading, while batches wait."""
        passing = max(self.state, 2 * self.largest_tensor)
        return self.process + passing + self.batches + self.pictures_kept + self.offloaded

    @property
    def fits(self) -> bool:
        """Whether the machine has so much."""
        return self.needed <= self.memory


def host_needs(topology: Topology, stage: Stage, state: PyTree, batch: Batch, offloaded: int) -> HostNeeds:
    """The needs of one host, from abstract arrays with their shardings.

    Args:
        topology: gives the machine.
        stage: gives what its loader keeps.
        state: of training.
        batch: the global one, as the loader gives it.
        offloaded: bytes on the host for each chip, as the compiler says.
    """
    images = [] if batch.images is None else [batch.images]
    planes = jax.tree.leaves(dataclasses.replace(batch, images=None))
    chips = _first_hosts_chips(batch)
    pictures, tokens = host_bytes(images, chips), host_bytes(planes, chips)
    stacked = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    return HostNeeds(
        memory=topology.chip.host_memory,
        cpus=topology.chip.host_cpus,
        process=PROCESS_BYTES,
        state=host_bytes(state, chips),
        largest_tensor=4 * max(_one_layer(leaf) for leaf in stacked),
        batches=BATCHES_HELD * (pictures + tokens),
        pictures_kept=stage.data.keep_pictures * 2**20,
        offloaded=offloaded * topology.chips_of_a_host,
        picture_bytes=pictures,
        token_bytes=tokens,
        pictures=sum(pictures // math.prod(slots.shape[2:]) for slots in images),
    )


def _one_layer(leaf: Any) -> int:
    """Elements of the largest tensor that a file holds of it: those of 3 axes and more are stacked over layers."""
    return math.prod(leaf.shape[1:] if leaf.ndim > 2 else leaf.shape)


def _first_hosts_chips(batch: Batch) -> list[Any]:
    tokens: Any = batch.tokens
    devices = list(tokens.sharding.mesh.devices.flat)
    hosts = [(getattr(device, "slice_index", 0), device.process_index) for device in devices]
    return [device for device, host in zip(devices, hosts, strict=True) if host == hosts[0]]
