"""The smallest run that still has two stages, pictures, validation and more than one source: for whole-system tests."""

from data_pipelines.images import Augmentation
from data_pipelines.kinds import Captions, Instruct
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.sources import EasyVQA
from data_pipelines.tokenizers import SentencePieceConfig
from vlm_jax.config import Checkpoints, Experiment, Stage, Validation
from vlm_jax.models.adapters.mlp import MLPAdapterConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vit import PatchStem, ViTConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.optim import OptimizerConfig, Rule, Schedule

VOCABULARY = 336


def experiment() -> Experiment:
    """Six steps of captions, then twelve of questions with the encoder frozen."""
    english = EasyVQA("validation", ("en",), validation_images=40, pictures="described", name="english")
    russian = EasyVQA("validation", ("ru",), validation_images=40, pictures="described", name="russian")
    optimizer = OptimizerConfig(schedule=Schedule(peak=3e-3, warmup=2))
    return Experiment(
        name="tiny",
        model=VLMConfig(
            decoder=DecoderConfig(
                VOCABULARY, width=16, layers=2, heads=2, key_value_heads=2, head_size=8, mlp_width=32
            ),
            encoder=ViTConfig((32, 32), PatchStem(16), width=16, layers=1, heads=2, mlp_width=32),
            adapter=MLPAdapterConfig(layers=1),
        ),
        tokenizer=SentencePieceConfig(vocabulary_size=VOCABULARY),
        stages=(
            Stage(
                "captions",
                DataConfig(
                    (
                        MixtureEntry(english, Captions(captions=1), augmentation=Augmentation(flip=True, noise=2.0)),
                        MixtureEntry(russian, Captions(captions=1)),
                    ),
                    rows=8,
                    length=96,
                    images=2,
                    virtual_shards=4,
                ),
                steps=6,
                optimizer=optimizer,
            ),
            Stage(
                "instruct",
                DataConfig(
                    (MixtureEntry(english, Instruct(questions=3)),), rows=8, length=192, images=2, virtual_shards=4
                ),
                steps=12,
                optimizer=OptimizerConfig(
                    schedule=Schedule(peak=3e-3), table=(Rule("encoder/", rate=0.0), Rule(".*", weight_decay=0.01))
                ),
                validation=Validation((MixtureEntry(russian, Instruct(questions=3)),), every=4, batches=1),
            ),
        ),
        checkpoints=Checkpoints(every=2, keep_last=3),
        log_every=3,
    )
