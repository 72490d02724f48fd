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
from vlm_jax.rehearsal.report import stage_json
from vlm_jax.rehearsal.stage import rehearse_stage
from vlm_jax.rehearsal.topology import parse_topology, use_absent_tpus

ROOT = Path(__file__).resolve().parents[1]

TUNED: Mapping[str, tuple[str, int]] = {
    "v5p:4x4x4": ("save_products", 64),
    "v6e:16x16": ("save_products", 128),
    "v5e:16x16": ("save_qkv", 64),
    "v5p:8x8x8": ("full", 128),
}
"""For each slice the decoder's rematerialisation, and how many devices share parameters."""

SCALING = ("2x2x4", "4x4x4", "4x8x8", "8x8x16", "8x16x16")
"""v5p slices of 16 to 2,048 chips."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A stage on a slice."""

    part: str
    experiment: str
    stage: str
    topology: str
    remat: str
    rows: int = 0
    """Of the global batch; 0 = the experiment's."""
    fsdp: int = 0
    """Devices that share parameters; 0 = the experiment's."""

    def made(self) -> Experiment:
        """The experiment as this case has it."""
        made = load_experiment(str(ROOT / "experiments" / f"{self.experiment}.py"))
        decoder = dataclasses.replace(made.model.decoder, remat=self.remat)  # type: ignore[arg-type]
        made = dataclasses.replace(made, model=dataclasses.replace(made.model, decoder=decoder))
        if self.fsdp:
            made = dataclasses.replace(made, mesh=dataclasses.replace(made.mesh, fsdp=self.fsdp))
        if not self.rows:
            return made
        stages = tuple(
            dataclasses.replace(s, data=dataclasses.replace(s.data, rows=self.rows, virtual_shards=self.rows))
            for s in made.stages
        )
        return dataclasses.replace(made, stages=stages)


def cases(parts: Sequence[str]) -> Iterator[Case]:
    """What is to be compiled."""
    if "pods" in parts:
        for topology in ("v5p:4x4x4", "v6e:16x16", "v5e:16x16"):
            for stage in ("pretrain", "align", "sft"):
                remat, fsdp = TUNED[topology]
                yield Case("pods", "pod_8b", stage, topology, remat, fsdp=fsdp)
    if "flops" in parts:
        for remat in ("none", "full"):
            for stage in ("pretrain", "align"):
                yield Case("flops", "pod_8b", stage, "v5p:4x4x4", remat, rows=64)
    if "large" in parts:
        remat, fsdp = TUNED["v5p:8x8x8"]
        for stage in ("pretrain", "align", "sft"):
            yield Case("large", "pod_70b", stage, "v5p:8x8x8", remat, fsdp=fsdp)
    if "scaling" in parts:
        for shape in SCALING:
            chips = math.prod(map(int, shape.split("x")))
            remat, fsdp = TUNED["v5p:4x4x4"]
            yield Case("scaling", "pod_8b", "pretrain", f"v5p:{shape}", remat, 4 * chips, min(chips, fsdp))


def rehearse(case: Case, quick: bool) -> dict[str, Any]:
    """The figures of a case; in a process of its own."""
    use_absent_tpus()
    experiment = case.made()
    index = [stage.name for stage in experiment.stages].index(case.stage)
    report = rehearse_stage(experiment, index, parse_topology(case.topology), quick=quick)
    return {**dataclasses.asdict(case), **stage_json(report)}


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
            print(f"{said}: {case.part} {case.stage} {case.topology} {case.remat}: {brief(figures)}", flush=True)
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


def show_steps(console: Console, results: Sequence[Mapping[str, Any]]) -> None:
    """Memory, time and utilisation."""
    table = Table(
        "part", "stage", "slice", "remat", "headroom", "compiled / model", "step", "exposed", "MFU, calibrated"
    )
    for x in results:
        left = f"{headroom(x):.1%}" if x["fits"] else "does not fit"
        cells = [x["part"], x["stage"], x["topology"], x["remat"], left]
        if x["compiled_flops"] is not None:
            cells += [
                f"{x['compiled_flops'] / x['model_flops']:.3f}",
                f"{x['step_seconds_scheduled']:.3f} s",
                f"{x['exposed_communication']:.1%}",
                f"{x['mfu_calibrated']:.1%}",
            ]
        table.add_row(*cells)
    console.print(table)


def adapter_alone(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """{remat: compiled FLOPs of training the adapter alone, over those of training everything}."""
    flops = {(x["remat"], x["stage"]): x["compiled_flops"] for x in results if x["part"] == "flops"}
    return {r: flops[r, "align"] / flops[r, "pretrain"] for r in ("none", "full") if (r, "align") in flops}


def show_scaling(console: Console, results: Sequence[Mapping[str, Any]]) -> None:
    """Step time and collectives over chips."""
    table = Table("chips", "step", "of the first", "exposed", "collectives: seconds alone on their wires")
    first = results[0]["step_seconds_scheduled"]
    for x in results:
        seconds: dict[str, float] = {}
        for line in x["collectives"]:
            name = f"{line['kind']} {line['axes']}"
            seconds[name] = seconds.get(name, 0.0) + line["seconds"]
        largest = sorted(seconds.items(), key=lambda item: -item[1])[:4]
        table.add_row(
            str(x["chips"]),
            f"{x['step_seconds_scheduled']:.3f} s",
            f"{x['step_seconds_scheduled'] / first:.3f}",
            f"{x['exposed_communication']:.1%}",
            ", ".join(f"{name} {value:.3f}" for name, value in largest),
        )
    console.print(table)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ("pods", "flops", "large", "scaling")
    parser.add_argument("parts", nargs="*", help=f"which of {', '.join(known)} (all)")
    parser.add_argument("--jobs", type=int, default=2, help="compilations at a time (2)")
    parser.add_argument(
        "--whole", action="store_true", help="let the compiler write its code too: minutes, and no other figures"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    if strange := set(arguments.parts) - set(known):
        parser.error(f"there is no part {strange.pop()}; there are {', '.join(known)}")
    results = run(list(cases(arguments.parts or known)), arguments.jobs, not arguments.whole)
    console = Console(width=160)
    show_steps(console, results)
    alone = adapter_alone(results)
    for remat, share in alone.items():
        print(f"adapter alone, remat {remat}: {share:.3f} of the FLOPs of training everything")
    if scaling := [x for x in results if x["part"] == "scaling"]:
        show_scaling(console, scaling)
    if arguments.json:
        arguments.json.write_text(json.dumps({"cases": results, "adapter_alone": alone}, indent=1) + "\n")


if __name__ == "__main__":
    main()
