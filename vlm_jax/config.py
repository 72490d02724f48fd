"""Experiment and Stage: frozen dataclasses that compose what the packages below define. One Python file each."""

import dataclasses
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from data_pipelines.emits import Emits, emits
from data_pipelines.images import ImagePreprocessing
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.sources import SourceConfig
from data_pipelines.template import Template, TemplateConfig
from data_pipelines.tokenizers import SentencePieceConfig
from vlm_jax.errors import UserError
from vlm_jax.models.attention import resolve_kernel
from vlm_jax.models.encoders import slots_together
from vlm_jax.models.sight import Kernel
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.optim import OptimizerConfig
from vlm_jax.parallel import MeshConfig


@dataclasses.dataclass(frozen=True)
class NextToken:
    """Objective: cross-entropy of the next token, Σ w·ce / Σ w over the global batch."""

    chunk: int = 0
    """Positions of a row whose logits exist at the same time; 0 = all (for small vocabularies)."""


@dataclasses.dataclass(frozen=True)
class Validation:
    """Loss and answer-token accuracy on data that are not trained on, while a stage runs."""

    mixture: tuple[MixtureEntry, ...]
    """Drawn in a fixed order, without augmentation of its own unless an entry says so."""
    every: int = 100
    """Steps between two validations; the last step has one in any case."""
    batches: int = 4
    """Batches a validation; always the same ones."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.batches < 1:
            raise UserError("validation: every and batches must be at least 1")


OWN_STARTS = {"previous", "scratch"}
"""Values of `Stage.start_from` that are not a model REF."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stretch of training: its data, objective, length, what trains at which rate, and where it starts from."""

    name: str
    """Names its checkpoints and its curves."""
    data: DataConfig
    """Mixture, rows a batch, positions a row, image budget."""
    steps: int
    """Optimiser steps."""
    optimizer: OptimizerConfig = OptimizerConfig()
    objective: NextToken = NextToken()
    accumulation: int = 1
    """Parts that a batch is cut into; their gradients are added before one optimiser step."""
    validation: Validation | None = None
    start_from: str = "previous"
    """previous: the stage before (random parameters for the first); scratch: random parameters; else a model REF."""
    offload_optimizer: bool = False
    """Moments of the optimiser lie in the host's memory and come to the device while it updates: less HBM, a slower
    step, the same numbers (docs/speed.md)."""
    cache_features: bool = False
    """Encode every picture of the mixture and of the validation once and keep the features on disk. The encoder must be
    frozen and no entry augmented; it changes no bit of what is trained."""

    def __post_init__(self) -> None:
        if self.cache_features:
            self._check_cache()
        if self.steps < 1:
            raise UserError(f"stage {self.name}: steps is {self.steps}; give at least 1")
        if self.accumulation < 1 or self.data.rows % self.accumulation:
            raise UserError(
                f"stage {self.name}: {self.data.rows} rows do not divide into {self.accumulation} accumulation parts; "
                "change data.rows or accumulation"
            )

    def _check_cache(self) -> None:
        mixture = (*self.data.mixture, *(self.validation.mixture if self.validation else ()))
        for entry in mixture:
            if entry.augmentation is not None:
                raise UserError(
                    f"stage {self.name}: features of '{entry.title}' cannot be cached, since its pictures are "
                    "augmented; leave out its augmentation, or cache_features"
                )
        if not self.data.images:
            raise UserError(
                f"stage {self.name}: features of '{mixture[0].title}' cannot be cached, since its rows hold no "
                "pictures; raise data.images, or leave cache_features off"
            )


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """Where stages with `cache_features` keep features, and how much of the disk these may take."""

    directory: str = ""
    """Local directory; '' = WORKDIR/features. Runs that share one share what is in it."""
    gigabytes: float = 20.0
    """Largest size of the features of one encoder: patches x width x bytes of the compute dtype a picture."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """When a run is saved and what is kept."""

    every: int = 200
    """Steps between two saves; the end of a stage and SIGTERM save in any case."""
    keep_last: int = 2
    """The newest so many of each stage are kept."""
    keep_every: int = 0
    """Steps that are a multiple of this are kept for good; 0 = none."""
    retry_seconds: float = 600.0
    """How long a save, or a line of a log, that a full disk or an unreachable bucket refused is tried again."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep_last < 1 or self.keep_every < 0 or self.retry_seconds < 0:
            raise UserError(
                "checkpoints: every and keep-last must be at least 1, keep-every and retry-seconds at least 0"
            )


