"""The smallest run that has every part: seconds a stage. For trying things out and for the tests."""

from data_pipelines.images import Augmentation
from data_pipelines.kinds import Captions, Instruct
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.sources import EasyVQA
from data_pipelines.tokenizers import SentencePieceConfig
from vlm_jax.config import Checkpoints, Evaluation, EvaluationTask, Experiment, Stage, Validation
from vlm_jax.models.presets import vlm_mu
from vlm_jax.optim import OptimizerConfig, Schedule


def experiment() -> Experiment:
    """Two short stages on easy-VQA in English and Russian."""
    pictures = EasyVQA(languages=("en", "ru"), pictures="described")
    held_out = EasyVQA("validation", ("en", "ru"), name="easy_vqa_validation")
    augmentation = Augmentation(flip=True, turn=True, shift=2, noise=2.0)
    optimizer = OptimizerConfig(schedule=Schedule(peak=3e-3, warmup=5))
    return Experiment(
        name="mu",
        model=vlm_mu(vocabulary_size=384),
        tokenizer=SentencePieceConfig(vocabulary_size=384),
        stages=(
            Stage(
                "captions",
                DataConfig(
                    (MixtureEntry(pictures, Captions(captions=2), augmentation=augmentation),),
                    rows=4,
                    length=128,
                    images=2,
                    virtual_shards=4,
                ),
                steps=20,
                optimizer=optimizer,
            ),
            Stage(
                "instruct",
                DataConfig(
                    (MixtureEntry(EasyVQA(languages=("en", "ru")), Instruct(questions=8), augmentation=augmentation),),
                    rows=4,
                    length=256,
                    images=2,
                    virtual_shards=4,
                ),
                steps=20,
                optimizer=optimizer,
                validation=Validation((MixtureEntry(held_out, Instruct(questions=8)),), every=10, batches=1),
            ),
        ),
        evaluation=Evaluation(
            (
                EvaluationTask("easy_vqa_en", EasyVQA("validation", ("en",), validation_images=20)),
                EvaluationTask("easy_vqa_ru", EasyVQA("validation", ("ru",), validation_images=20)),
            ),
            rows=64,
        ),
        checkpoints=Checkpoints(every=10),
        log_every=5,
    )
