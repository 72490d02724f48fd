"""One short stage for runs of several processes: pictures, a frozen encoder, two sources, validation."""

import dataclasses
from pathlib import Path

from vlm_jax.config import Checkpoints, Experiment, load_experiment

TINY = Path(__file__).parents[1] / "training" / "tiny_experiment.py"


def experiment() -> Experiment:
    """Six steps, saved after every second."""
    tiny = load_experiment(str(TINY))
    captions, instruct = tiny.stages
    mixture = (*instruct.data.mixture, dataclasses.replace(captions.data.mixture[1], weight=0.5))
    data = dataclasses.replace(instruct.data, mixture=mixture)
    stage = dataclasses.replace(instruct, data=data, steps=6)
    return dataclasses.replace(tiny, stages=(stage,), checkpoints=Checkpoints(every=2, keep_last=3), log_every=1)