@dataclasses.dataclass(frozen=True)
class LossPolicy:
    """What is done about a step whose loss, gradient or update is not finite, and about a spike of the loss.

    stop: the run ends with an error, and nothing spoilt is saved. skip: the step leaves parameters and optimiser state
    as they were. roll_back: the newest checkpoint is restored, and the steps after it are done again but for the one at
    fault, which passes without a change. A skipped step counts as done, so later ones have the batches they would have.
    """

    nonfinite: Literal["stop", "skip", "roll_back"] = "stop"
    spike: Literal["ignore", "stop", "skip", "roll_back"] = "ignore"
    spike_factor: float = 6.0
    """A spike is a loss above mean + so many standard deviations of the steps before it, spikes left out."""
    spike_steps: int = 100
    """How many steps mean and deviation look back on; there is no spike before so many."""
    most_in_a_row: int = 5
    """Skipped steps in a row that are let pass; one more ends the run."""
    most: int = 50
    """The same in all, for each stage."""

    def __post_init__(self) -> None:
        if self.spike_factor <= 0 or self.spike_steps < 2 or self.most_in_a_row < 1 or self.most < 1:
            raise UserError(
                "loss-policy: spike-factor must be above 0, spike-steps at least 2, most-in-a-row and most at least 1"
            )

    @property
    def skips(self) -> bool:
        """Whether the step itself may leave parameters as they were."""
        return "skip" in (self.nonfinite, self.spike)

    @property
    def rolls_back(self) -> bool:
        """Whether a checkpoint may be restored in the middle of a run."""
        return "roll_back" in (self.nonfinite, self.spike)


@dataclasses.dataclass(frozen=True)
class EvaluationTask:
    """A set of questions with true answers, and how an answer is scored."""

    name: str
    source: SourceConfig
    metric: Literal["exact_match", "contains"] = "exact_match"
    max_new_tokens: int = 16
    ask: Literal["questions", "captions"] = "questions"
    """questions: those of the source; captions: a request for a caption, with the source's captions as true answers."""
    limit: int = 0
    """Ask so many of them, a fixed choice by the evaluation's seed; 0 = all."""
    likelihood: bool = False
    """Also measure how likely the model finds the true answers."""
    baseline: str = ""
    """A model REF that is asked the same: its answers stand beside the model's, as the control "before"."""

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise UserError(f"task {self.name}: limit is {self.limit}; give 0 for all, or a number")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `vlm eval` runs."""

    tasks: tuple[EvaluationTask, ...] = ()
    rows: int = 256
    """Prompts that are answered together."""
    controls: bool = True
    """Also measure the same model with wrong pictures, and the majority answer."""
    seed: int = 0
    """Chooses the wrong pictures."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """Pre-trained parts, by model REF, from which the first stage starts; what is not named is drawn at random.

    A part's own config must be the experiment's, but for the vocabulary, which may grow. Once the first stage has saved
    a step, they are not read again.
    """

    encoder: str = ""
    decoder: str = ""
    tokenizer: str = ""
    """A model whose tokenizer and chat template are taken; '' = the decoder's, and if there is none one is trained."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that determines a run, but for the software and the number of devices."""

    name: str
    model: VLMConfig
    stages: tuple[Stage, ...]
    parts: Parts = Parts()
    tokenizer: SentencePieceConfig = SentencePieceConfig()
    """To be trained, unless the tokenizer comes with a part."""
    template: Template = TemplateConfig()
    """Control tokens give way to the chat template that comes with a part's tokenizer."""
    images: ImagePreprocessing = ImagePreprocessing()
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    loss_policy: LossPolicy = LossPolicy()
    feature_cache: FeatureCache = FeatureCache()
    mesh: MeshConfig = MeshConfig()
    seed: int = 0
    notes: str = ""
    """What a reader of the report should know; shown at its head."""
    log_every: int = 20
    """Steps between two lines of metrics.jsonl."""
    bad_record_limit: float = 0.01
    """Share of unusable records above which the run stops."""
    watchdog_seconds: float = 900.0
    """Longest time for drawing a batch, a step, or what follows it; then all stacks are dumped and the run ends; 0 = no
    limit. A stage's first step, which compiles, saves and validations may take four times as long. The longest lawful
    wait elsewhere is for log_every steps: 20 of half a minute are 600 s."""

    def __post_init__(self) -> None:
        if self.log_every < 1:
            raise UserError(f"log-every is {self.log_every}; give at least 1")
        if self.watchdog_seconds < 0:
            raise UserError(f"watchdog-seconds is {self.watchdog_seconds:g}; give a time, or 0 for no limit")
        for stage in self.stages:
            if stage.offload_optimizer and self.loss_policy.skips:
                raise UserError(
                    f"stage {stage.name}: offload-optimizer cannot go with a loss-policy that skips; set that "
                    "to stop or roll_back, or leave offload-optimizer off"
                )
        names = [stage.name for stage in self.stages]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if not names or doubled:
            raise UserError(
                f"experiment {self.name}: " + (f"stages share the name {doubled[0]}" if doubled else "no stages")
            )
        tokens, vocabulary = self.tokenizer.vocabulary_size, self.model.decoder.vocabulary_size
        inherited = self.parts.tokenizer or self.parts.decoder or {s.start_from for s in self.stages} - OWN_STARTS
        if tokens > vocabulary and not inherited:
            raise UserError(
                f"experiment {self.name}: the tokenizer has {tokens} tokens, the decoder embeds {vocabulary}; "
                "raise model.decoder.vocabulary-size"
            )
        if self.parts.encoder and self.model.encoder is None:
            raise UserError(f"experiment {self.name}: parts.encoder is named, but the model has no encoder")
        together = 1 if self.model.encoder is None else slots_together(self.model.encoder)
        for stage in self.stages:
            if stage.data.images % together:
                raise UserError(
                    f"stage {stage.name}: data.images is {stage.data.images}, but the encoder takes {together} image "
                    f"slots of a picture together; make it a multiple of {together}"
                )
            if self.model.decoder.attention_kernel == "splash":
                self.kernel(stage, "tpu")

    def kernel(self, stage: Stage, platform: str, template: Template | None = None) -> Kernel:
        """The attention kernel that a stage runs on "tpu", "gpu" or "cpu".

        Args:
            stage: one of the experiment's.
            platform: of the devices.
            template: the one in use, where a part's tokenizer has brought another than the experiment's.

        Raises:
            UserError: if the decoder's attention_kernel cannot do what the stage's rows need, or not there.
        """
        decoder, data, found = self.model.decoder, [stage.data], Emits()
        if stage.validation is not None:
            data.append(dataclasses.replace(stage.data, mixture=stage.validation.mixture, kinds=()))
        for part in data:
            more = emits(part, template or self.template)
            found = Emits(found.branches or more.branches, found.blocks or more.blocks)
        sizes: Any = {"length": stage.data.length, "head_size": decoder.head_size, "softcap": decoder.attention_softcap}
        compute = self.model.precision.compute
        try:
            return resolve_kernel(decoder.attention_kernel, platform, found, compute=compute, **sizes)
        except UserError as error:
            raise UserError(f"stage {stage.name}: {error}") from None

    def offloads(self) -> bool:
        """Whether some step keeps something in the host's memory: moments, or what blocks keep for backward."""
        blocks = any(policy.startswith("offload_") for policy in _policies(self.model))
        return blocks or any(stage.offload_optimizer for stage in self.stages)

    def total_steps(self) -> int:
        """Steps of all stages together."""
        return sum(stage.steps for stage in self.stages)


