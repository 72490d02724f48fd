"""A study: arms that differ in one thing, the seeds that each is trained with, and what is measured besides."""

import dataclasses
import re
from collections.abc import Sequence

from data_pipelines.mixture import MixtureEntry
from vlm_jax.config import Experiment, call_in_file
from vlm_jax.errors import UserError
from vlm_jax.overrides import apply_overrides

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TAKEN = ("decoder", "features")
"""Names of directories beside those of the arms."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the things that are compared."""

    name: str
    """Names its directory and its line of the table."""
    experiment: Experiment
    """What is trained; its seed is the study's business."""
    note: str = ""
    """What a reader should know of it, such as in what it cannot be matched."""


@dataclasses.dataclass(frozen=True)
class Texts:
    """Held-out text without pictures: what training does to the loss on it, against the LLM that it began with."""

    mixture: tuple[MixtureEntry, ...]
    """Each entry is measured by itself."""
    rows: int = 16
    length: int = 256
    """Positions a row."""
    batches: int = 4
    """At most so many of each entry; always the same ones, and none twice."""


@dataclasses.dataclass(frozen=True)
class CostOptions:
    """How costs are measured: all arms in one process, on the same shapes as in training."""

    steps: int = 9
    """Timed optimiser steps an arm, after one that is not counted; the median is reported."""
    in_turn: bool = True
    """A step of each arm in turn, so that what else the machine does meets all alike; all arms' states are then in
    memory at the same time. False = one arm after the other."""
    prompts: int = 8
    """Answers that are decoded together, each to a question about a picture."""
    new_tokens: int = 33
    """Tokens of each answer; how fast those after the first come is reported."""


@dataclasses.dataclass(frozen=True)
class Study:
    """What `vlm ablate` runs.

    Raises:
        UserError: if a name is taken or unusable, or there is nothing to compare.
    """

    name: str
    arms: tuple[Arm, ...]
    """The first is the one that the others are compared with."""
    seeds: int = 3
    """Seeds 0, 1, … of each arm. One seed gives all arms the same data in the same order, and the same towers."""
    decoder: Experiment | None = None
    """A text LLM that is trained first, once, and that all arms start from; None = what each arm's `parts` name."""
    quality: str = ""
    """The evaluation task whose score the study is about; '' = the first one."""
    budget: int = 0
    """Context tokens a picture at which arms are matched; one that spends another number is marked. 0 = no such budget.
    """
    texts: Texts | None = None
    costs: CostOptions = CostOptions()
    notes: str = ""
    """What a reader of the report should know."""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if not names:
            raise UserError(f"study {self.name}: it has no arms; give at least one, better two")
        bad = [name for name in names if not _NAME.fullmatch(name) or name in TAKEN or names.count(name) > 1]
        if bad:
            raise UserError(
                f"study {self.name}: an arm is called {bad[0]!r}; give each a name of its own, of letters, digits and "
                f"._-, other than {' and '.join(TAKEN)}"
            )
        if self.seeds < 1:
            raise UserError(f"study {self.name}: seeds is {self.seeds}; give at least 1, better 3")
        for arm in self.arms:
            tasks = [task.name for task in arm.experiment.evaluation.tasks]
            if not tasks or (self.quality and self.quality not in tasks):
                raise UserError(
                    f"study {self.name}: arm {arm.name} has no evaluation task {self.quality}".rstrip()
                    + "; add it to its experiment's evaluation"
                )
        if self.decoder is not None and self.decoder.model.encoder is not None:
            raise UserError(
                f"study {self.name}: decoder is to be a text LLM, but its model has an encoder; leave it out"
            )

    @property
    def task(self) -> str:
        """The task that the study is about."""
        return self.quality or self.arms[0].experiment.evaluation.tasks[0].name

    def only(self, names: Sequence[str]) -> "Study":
        """The study with these of its arms, in its own order.

        Raises:
            UserError: if it has no such arm.
        """
        there = [arm.name for arm in self.arms]
        missing = [name for name in names if name not in there]
        if missing:
            raise UserError(f"--only {','.join(names)}: there is no arm {missing[0]}; its arms are {', '.join(there)}")
        return dataclasses.replace(self, arms=tuple(arm for arm in self.arms if arm.name in names))


def load_study(path: str, size: str | None = None) -> Study:
    """Runs a study file and returns what its `study()`, or `study(size)`, gives.

    Raises:
        UserError: if the file is missing, cannot be run, has no such function, or that knows no such size.
    """
    made = call_in_file(path, "study", "Study", size=size)
    if not isinstance(made, Study):
        raise UserError(f"{path}: study() gave {type(made).__name__}; return a vlm_jax.ablation.study.Study")
    return made


def with_overrides(study: Study, overrides: Sequence[str], seeds: int | None = None) -> Study:
    """The study with a field of every arm's experiment changed (`overrides.apply_overrides`), or other seeds.

    Raises:
        UserError: if an arm has no such field, or the value does not suit it.
    """
    arms = tuple(dataclasses.replace(arm, experiment=apply_overrides(arm.experiment, overrides)) for arm in study.arms)
    return dataclasses.replace(study, arms=arms, seeds=study.seeds if seeds is None else seeds)
