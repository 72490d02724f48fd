"""An 8B VLM on a pod slice: does it fit, how fast will it be, and what holds it up?

SigLIP SO400M/14 at 384 pixels, an MLP, and a decoder of YandexGPT-5-Lite-8B's shape (Llama's architecture with a
vocabulary of 129,024), on packed rows of 4,096 positions with up to 4 pictures, 256 rows a batch. Three stages: the
adapter learns to speak to a frozen LLM; everything learns from mixed data; SFT with text kept in the mixture and the
encoder frozen again. Rehearse it before it costs anything:

    vlm rehearse experiments/pod_8b.py --topology v5p:4x4x4
    vlm rehearse experiments/pod_8b.py --topology v6e:16x16 --mesh.fsdp 128
    vlm rehearse experiments/pod_8b.py --topology v5e:16x16 --model.decoder.remat save_qkv

These are the fastest that were found for the full-training stage. SigLIP's width of 1,152 divides among 64 or 128
devices, not among 256: hence data parallelism for the rest. PARTS and DATA are to be filled in: directories in Hugging
Face's format, and prepared ArrayRecord sets as `make data` makes them, in a bucket that every host can read.
"""

import dataclasses

from data_pipelines.images import ImagePreprocessing
from data_pipelines.kinds import Captions, Instruct, Interleaved, KindConfig, TextOnly
from data_pipelines.mixture import DataConfig, KindShare, MixtureEntry
from data_pipelines.sources import ArrayRecords
from data_pipelines.template import TemplateConfig
from vlm_jax.config import Checkpoints, Experiment, Parts, Stage
from vlm_jax.models.adapters import MLPAdapterConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.layers import Precision
from vlm_jax.models.presets import llama3_8b
from vlm_jax.models.vit import PatchStem, ViTConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.optim import OptimizerConfig, Rule, Schedule
from vlm_jax.parallel import MeshConfig

DATA = "gs://BUCKET/prepared"
PARTS = Parts(encoder="gs://BUCKET/siglip-so400m-patch14-384", decoder="gs://BUCKET/YandexGPT-5-Lite-8B-pretrain")

CAPTIONS = ("captions/en", "captions/ru")
INTERLEAVED = ("interleaved/en", "interleaved/ru")
INSTRUCT = ("instruct/en", "instruct/ru")
TEXT = ("text/en", "text/ru")


def siglip_so400m() -> ViTConfig:
    """SigLIP SO400M/14 at 384 pixels (Zhai et al. 2023; sizes of google/siglip-so400m-patch14-384's config.json).

    14 does not divide 384: the rest at the right and at the bottom is cut off, which leaves 27 x 27 patches.
    """
    return ViTConfig(
        (384, 384), PatchStem(14, truncate=True), width=1152, layers=27, heads=16, mlp_width=4304, remat="full"
    )


def decoder_8b() -> DecoderConfig:
    """Llama 3's 8B with YandexGPT-5-Lite-8B's vocabulary and context.

    A checkpoint whose config says otherwise is refused when it is loaded, with the fields that differ.
    """
    return dataclasses.replace(llama3_8b(vocabulary_size=129_024), context=32_768, remat="save_products")


def entries(sets: tuple[str, ...], kind: KindConfig) -> tuple[MixtureEntry, ...]:
    """Prepared sets that one kind reads."""
    return tuple(MixtureEntry(ArrayRecords(f"{DATA}/{name}/train", name=name), kind) for name in sets)


def rows(mixture: tuple[MixtureEntry, ...], kinds: tuple[KindShare, ...] = ()) -> DataConfig:
    """256 rows of 4,096 positions; no example branches, so that the attention kernel needs no mask in memory."""
    return DataConfig(
        mixture, rows=256, length=4096, images=4, examples=64, virtual_shards=256, kinds=kinds, temperature=2.0
    )


def stage(
    name: str, data: DataConfig, steps: int, peak: float, frozen: tuple[Rule, ...], encoder_rate: float = 0.1
) -> Stage:
    """AdamW. Logits exist for whole rows: in chunks, the unembedding's weights would be gathered for each."""
    table = (*frozen, Rule("^encoder/", rate=encoder_rate), Rule("kernel$", weight_decay=0.1), Rule(".*"))
    schedule = Schedule(peak=peak, warmup=steps // 50, final=0.1)
    return Stage(
        name,
        data,
        steps=steps,
        optimizer=OptimizerConfig(arguments={"b2": 0.95}, schedule=schedule, table=table),
    )


def experiment() -> Experiment:
    """Adapter alone, everything, SFT."""
    one = Instruct(questions=1)
    return Experiment(
        name="pod_8b",
        model=VLMConfig(
            encoder=siglip_so400m(),
            adapter=MLPAdapterConfig(layers=2),
            decoder=decoder_8b(),
            precision=Precision(compute="bfloat16"),
        ),
        parts=PARTS,
        template=TemplateConfig(),
        images=ImagePreprocessing("pad"),
        stages=(
            stage(
                "align",
                rows(entries(CAPTIONS, Captions(captions=1))),
                steps=2_000,
                peak=1e-3,
                frozen=(Rule("^(encoder|decoder)/", rate=0.0),),
            ),
            stage(
                "pretrain",
                rows(
                    (
                        *entries(INTERLEAVED, Interleaved()),
                        *entries(CAPTIONS, Captions(captions=1)),
                        *entries(INSTRUCT, one),
                        *entries(TEXT, TextOnly()),
                    ),
                    (KindShare("interleaved", 0.4), KindShare("captions", 0.3), KindShare("instruct", 0.1)),
                ),
                steps=20_000,
                peak=5e-5,
                frozen=(),
            ),
            stage(
                "sft",
                rows((*entries(INSTRUCT, one), *entries(TEXT, TextOnly())), (KindShare("instruct", 0.8),)),
                steps=2_000,
                peak=2e-5,
                frozen=(Rule("^encoder/", rate=0.0),),
            ),
        ),
        mesh=MeshConfig(fsdp=64),
        checkpoints=Checkpoints(every=500, keep_every=5_000),
    )
