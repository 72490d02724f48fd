"""A small VLM from scratch, in two languages, in minutes on two cores: captions first, then questions.

The data are easy-VQA (pictures of one coloured shape, with questions) and its Russian twin by a fixed grammar table.
Colour is learned in one epoch and shape late, so the picture side gets its lesson from short captions that name both,
at many pictures a second; the questions then teach what is asked, and the encoder moves at a tenth of the rate, which
keeps what it has learned.
"""

import dataclasses

from data_pipelines.images import Augmentation
from data_pipelines.kinds import Captions, Instruct
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.sources import EasyVQA
from data_pipelines.template import TemplateConfig
from data_pipelines.tokenizers import SentencePieceConfig
from vlm_jax.config import Checkpoints, Evaluation, EvaluationTask, Experiment, Stage, Validation
from vlm_jax.models.adapters import MLPAdapterConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vit import ConvStem, ViTConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.optim import OptimizerConfig, Rule, Schedule

VOCABULARY = 640
WIDTH = 128

# Triangles always point up in this data set, so pictures are mirrored and shifted, never turned.
AUGMENTATION = Augmentation(flip=True, shift=4)


def model() -> VLMConfig:
    """0.7M parameters; a picture becomes 16 features and 4 visual tokens."""
    return VLMConfig(
        encoder=ViTConfig(
            image_size=(64, 64),
            stem=ConvStem(channels=(16, 32, 64, 128), strides=(2, 2, 2, 2)),
            width=WIDTH,
            layers=1,
            heads=4,
            mlp_width=256,
            mean=(0.9, 0.9, 0.9),  # the backgrounds are light: this is about the pictures' own mean and spread
            std=(0.2, 0.2, 0.2),
        ),
        adapter=MLPAdapterConfig(layers=2, pixel_shuffle=2),
        decoder=DecoderConfig(
            vocabulary_size=VOCABULARY,
            width=WIDTH,
            layers=2,
            heads=4,
            key_value_heads=2,
            head_size=32,
            mlp_width=320,
            embedding_scale=WIDTH**0.5,
        ),
    )


def optimizer(warmup: int, encoder_rate: float) -> OptimizerConfig:
    """Muon for the matrices, Adam for the rest, at one learning rate."""
    return OptimizerConfig(
        name="muon",
        arguments={"consistent_rms": 0.2, "adam_b2": 0.98},
        schedule=Schedule(peak=4e-3, warmup=warmup, shape="cosine", final=0.02),
        table=(
            Rule("^encoder/.*kernel$", rate=encoder_rate, weight_decay=0.02),
            Rule("^encoder/", rate=encoder_rate),
            Rule("kernel$", weight_decay=0.02),
            Rule(".*"),
        ),
    )


def questions(split: str, language: str) -> EasyVQA:
    """Questions in one language."""
    suffix = "" if split == "train" else f"_{split}"
    return EasyVQA(split, (language,), name=f"easy_vqa_{language}{suffix}")


def experiment() -> Experiment:
    """Captions, then questions; tested on all official test questions in both languages."""
    # One phrasing a language: which of several comes is chance, and the noise of that choice can drown the shape.
    described = EasyVQA(languages=("en", "ru"), pictures="described", phrasings=1, name="easy_vqa_captions")
    held_out = dataclasses.replace(described, split="validation", name="easy_vqa_captions_validation")
    captions = Captions()
    return Experiment(
        name="quickstart",
        model=model(),
        tokenizer=SentencePieceConfig(VOCABULARY, model_type="bpe"),
        template=TemplateConfig(bidirectional_images=True),
        stages=(
            Stage(
                "captions",
                DataConfig(
                    (MixtureEntry(described, captions, augmentation=AUGMENTATION),),
                    rows=8,
                    length=168,
                    images=6,
                    virtual_shards=4,
                    window=256,
                ),
                steps=480,
                optimizer=optimizer(warmup=20, encoder_rate=1.0),
                validation=Validation((MixtureEntry(held_out, captions),), every=120, batches=8),
            ),
            Stage(
                "instruct",
                DataConfig(
                    tuple(
                        MixtureEntry(questions("train", language), Instruct(), augmentation=AUGMENTATION)
                        for language in ("en", "ru")
                    ),
                    rows=12,
                    length=256,
                    images=3,
                    virtual_shards=4,
                    window=256,
                ),
                steps=640,
                optimizer=optimizer(warmup=30, encoder_rate=0.1),
                validation=Validation(
                    tuple(MixtureEntry(questions("validation", language), Instruct()) for language in ("en", "ru")),
                    every=160,
                    batches=8,
                ),
            ),
        ),
        evaluation=Evaluation(
            tuple(
                EvaluationTask(f"easy_vqa_{language}", questions("test", language), max_new_tokens=8)
                for language in ("en", "ru")
            )
        ),
        checkpoints=Checkpoints(every=200),
    )
