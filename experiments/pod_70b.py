"""A 70B decoder on a large slice: the 8B experiment with Llama 3's 70B sizes.

vlm rehearse experiments/pod_70b.py --topology v5p:8x8x8
"""

import dataclasses
from pathlib import Path

from vlm_jax.config import Experiment, Parts, load_experiment
from vlm_jax.models.presets import llama3_70b
from vlm_jax.parallel import MeshConfig

PARTS = Parts(encoder="gs://BUCKET/siglip-so400m-patch14-384", decoder="gs://BUCKET/Llama-3.1-70B")


def experiment() -> Experiment:
    """All three stages, at 1,024 rows a batch: two on each chip."""
    small = load_experiment(str(Path(__file__).with_name("pod_8b.py")))
    stages = tuple(
        dataclasses.replace(stage, data=dataclasses.replace(stage.data, rows=1024, virtual_shards=512))
        for stage in small.stages
    )
    decoder = dataclasses.replace(llama3_70b(), context=131_072)
    return dataclasses.replace(
        small,
        name="pod_70b",
        model=dataclasses.replace(small.model, decoder=decoder),
        parts=PARTS,
        stages=stages,
        mesh=MeshConfig(fsdp=128),
    )
