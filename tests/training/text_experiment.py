"""The quickest run that has text to learn and two rows, for tests that start several processes and stop them."""

from data_pipelines.kinds import Instruct
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.sources import ShapeTexts
from data_pipelines.tokenizers import SentencePieceConfig
from vlm_jax.config import Checkpoints, Experiment, Stage
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.optim import OptimizerConfig, Schedule

VOCABULARY = 320


def experiment() -> Experiment:
    """Two stages, of which the first is long enough to be hit by signals."""
    data = DataConfig((MixtureEntry(ShapeTexts(), Instruct(questions=1)),), 4, 64, images=0, virtual_shards=2)
    optimizer = OptimizerConfig(schedule=Schedule(peak=3e-3, shape="constant"))
    return Experiment(
        name="text",
        model=VLMConfig(
            decoder=DecoderConfig(VOCABULARY, width=16, layers=1, heads=2, key_value_heads=2, head_size=8, mlp_width=32)
        ),
        tokenizer=SentencePieceConfig(vocabulary_size=VOCABULARY),
        stages=(
            Stage("first", data, steps=200, optimizer=optimizer),
            Stage("second", data, steps=10, optimizer=optimizer),
        ),
        checkpoints=Checkpoints(every=100),
        log_every=10,
    )
