"""What rehearsal predicts of the pod experiments, beside what they shall reach.

    python benchmarks/rehearsal.py [pods] [flops] [large] [scaling] [--whole] [--jobs 2] [--json FILE]

pods: every stage of experiments/pod_8b.py on three slices. flops: compiled against model FLOPs with and without
rematerialisation, and what it saves to train the adapter alone. large: experiments/pod_70b.py on 512 chips. scaling:
the full-training stage of the 8B model with the same work for each of 16 to 2,048 chips. Everything is compiled by the
TPU compiler for slices that are not there (the extra tpu-rehearsal); a program takes some 15 seconds, with --whole some
minutes.
"""

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import math
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vlm_jax.config import Experiment, load_experiment
from vlm_jax.overrides import apply_overrides
from vlm_jax.rehearsal.report import stage_json
from vlm_jax.rehearsal.stage import rehearse_stage
from vlm_jax.rehearsal.topology import parse_topology, use_absent_tpus

ROOT = Path(__file__).resolve().parents[1]

TUNED: Mapping[str, str] = {"v6e:16x16": "--mesh.fsdp 128", "v5e:16x16": "--model.decoder.remat save_qkv"}
"""For each slice what differs from experiments/pod_8b.py."""

SCALING = ("2x2x4", "4x4x4", "4x8x8", "8x8x16", "8x16x16")
"""v5p slices of 16 to 2,048 chips."""

LEAST_HEADROOM, MOST_EXPOSED, MOST_GROWTH = 0.05, 0.10, 0.10
LEAST_MFU = {"v5p:4x4x4": 0.60, "v6e:16x16": 0.45}
"""Calibrated, of full training."""
MOST_FLOPS = {"none": 1.05, "full": 1.38}
"""Compiled over the model's, by rematerialisation."""
MOST_ALONE = {"none": 0.70, "full": 0.78}
"""Compiled to train the adapter alone, over those to train everything."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A stage on a slice."""

    part: str
    experiment: str
    stage: str
    topology: str
    overrides: str = ""
    """Of the experiment, as for `vlm rehearse`."""
    rows: int = 0
    """Of the global batch; 0 = the experiment's."""

    def made(self) -> Experiment:
        """The experiment as this case has it."""
        made = load_experiment(str(ROOT / "experiments" / f"{self.experiment}.py"))
        made = apply_overrides(made, self.overrides.split())
        if not self.rows:
            return made
        stages = tuple(
            dataclasses.replace(s, data=dataclasses.replace(s.data, rows=self.rows, virtual_shards=self.rows))
            for s in made.stages
        )
        return dataclasses.replace(made, stages=stages)


@dataclasses.dataclass(frozen=True)
class Aim:
    """A figure, and what it shall be."""

    what: str
    reached: float
    least: float = -math.inf
    most: float = math.inf

    @property
    def met(self) -> bool:
        """Whether it is so."""
        return self.least <= self.reached <= self.most

    def __str__(self) -> str:
        bound = f">= {self.least:g}" if self.most == math.inf else f"<= {self.most:g}"
        return f"{self.what} {self.reached:.3f} {bound}: {'met' if self.met else 'MISSED'}"


def cases(parts: Sequence[str]) -> Iterator[Case]:
    """What is to be compiled."""
    if "pods" in parts:
        for topology in ("v5p:4x4x4", "v6e:16x16", "v5e:16x16"):
            for stage in ("pretrain", "align", "sft"):
                yield Case("pods", "pod_8b", stage, topology, TUNED.get(topology, ""))
    if "flops" in parts:
        for remat in ("none", "full"):
            for stage in ("pretrain", "align"):
                yield Case("flops", "pod_8b", stage, "v5p:4x4x4", f"--model.decoder.remat {remat}", rows=64)
    if "large" in parts:
        for stage in ("pretrain", "align", "sft"):
            yield Case("large", "pod_70b", stage, "v5p:8x8x8")
    if "scaling" in parts:
        for shape in SCALING:
            chips = math.prod(map(int, shape.split("x")))
            overrides = f"--mesh.fsdp {chips}" if chips < 64 else ""
            yield Case("scaling", "pod_8b", "pretrain", f"v5p:{shape}", overrides, rows=4 * chips)


