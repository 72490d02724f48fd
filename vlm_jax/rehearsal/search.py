"""Which mesh, recomputation and accumulation are fastest at a given global batch: guess, compile, compare."""

import dataclasses
import itertools
import time
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from rich.table import Table

from vlm_jax.config import Experiment
from vlm_jax.errors import UserError
from vlm_jax.models.rematerialisation import RematPolicy
from vlm_jax.parallel import MeshConfig, build_layout
from vlm_jax.rehearsal.estimate import Estimate, divisors, estimate, factorisations
from vlm_jax.rehearsal.report import stage_json, versions
from vlm_jax.rehearsal.stage import StageReport, Watch, layout_on, no_watch, rehearse_stage
from vlm_jax.rehearsal.topology import Topology, absent_devices
from vlm_jax.training.divisibility import check_layout
from vlm_jax.training.program import build_program

LEAST_HEADROOM = 0.05
"""Share of a chip's memory that a recommended layout leaves free."""

_MOST_TENSOR, _MOST_SEQUENCE = 16, 16
_TOLERANCE = 1.3
"""Layouts are not compiled if their estimated memory is so much more than a chip has; the estimate is rough."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """When a search ends."""

    compiles: int = 12
    minutes: float = 60.0

    def __post_init__(self) -> None:
        if self.compiles < 1 or self.minutes <= 0:
            raise UserError("search: --budget-compiles must be at least 1 and --budget-minutes more than 0")


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a search varies."""

    mesh: Mapping[str, int]
    remat: str
    accumulation: int

    def applied(self, experiment: Experiment, index: int) -> Experiment:
        """The experiment with it."""
        varied: dict[str, Any] = {"remat": self.remat}
        sizes: dict[str, Any] = dict(self.mesh)
        decoder = dataclasses.replace(experiment.model.decoder, **varied)
        stages = list(experiment.stages)
        stages[index] = dataclasses.replace(stages[index], accumulation=self.accumulation)
        return dataclasses.replace(
            experiment,
            model=dataclasses.replace(experiment.model, decoder=decoder),
            stages=tuple(stages),
            mesh=dataclasses.replace(experiment.mesh, **sizes),
        )

    def overrides(self, index: int) -> str:
        """As arguments of `vlm train`."""
        axes = " ".join(f"--mesh.{axis} {size}" for axis, size in self.mesh.items())
        return f"{axes} --model.decoder.remat {self.remat} --stages.{index}.accumulation {self.accumulation}"

    def __str__(self) -> str:
        axes = " x ".join(f"{axis} {size}" for axis, size in self.mesh.items() if size > 1) or "1 chip"
        return f"{axes}, remat {self.remat}, accumulation {self.accumulation}"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A choice that was compiled."""

    choice: Choice
    expected: Estimate
    report: StageReport | None
    """None if it was refused."""
    refused: str = ""
    """Why."""

    @property
    def fits(self) -> bool:
        """With the headroom that a recommendation asks for."""
        return self.report is not None and self.report.fits and self.report.headroom >= LEAST_HEADROOM


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search came to."""

    index: int
    """Of the stage."""
    considered: int
    """Choices that divide evenly."""
    compiled: tuple[Candidate, ...]
    """Fastest first; those that do not fit last."""

    @property
    def best(self) -> Candidate | None:
        """The fastest that fits with headroom."""
        return next((candidate for candidate in self.compiled if candidate.fits), None)


