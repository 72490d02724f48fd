"""A text-only model that compiles in seconds, as an experiment file."""

from pathlib import Path

import pytest

from vlm_jax.rehearsal.calibration_table import calibration_of
from vlm_jax.rehearsal.stage import StageReport
from vlm_jax.rehearsal.topology import parse_topology

TINY = """
from data_pipelines.kinds import TextOnly
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.sources import JSONLines
from data_pipelines.tokenizers import SentencePieceConfig
from vlm_jax.config import Experiment, Stage
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.parallel import MeshConfig


def experiment():
    decoder = DecoderConfig(
        vocabulary_size=256, width=128, layers=2, heads=2, key_value_heads=2, head_size=64, mlp_width=256
    )
    data = DataConfig((MixtureEntry(JSONLines("nothing.jsonl"), TextOnly()),), rows=8, length=128, images=0)
    return Experiment(
        "tiny",
        VLMConfig(decoder=decoder),
        (Stage("text", data, steps=2),),
        tokenizer=SentencePieceConfig(vocabulary_size=256),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
"""


@pytest.fixture(scope="session")
def too_large() -> StageReport:
    """Of a stage that needs twice what a v5e has."""
    topology = parse_topology("v5e:2x2")
    return StageReport(
        name="text",
        topology=topology,
        mesh={"data": 1, "fsdp": 4},
        params=1,
        trained_params=1,
        tokens=1,
        model_flops=1.0,
        compile_seconds=0.0,
        argument_bytes=1,
        peak_bytes=2 * topology.chip.hbm_bytes,
        fits=False,
        tensors=(),
        calibration=calibration_of(topology.chip),
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The experiment file."""
    file: Path = tmp_path_factory.mktemp("experiments") / "tiny.py"
    file.write_text(TINY)
    return str(file)