def rehearse(case: Case, quick: bool) -> dict[str, Any]:
    """The figures of a case; in a process of its own."""
    use_absent_tpus()
    experiment = case.made()
    index = [stage.name for stage in experiment.stages].index(case.stage)
    report = rehearse_stage(experiment, index, parse_topology(case.topology), quick=quick)
    return {**dataclasses.asdict(case), "remat": experiment.model.decoder.remat, **stage_json(report)}


def run(chosen: Sequence[Case], jobs: int, quick: bool) -> list[dict[str, Any]]:
    """All cases, some at the same time; a line for each that is done."""
    began, found = time.monotonic(), {}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        futures = {pool.submit(rehearse, case, quick): case for case in chosen}
        for future in concurrent.futures.as_completed(futures):
            case, figures = futures[future], future.result()
            found[case] = figures
            said = f"{len(found)} of {len(chosen)} after {time.monotonic() - began:.0f} s"
            print(f"{said}: {case.part} {case.stage} {case.topology} {figures['remat']}: {brief(figures)}", flush=True)
    return [found[case] for case in chosen]


def brief(figures: Mapping[str, Any]) -> str:
    """A line of a case."""
    if not figures["fits"]:
        return f"does not fit ({figures['peak_bytes_per_chip'] / 2**30:.1f} GiB)"
    return (
        f"step {figures['step_seconds_scheduled']:.3f} s, exposed {figures['exposed_communication']:.1%}, calibrated "
        f"MFU {figures['mfu_calibrated']:.1%}, headroom {headroom(figures):.1%}"
    )


def headroom(figures: Mapping[str, Any]) -> float:
    """Share of a chip's memory that is left."""
    return 1 - figures["peak_bytes_per_chip"] / figures["hbm_bytes_per_chip"]


def aims_of(x: Mapping[str, Any]) -> list[Aim]:
    """What a case shall reach."""
    found = [Aim("headroom", headroom(x), least=LEAST_HEADROOM)]
    if x["compiled_flops"] is None:
        return found
    if x["part"] == "pods" and x["stage"] == "pretrain" and x["topology"] in LEAST_MFU:
        found.append(Aim("exposed", x["exposed_communication"], most=MOST_EXPOSED))
        found.append(Aim("MFU", x["mfu_calibrated"], least=LEAST_MFU[x["topology"]]))
    if x["remat"] in MOST_FLOPS:
        found.append(Aim("compiled", x["compiled_flops"] / x["model_flops"], most=MOST_FLOPS[x["remat"]]))
    return found


def show_steps(console: Console, results: Sequence[Mapping[str, Any]]) -> None:
    """Memory, time and utilisation."""
    table = Table("part", "stage", "slice", "remat", "left", "compiled", "step", "exposed", "MFU", "aims")
    table.caption = "left: of memory; compiled: over model FLOPs; MFU: calibrated"
    for x in results:
        left = f"{headroom(x):.1%}" if x["fits"] else "does not fit"
        figures = [""] * 4
        if x["compiled_flops"] is not None:
            figures = [
                f"{x['compiled_flops'] / x['model_flops']:.3f}",
                f"{x['step_seconds_scheduled']:.3f} s",
                f"{x['exposed_communication']:.1%}",
                f"{x['mfu_calibrated']:.1%}",
            ]
        aims = "\n".join(map(str, aims_of(x)))
        table.add_row(x["part"], x["stage"], x["topology"], x["remat"], left, *figures, aims)
    console.print(table)