def search_stage(
    experiment: Experiment,
    index: int,
    topology: Topology,
    budget: Budget,
    *,
    watch: Watch = no_watch,
) -> Found:
    """Compiles the most promising choices within a budget, at the stage's global batch and length.

    Args:
        experiment: what would be trained; its own mesh, recomputation and accumulation do not matter.
        index: of the stage.
        topology: where.
        budget: of compilations and minutes.
        watch: shows what is being done.

    Raises:
        UserError: if no choice divides evenly.
    """
    begun = time.monotonic()
    with watch("estimating"):
        ranked = rank(experiment, index, topology)
    if not ranked:
        stage = experiment.stages[index]
        raise UserError(
            f"search: {stage.data.rows} rows of {stage.data.length} divide over no mesh of {topology.chips} chips that "
            "is estimated to fit; change data.rows, or take other chips"
        )
    tried: list[Candidate] = []
    while len(tried) < budget.compiles and time.monotonic() - begun < 60 * budget.minutes:
        following = next_choice(ranked, tried, explore=len(tried) < (budget.compiles + 1) // 2)
        if following is None:
            break
        if not _divides(following[0].applied(experiment, index), topology):
            ranked = [one for one in ranked if one[0].mesh != following[0].mesh]
            continue
        with watch(f"{len(tried) + 1} of at most {budget.compiles}: {following[0]}"):
            tried.append(_compiled(experiment, index, topology, *following))
    return Found(index, len(ranked), tuple(sorted(tried, key=_order)))


def _divides(experiment: Experiment, topology: Topology) -> bool:
    """Whether every parameter and batch divides over the mesh, which a rule of thumb does not ask."""
    try:
        check_layout(experiment, layout_on(experiment, topology))
    except UserError:
        return False
    return True


def next_choice(
    ranked: Sequence[tuple[Choice, Estimate]], tried: Sequence[Candidate], explore: bool
) -> tuple[Choice, Estimate] | None:
    """What to compile next: while exploring, the best choice of a mesh that is new; then others of the best mesh.

    A choice is left out if one of the same mesh did not fit that was expected to need no more memory.

    Args:
        ranked: choices, the one expected to be fastest first.
        tried: so far.
        explore: whether meshes are still being explored.
    """
    done = {str(candidate.choice) for candidate in tried}
    too_large = {
        str(candidate.choice.mesh): candidate.expected.memory
        for candidate in sorted(tried, key=lambda candidate: -candidate.expected.memory)
        if candidate.report is not None and not candidate.fits
    }
    left = [
        (choice, expected)
        for choice, expected in ranked
        if str(choice) not in done and expected.memory < too_large.get(str(choice.mesh), float("inf"))
    ]
    meshes = {str(candidate.choice.mesh) for candidate in tried}
    new = [one for one in left if str(one[0].mesh) not in meshes]
    best = min(tried, key=_order, default=None)
    alike = [one for one in left if best is not None and best.fits and one[0].mesh == best.choice.mesh]
    for some in (new, alike, left) if explore else (alike, left):
        if some:
            return some[0]
    return None


def _order(candidate: Candidate) -> tuple[bool, float, float]:
    """Fastest first; what does not fit comes last."""
    seconds = candidate.report.scheduled if candidate.report else 0.0
    return not candidate.fits, seconds, candidate.expected.seconds


def _compiled(experiment: Experiment, index: int, topology: Topology, choice: Choice, expected: Estimate) -> Candidate:
    try:
        report = rehearse_stage(choice.applied(experiment, index), index, topology, quick=True)
    except UserError as error:
        return Candidate(choice, expected, None, str(error))
    return Candidate(choice, expected, report)


def rank(experiment: Experiment, index: int, topology: Topology) -> list[tuple[Choice, Estimate]]:
    """Choices that divide evenly and may fit, the one expected to be fastest first."""
    params, trained = _sizes(experiment, index, topology)
    ranked = []
    for choice in choices(experiment, index, topology):
        changed = choice.applied(experiment, index)
        try:
            expected = estimate(changed, changed.stages[index], topology, params, trained)
        except UserError:
            continue  # the devices cannot be laid out so
        if expected.memory < _TOLERANCE * topology.chip.hbm_bytes:
            ranked.append((choice, expected))
    return sorted(ranked, key=lambda one: one[1].seconds)


def choices(experiment: Experiment, index: int, topology: Topology) -> Iterator[Choice]:
    """Every choice whose numbers divide: rows, positions, heads, and the slices of the axis across them."""
    stage, decoder = experiment.stages[index], experiment.model.decoder
    policies = typing.get_args(RematPolicy)
    for sizes in factorisations(topology.chips, 4):
        mesh = dict(zip(("data", "fsdp", "sequence", "tensor"), sizes, strict=True))
        if mesh["tensor"] > _MOST_TENSOR or mesh["sequence"] > _MOST_SEQUENCE:
            continue
        if decoder.key_value_heads % mesh["tensor"] or stage.data.length % mesh["sequence"]:
            continue
        if mesh[experiment.mesh.across_slices] % topology.slices:
            continue
        shares = mesh["data"] * mesh["fsdp"]
        if stage.data.rows % shares:
            continue
        for accumulation, remat in itertools.product(divisors(stage.data.rows // shares), policies):
            yield Choice(mesh, remat, accumulation)


def _sizes(experiment: Experiment, index: int, topology: Topology) -> tuple[int, int]:
    """(parameters, of which trained)."""
    layout = build_layout(MeshConfig(data=1, fsdp=-1), absent_devices(topology)[:1])
    state = build_program(experiment, index, layout).abstract_state()
    trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state.trained, state.frozen))
    return trained + frozen, trained


def candidate_table(name: str, topology: Topology, found: Found) -> Table:
    """One row a choice."""
    title = f"stage {name} on {topology.name}: {len(found.compiled)} of {found.considered} choices compiled"
    table = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
    for column in ("mesh, remat, accumulation", "step", "MFU", "calibrated", "exposed", "headroom", "expected"):
        table.add_column(column, justify="left" if column.startswith("mesh") else "right")
    for candidate in found.compiled:
        table.add_row(str(candidate.choice), *_cells(candidate), f"{candidate.expected.seconds:.3g} s")
    return table


def _cells(candidate: Candidate) -> Sequence[str]:
    report = candidate.report
    if report is None:
        return candidate.refused[:60], "", "", "", ""
    if not report.programs:
        return "does not fit", "", "", "", f"{report.headroom:.0%}"
    return (
        f"{report.scheduled:.3g} s",
        f"{report.mfu(report.scheduled):.1%}",
        f"{report.mfu(report.calibrated):.1%}",
        f"{report.exposed_communication:.1%}",
        f"{report.headroom:.1%}",
    )


def recommendation(found: Found) -> str:
    """The fastest that fits, as arguments to copy."""
    best = found.best
    if best is None:
        return f"Nothing that was compiled fits with {LEAST_HEADROOM:.0%} headroom."
    return f"Fastest that fits with {LEAST_HEADROOM:.0%} headroom (predicted): {best.choice.overrides(found.index)}"


def common_layout(experiment: Experiment, found: Mapping[str, Found]) -> str:
    """What to make of recommendations for several stages, which share the experiment's mesh and recomputation."""
    if len(found) < 2:
        return ""
    hours = {
        name: experiment.stages[one.index].steps * one.best.report.calibrated / 3600
        for name, one in found.items()
        if one.best is not None and one.best.report is not None
    }
    said = "Mesh and remat are the experiment's, the same in all stages; only accumulation is a stage's own."
    if not hours:
        return said
    longest = max(hours, key=lambda name: hours[name])
    return (
        f"{said} Take those of {longest}, which lasts longest ({hours[longest]:,.1f} h, calibrated), and rehearse the "
        "other stages with them."
    )


def to_json(experiment: str, topology: Topology, found: Mapping[str, Found]) -> dict[str, Any]:
    """All that was compiled, by stage."""
    return {
        "experiment": experiment,
        "topology": topology.name,
        "versions": versions(),
        "search": {
            name: {
                "considered": one.considered,
                "recommended": one.best.choice.overrides(one.index) if one.best else None,
                "candidates": [
                    {
                        **dataclasses.asdict(candidate.choice),
                        "expected": dataclasses.asdict(candidate.expected),
                        "refused": candidate.refused,
                        "report": stage_json(candidate.report) if candidate.report else None,
                    }
                    for candidate in one.compiled
                ],
            }
            for name, one in found.items()
        },
    }