def _policies(config: Any) -> Iterator[str]:
    """Every rematerialisation policy in a config and in those that it holds."""
    for field in dataclasses.fields(config) if dataclasses.is_dataclass(config) else ():
        value = getattr(config, field.name)
        yield from [value] if field.name == "remat" else _policies(value)


def load_experiment(path: str) -> Experiment:
    """Runs an experiment file and returns what its `experiment()` gives.

    Raises:
        UserError: if the file is missing, cannot be run, or has no such function.
    """
    made = call_in_file(path, "experiment", "Experiment")
    if not isinstance(made, Experiment):
        raise UserError(f"{path}: experiment() gave {type(made).__name__}; return a vlm_jax.config.Experiment")
    return made


def call_in_file(path: str, name: str, gives: str, **arguments: Any) -> Any:
    """Runs a Python file and calls one of its functions.

    Args:
        path: of the file.
        name: of the function.
        gives: the type that it should give, for messages.
        arguments: for the function; those that are None are left out.

    Raises:
        UserError: if the file is missing or cannot be run, has no such function, or that does not take the arguments.
    """
    file = Path(path)
    if file.suffix != ".py" or not file.is_file():
        raise UserError(f"{path}: there is no such {name} file; give a Python file that defines {name}()")
    spec = importlib.util.spec_from_file_location(f"{name}_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    given = {key: value for key, value in arguments.items() if value is not None}
    try:
        spec.loader.exec_module(module)
        make = getattr(module, name, None)
        strange = [key for key in given if make is not None and key not in inspect.signature(make).parameters]
        made = None if make is None or strange else make(**given)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: cannot be run ({type(error).__name__}: {error}); correct the file") from None
    if make is None:
        raise UserError(f"{path}: it defines no {name}(); add a function {name}() -> {gives}")
    if strange:
        raise UserError(f"{path}: its {name}() takes no {strange[0]}; leave --{strange[0]} out")
    return made