def adapter_alone(results: Sequence[Mapping[str, Any]]) -> list[Aim]:
    """Compiled FLOPs of training the adapter alone, over those of training everything."""
    flops = {(x["remat"], x["stage"]): x["compiled_flops"] for x in results if x["part"] == "flops"}
    return [
        Aim(f"adapter alone, remat {remat}", flops[remat, "align"] / flops[remat, "pretrain"], most=most)
        for remat, most in MOST_ALONE.items()
        if flops.get((remat, "align")) and flops.get((remat, "pretrain"))
    ]


def collectives(x: Mapping[str, Any]) -> dict[str, float]:
    """{kind and axes: seconds alone on their wires}."""
    seconds: dict[str, float] = {}
    for line in x["collectives"]:
        name = f"{line['kind']} {line['axes']}"
        seconds[name] = seconds.get(name, 0.0) + line["seconds"]
    return seconds


def show_scaling(console: Console, results: Sequence[Mapping[str, Any]]) -> list[Aim]:
    """Step time over chips, and which collectives make the largest slice's longer; the aim of its growth."""
    table = Table("chips", "step", "of the first", "of the fastest", "exposed", "most seconds of collectives, alone")
    fitting = [x for x in results if x["step_seconds_scheduled"]]
    if len(fitting) < 2:
        return []
    first, fastest, largest = fitting[0], min(fitting, key=lambda x: x["step_seconds_scheduled"]), fitting[-1]
    for x in fitting:
        step = x["step_seconds_scheduled"]
        most = sorted(collectives(x).items(), key=lambda item: -item[1])[:3]
        table.add_row(
            str(x["chips"]),
            f"{step:.3f} s",
            f"{step / first['step_seconds_scheduled']:.3f}",
            f"{step / fastest['step_seconds_scheduled']:.3f}",
            f"{x['exposed_communication']:.1%}",
            ", ".join(f"{name} {value:.3f}" for name, value in most),
        )
    console.print(table)
    for other in (first, fastest) if fastest is not largest else (first,):
        before, after = collectives(other), collectives(largest)
        grown = {name: after.get(name, 0.0) - before.get(name, 0.0) for name in before | after}
        most = sorted(grown.items(), key=lambda item: -item[1])[:4]
        told = ", ".join(f"{name} {seconds:+.4f} s" for name, seconds in most)
        print(f"{largest['chips']} chips against {other['chips']}: {told}")
    growth = largest["step_seconds_scheduled"] / fastest["step_seconds_scheduled"] - 1
    return [Aim(f"growth from {fastest['chips']} to {largest['chips']} chips", growth, most=MOST_GROWTH)]


def said(aim: Aim) -> dict[str, Any]:
    """For programs."""
    least, most = (None if math.isinf(bound) else bound for bound in (aim.least, aim.most))
    return {"what": aim.what, "reached": aim.reached, "least": least, "most": most, "met": aim.met}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ("pods", "flops", "large", "scaling")
    parser.add_argument("parts", nargs="*", help=f"which of {', '.join(known)} (all)")
    parser.add_argument("--jobs", type=int, default=2, help="compilations at a time (2)")
    parser.add_argument(
        "--whole", action="store_true", help="let the compiler write its code, too: minutes; adds the code to the peak"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    if strange := set(arguments.parts) - set(known):
        parser.error(f"there is no part {strange.pop()}; there are {', '.join(known)}")
    results = run(list(cases(arguments.parts or known)), arguments.jobs, not arguments.whole)
    console = Console(width=160)
    show_steps(console, results)
    overall = adapter_alone(results)
    if scaling := [x for x in results if x["part"] == "scaling"]:
        overall += show_scaling(console, scaling)
    for aim in overall:
        print(aim)
    aims = [*itertools.chain.from_iterable(map(aims_of, results)), *overall]
    print(f"{sum(aim.met for aim in aims)} of {len(aims)} aims met")
    if arguments.json:
        told = [{**x, "aims": [said(aim) for aim in aims_of(x)]} for x in results]
        arguments.json.write_text(json.dumps({"cases": told, "aims": [said(aim) for aim in overall]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
