"""`vlm rehearse`."""

import argparse
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_jax.commands.common import add_command, add_experiment, experiment_of, listed_overrides, table_console
from vlm_jax.errors import UserError

_DESCRIPTION = """Compiles every stage's own programs with the real TPU compiler for a slice that is not there, and
predicts memory, communication, step time and MFU. No TPU is needed, only CPU and memory, and the extra tpu-rehearsal.
If a stage does not fit, it names the largest tensors and exits with 2.

  vlm rehearse experiments/mu.py --topology v5e:2x2
  vlm rehearse experiments/pod_8b.py --topology v5p:4x4x4 --stage pretrain --json rehearsal.json
  vlm rehearse experiments/pod_8b.py --topology v5e:8x16 --slices 2 --model.decoder.remat save_qkv
  vlm rehearse experiments/pod_8b.py --topology v6e:16x16 --stage pretrain --search --budget-compiles 12"""


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_command(
        subparsers, "rehearse", "Compile for TPUs that are not there, and predict.", _DESCRIPTION, True
    )
    add_experiment(parser, nargs="?")
    parser.add_argument("--topology", metavar="TPU:SHAPE", help="the slice: v4:4x4x4, v5e:16x16, v5p:8x8x8, v6e:16x16")
    parser.add_argument(
        "--slices", type=int, default=1, metavar="N", help="so many such slices over the data-centre network"
    )
    parser.add_argument("--stage", metavar="NAME", help="only this stage")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    parser.add_argument(
        "--details", action="store_true", help="also list the largest tensors and the slowest operations"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="end the compiler before it generates code: much faster; the code's size is missing in the peak, and a "
        "kernel that needs too much fast memory stays unfound",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="try meshes, recomputation and accumulation; recommend the fastest",
    )
    parser.add_argument(
        "--budget-compiles", type=int, default=12, metavar="N", help="--search compiles at most so many"
    )
    parser.add_argument(
        "--budget-minutes", type=float, default=60.0, metavar="M", help="--search begins no compilation after this"
    )
    parser.add_argument(
        "--calibrate", action="store_true", help="rehearse the published runs that calibrated figures rest on, and stop"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Rehearses and prints; UserError if a stage does not fit."""
    _refuse_what_would_be_ignored(arguments)
    _check_json(arguments.json)
    if arguments.calibrate:
        return _calibrate(arguments)
    if not arguments.experiment:
        raise UserError("EXPERIMENT is missing; name a file that defines experiment(), such as experiments/mu.py")
    if listed_overrides(arguments):
        return None
    if not arguments.topology:
        raise UserError("--topology is missing; name a slice, such as --topology v5p:4x4x4")

    from vlm_jax.rehearsal.report import does_not_fit, remarks, stage_lines, terminal_table, to_json
    from vlm_jax.rehearsal.stage import rehearse_stage
    from vlm_jax.rehearsal.topology import parse_topology, use_absent_tpus

    topology = parse_topology(arguments.topology, arguments.slices)
    use_absent_tpus()
    experiment = experiment_of(arguments)
    chosen = _stages(experiment, arguments.stage)
    if arguments.search:
        return _search(arguments, experiment, topology, chosen)
    with _watching() as watch:
        stages = [rehearse_stage(experiment, index, topology, quick=arguments.quick, watch=watch) for index in chosen]
    console = table_console()
    console.print(terminal_table(experiment.name, topology, stages))
    for stage in stages:
        if arguments.details or not stage.fits:
            for line in stage_lines(stage):
                console.print(line, soft_wrap=True, markup=False)
    for line in remarks(stages):
        console.print(line, soft_wrap=True)
    if arguments.json:
        _write(arguments.json, to_json(experiment.name, topology, stages))
    for stage in stages:
        if not stage.fits or (stage.host is not None and not stage.host.fits):
            raise UserError(does_not_fit(stage))
    return None


def _check_json(file: str | None) -> None:
    """Before anything is compiled."""
    if file is None:
        return
    if Path(file).is_dir():
        raise UserError(f"--json {file} is a directory; name a file")
    if not os.access(Path(file).absolute().parent, os.W_OK):
        raise UserError(f"--json {file}: its directory is not there, or cannot be written; name another one")


def _refuse_what_would_be_ignored(arguments: argparse.Namespace) -> None:
    if arguments.search and arguments.details:
        raise UserError("--details shows one layout, --search tries many; leave one out (--json has all figures)")
    if not arguments.calibrate:
        return
    given = {
        "EXPERIMENT": arguments.experiment,
        "--topology": arguments.topology,
        "--slices": arguments.slices != 1,
        "--search": arguments.search,
        "--details": arguments.details,
        "an override": arguments.overrides or arguments.list_overrides,
    }
    if ignored := [name for name, value in given.items() if value]:
        raise UserError(f"--calibrate rehearses published runs as they were; leave {', '.join(ignored)} out")


def _stages(experiment: Any, name: str | None) -> list[int]:
    names = [stage.name for stage in experiment.stages]
    if name is None:
        return list(range(len(names)))
    if name not in names:
        raise UserError(f"--stage: {experiment.name} has no stage '{name}'; it has {', '.join(names)}")
    return [names.index(name)]


def _search(arguments: argparse.Namespace, experiment: Any, topology: Any, chosen: list[int]) -> None:
    from vlm_jax.rehearsal.search import Budget, candidate_table, common_layout, recommendation, search_stage, to_json

    found = {}
    console = table_console()
    budget = Budget(arguments.budget_compiles, arguments.budget_minutes)
    for index in chosen:
        with _watching() as watch:
            tried = search_stage(experiment, index, topology, budget, watch=watch)
        name = experiment.stages[index].name
        found[name] = tried
        console.print(candidate_table(name, topology, tried))
        console.print(recommendation(tried), soft_wrap=True, markup=False)
    if line := common_layout(experiment, found):
        console.print(line, soft_wrap=True, markup=False)
    if arguments.json:
        _write(arguments.json, to_json(experiment.name, topology, found))
    if not any(candidate.fits for tried in found.values() for candidate in tried.compiled):
        raise UserError(f"nothing that was tried fits {topology.name}; raise --budget-compiles, or take more chips")


def _calibrate(arguments: argparse.Namespace) -> None:
    from vlm_jax.rehearsal.calibration import RUNS, calibration_json, calibration_lines, rehearse_run
    from vlm_jax.rehearsal.topology import use_absent_tpus

    use_absent_tpus()
    names = list(RUNS) if not arguments.stage else [arguments.stage]
    if unknown := [name for name in names if name not in RUNS]:
        raise UserError(f"--calibrate: there is no published run '{unknown[0]}'; there are {', '.join(RUNS)}")
    reports = {}
    for name in names:
        with _watching() as watch:
            reports[name] = rehearse_run(RUNS[name], watch=watch)
        for line in calibration_lines(RUNS[name], reports[name]):
            print(line)
    if arguments.json:
        _write(arguments.json, {name: calibration_json(RUNS[name], report) for name, report in reports.items()})


@contextlib.contextmanager
def _watching() -> Iterator[Any]:
    """Shows on stderr what is being done and for how long; lines where that is no terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:

        @contextlib.contextmanager
        def watch(what: str) -> Iterator[None]:
            if not console.is_terminal:
                console.print(what, markup=False)
            task = progress.add_task(what, total=None)
            try:
                yield
            finally:
                progress.remove_task(task)

        yield watch


def _write(file: str, content: dict[str, Any]) -> None:
    Path(file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
