"""Published runs on real pods, and the same shapes rehearsed: what predictions of this kind are worth.

Step times are compared, not percentages: in the publications' utilisation attention counts as if nothing were masked
(MaxText before pull request 1988), or with embeddings among the products; here only pairs that may attend count.
"""

import dataclasses
from typing import Any

from data_pipelines.kinds import TextOnly
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.sources import JSONLines
from data_pipelines.tokenizers import SentencePieceConfig
from vlm_jax.config import Experiment, NextToken, Stage
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.layers import Precision
from vlm_jax.models.presets import llama3_8b, llama3_70b
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.optim import OptimizerConfig, Schedule
from vlm_jax.parallel import MeshConfig
from vlm_jax.rehearsal.report import stage_json, versions
from vlm_jax.rehearsal.stage import StageReport, Watch, no_watch, rehearse_stage
from vlm_jax.rehearsal.topology import parse_topology


@dataclasses.dataclass(frozen=True)
class PublishedRun:
    """A run that others measured, in their words, and its shape as an experiment of ours."""

    name: str
    topology: str
    seconds: float
    """Of a step."""
    utilisation: float
    """MFU as published, by the publication's own count of FLOPs."""
    decoder: DecoderConfig
    rows_per_chip: int
    length: int
    source: str
    differences: str
    """Where our programs are not theirs."""

    @property
    def experiment(self) -> Experiment:
        """Its shape: text only, everything trains, AdamW, parameters sharded over all chips."""
        topology = parse_topology(self.topology)
        data = DataConfig(
            (MixtureEntry(JSONLines("synthetic.jsonl"), TextOnly()),),
            rows=self.rows_per_chip * topology.chips,
            length=self.length,
            images=0,
            virtual_shards=self.rows_per_chip * topology.chips,
        )
        stage = Stage(
            "full",
            data,
            steps=100,
            optimizer=OptimizerConfig(schedule=Schedule(peak=3e-5, warmup=10)),
            objective=NextToken(chunk=1024),
        )
        model = VLMConfig(decoder=self.decoder, precision=Precision(compute="bfloat16"))
        tokenizer = SentencePieceConfig(vocabulary_size=self.decoder.vocabulary_size)
        return Experiment(self.name, model, (stage,), tokenizer=tokenizer, mesh=MeshConfig(data=1, fsdp=-1))


RUNS = {
    run.name: run
    for run in (
        PublishedRun(
            name="llama2-70b-v5p",
            topology="v5p:4x4x4",
            seconds=4 * 4096 / 692,
            utilisation=0.654,
            decoder=dataclasses.replace(llama3_70b(vocabulary_size=32_000), rope_base=10_000.0, remat="save_qkv"),
            rows_per_chip=4,
            length=4096,
            source=(
                "MaxText, docs/reference/models/tiering.md: Llama 2 70B on v5p, bf16, 65.4% MFU, 692 tokens/s/device; "
                "its recipe is llama2_70b_v5p_128 in benchmarks/maxtext_v5p_model_configs.py at 92e59fd (4 rows of "
                "4,096 a chip, FSDP over the slice, save_dot_except_mlpwi)"
            ),
            differences=(
                "attention's output stays and its map out is computed again (there it is the other way round); the "
                "cross-entropy goes in chunks of 1,024 positions"
            ),
        ),
        PublishedRun(
            name="llama3.1-8b-v6e",
            topology="v6e:16x16",
            seconds=4.546,
            utilisation=0.4546,
            decoder=dataclasses.replace(llama3_8b(), remat="offload_qkv"),
            rows_per_chip=4,
            length=8192,
            source=(
                "AI-Hypercomputer/tpu-recipes, training/trillium/Llama3.1-8B-MaxText/v6e-256: 4.546 s a step, 417.4 "
                "TFLOP/s/device, 7,207 tokens/s/device (4 rows of 8,192 a chip, FSDP over the slice, projections "
                "offloaded to the host's memory instead of recomputed)"
            ),
            differences=(
                "attention's output is offloaded and its map out computed again, the layers' inputs stay on the chip "
                "(there it is the other way round); the cross-entropy goes in chunks of 1,024 positions"
            ),
        ),
    )
}
"""By name. v5p and v6e have one each; v4 and v5e borrow theirs (`calibration_table`)."""


def rehearse_run(run: PublishedRun, *, watch: Watch = no_watch) -> StageReport:
    """Compiles its shape, up to the schedule, and predicts it."""
    return rehearse_stage(run.experiment, 0, parse_topology(run.topology), quick=True, watch=watch)


def calibration_json(run: PublishedRun, report: StageReport) -> dict[str, Any]:
    """The same for programs: what was measured, and all that is predicted."""
    measured = {"measured_seconds": run.seconds, "measured_mfu": report.mfu(run.seconds)}
    return {**measured, "published_mfu": run.utilisation, "topology": run.topology, **stage_json(report)}


def calibration_lines(run: PublishedRun, report: StageReport) -> list[str]:
    """Measured against predicted, and the line for `calibration_table.CALIBRATIONS`."""
    chip = report.topology.chip
    said = ", ".join(versions().values())
    lines = [
        f"{run.name} on {report.topology.name}: measured {run.seconds:.3f} s a step ({run.source})",
        f"  our MFU of the measured step: {report.mfu(run.seconds):.1%} (published {run.utilisation:.1%})",
    ]
    if not report.programs:
        return [*lines, f"  the compiler needs {report.peak_bytes / 2**30:.1f} GiB a chip: it does not fit"]
    for name in ("overlapped", "scheduled", "serial"):
        seconds = getattr(report, name)
        ratio = run.seconds / seconds
        lines.append(f"  {name}: {seconds:.3f} s, MFU {report.mfu(seconds):.1%}; measured / predicted {ratio:.3f}")
    compiled = report.compiled_flops / report.model_flops
    return [
        *lines,
        f"  compiled / model FLOPs {compiled:.3f}; exposed communication {report.exposed_communication:.1%}; peak "
        f"{report.peak_bytes / 2**30:.1f} GiB; {run.differences}",
        f'  "{chip.name}": Calibration("{run.name}", {run.seconds:.3f}, {report.scheduled:.3f}, "{said}"),',
    ]
