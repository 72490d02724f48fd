"""The smallest study that has everything: a decoder trained first, two arms, two seeds, held-out text, costs."""

import dataclasses

from data_pipelines.kinds import Captions, Instruct
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.sources import EasyVQA, ShapeTexts
from data_pipelines.tokenizers import SentencePieceConfig
from vlm_jax.ablation.study import Arm, CostOptions, Study, Texts
from vlm_jax.config import Checkpoints, Evaluation, EvaluationTask, Experiment, Stage
from vlm_jax.models.adapters import AveragePoolingConfig, MLPAdapterConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vit import PatchStem, ViTConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.optim import OptimizerConfig, Rule, Schedule

VOCABULARY = 304
DECODER = DecoderConfig(VOCABULARY, width=16, layers=2, heads=2, key_value_heads=2, head_size=8, mlp_width=32)
ENCODER = ViTConfig((32, 32), PatchStem(8), width=16, layers=1, heads=2, mlp_width=32)


def pictures(split, limit):
    return EasyVQA(split, validation_images=40, pictures="described", phrasings=1, limit=limit, name=f"shapes_{split}")


def texts(split):
    return (MixtureEntry(ShapeTexts(split, name=f"texts_{split}"), Instruct(questions=1)),)


def decoder():
    return Experiment(
        "tiny_text",
        VLMConfig(DECODER),
        tokenizer=SentencePieceConfig(VOCABULARY),
        stages=(
            Stage(
                "text",
                DataConfig(texts("train"), rows=4, length=64, images=0),
                steps=4,
                optimizer=OptimizerConfig(schedule=Schedule(peak=3e-3)),
            ),
        ),
    )


def arm(adapter):
    model = VLMConfig(DECODER, ENCODER, adapter)
    return Experiment(
        "tiny_arm",
        model,
        tokenizer=SentencePieceConfig(VOCABULARY),
        stages=(
            Stage(
                "align",
                DataConfig(
                    (MixtureEntry(pictures("train", 12), Captions()), *texts("train")),
                    rows=4,
                    length=64 + model.prompt_tokens,
                    images=1,
                    examples=1,
                    window=1,
                    virtual_shards=2,
                ),
                steps=4,
                optimizer=OptimizerConfig(
                    schedule=Schedule(peak=3e-3), table=(Rule("^encoder/", rate=0.0), Rule(".*"))
                ),
                cache_features=True,
            ),
        ),
        evaluation=Evaluation((EvaluationTask("vqa", pictures("validation", 4), max_new_tokens=2, limit=8),), rows=8),
        checkpoints=Checkpoints(every=2),
        log_every=2,
    )


def study(size="tiny"):
    return Study(
        name=f"study {size}",
        arms=(
            Arm("linear", arm(MLPAdapterConfig(layers=1, pixel_shuffle=2))),
            Arm("pooled", arm(AveragePoolingConfig(1, 1, MLPAdapterConfig(layers=1))), "one token a picture"),
        ),
        seeds=2,
        decoder=decoder(),
        budget=4,
        texts=Texts(texts("validation"), rows=2, length=64, batches=1),
        costs=CostOptions(steps=2, prompts=2, new_tokens=3),
        notes="Made for tests.",
    )


def experiment():
    return dataclasses.replace(study().arms[0].experiment, name="tiny_study")
