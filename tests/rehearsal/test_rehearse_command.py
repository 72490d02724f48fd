"""`vlm rehearse` as a user calls it: the real compiler, for chips that are not there."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vlm_jax import cli
from vlm_jax.cli import build_parser
from vlm_jax.commands import rehearse as command
from vlm_jax.config import load_experiment
from vlm_jax.overrides import apply_overrides
from vlm_jax.rehearsal.stage import layout_on
from vlm_jax.rehearsal.topology import parse_topology
from vlm_jax.training.divisibility import check_layout

ROOT = Path(__file__).resolve().parents[2]
MU = str(ROOT / "experiments" / "mu.py")
ON_FOUR = (MU, "--topology", "v5e:2x2", "--stage", "captions", "--mesh.data", "1", "--mesh.fsdp", "4")

CONTRACT = {
    "params",
    "trained_params",
    "chips",
    "hbm_bytes_per_chip",
    "peak_bytes_per_chip",
    "compiled_flops",
    "model_flops",
    "collective_bytes",
    "step_seconds_overlapped",
    "step_seconds_serial",
    "exposed_communication",
    "mfu_overlapped",
    "mfu_serial",
    "mfu_calibrated",
    "tokens_per_second_per_chip",
}
"""Keys of a stage that programs outside read."""

Rehearse = Callable[..., tuple[int, str, str]]


@pytest.fixture
def rehearse(capsys: pytest.CaptureFixture[str]) -> Rehearse:
    """Runs `vlm rehearse ARGUMENTS`: (exit code, stdout, the line after "vlm: ")."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run(["rehearse", *arguments])
        captured = capsys.readouterr()
        said = [line for line in captured.err.splitlines() if line.startswith("vlm: ")]
        assert "Traceback" not in captured.err
        assert len(said) == (code != 0)
        return code, captured.out, said[0] if said else ""

    return call


def test_the_figures_of_a_stage_agree_with_each_other(rehearse: Rehearse, tmp_path: Path) -> None:
    file = tmp_path / "rehearsal.json"
    code, shown, _ = rehearse(*ON_FOUR, "--json", str(file), "--details")
    assert code == 0
    assert "predicted" in shown
    assert "headroom" in shown
    told = json.loads(file.read_text())
    assert (told["experiment"], told["topology"]) == ("mu", "v5e:2x2")
    stage = told["stages"]["captions"]
    assert set(stage) >= CONTRACT
    assert stage["chips"] == 4
    assert 0 < stage["trained_params"] == stage["params"]
    assert 0 < stage["argument_bytes_per_chip"] <= stage["peak_bytes_per_chip"] < stage["hbm_bytes_per_chip"]
    assert stage["model_flops"] < stage["compiled_flops"] < 3 * stage["model_flops"]
    times = [stage[f"step_seconds_{name}"] for name in ("overlapped", "scheduled", "serial")]
    assert 0 < times[0] <= times[1] <= times[2] * 1.001
    assert stage["mfu_serial"] <= stage["mfu_overlapped"] < 1
    tokens = 4 * 128
    pace = tokens / stage["step_seconds_calibrated"] / 4
    assert stage["tokens_per_second_per_chip"] == pytest.approx(pace)
    assert 0 <= stage["exposed_communication"] <= 1
    gathered = sum(stage["collective_bytes"]["all-gather"].values())
    # Every chip gathers what the others hold of each parameter at least once, and sends as much.
    assert gathered >= stage["params"] * 4 * 3 / 4 / 2


def test_a_quick_rehearsal_says_the_same_but_for_the_size_of_the_code(
    rehearse: Rehearse, tiny: str, tmp_path: Path
) -> None:
    told = []
    for more in ((), ("--quick",)):
        file = tmp_path / "rehearsal.json"
        assert rehearse(tiny, "--topology", "v5e:2x2", "--json", str(file), *more)[0] == 0
        told.append(json.loads(file.read_text())["stages"]["text"])
    whole, quick = told
    differ = {key for key in whole if whole[key] != quick[key]}
    assert differ <= {"peak_bytes_per_chip", "temporary_bytes_per_chip", "compile_seconds"}
    assert 0 < quick["peak_bytes_per_chip"] < whole["peak_bytes_per_chip"]


@pytest.mark.parametrize("more", [(), ("--quick",)], ids=["whole", "quick"])
def test_what_does_not_fit_is_refused_by_the_compiler_and_the_largest_tensors_are_named(
    rehearse: Rehearse, tiny: str, tmp_path: Path, more: tuple[str, ...]
) -> None:
    file = tmp_path / "rehearsal.json"
    large = ("--stages.0.data.rows", "8192", "--stages.0.data.length", "2048", "--model.decoder.mlp-width", "4096")
    code, shown, said = rehearse(tiny, "--topology", "v5e:1x1", *large, *more, "--json", str(file))
    assert code == 2
    assert "does not fit v5e:1x1" in said
    assert "of a chip's 15.75 GiB" in said
    assert "activations" in said
    assert "does not fit" in shown
    stage = json.loads(file.read_text())["stages"]["text"]
    assert not stage["fits"]
    assert stage["peak_bytes_per_chip"] > stage["hbm_bytes_per_chip"]
    temporaries = stage["temporary_bytes_per_chip"] / 2**40
    # The compiler gave up early, at so many TiB (in hundredths) of temporaries; arguments come on top.
    assert temporaries == pytest.approx(round(temporaries, 2), abs=1e-9)
    assert stage["compiled_flops"] is None
    largest = stage["largest_tensors"][0]
    assert largest["size"] > 2**30
    assert "2048" in largest["shape"]


def test_a_host_that_has_too_little_memory_is_named(rehearse: Rehearse, tiny: str) -> None:
    code, _, said = rehearse(tiny, "--topology", "v5e:2x2", "--quick", "--stages.0.data.keep-pictures", "250000")
    assert code == 2
    assert "does not fit the hosts of v5e:2x2" in said
    assert "of 192 GB" in said


def examples() -> list[str]:
    """Every `vlm rehearse EXPERIMENT …` that help, docs or an experiment shows."""
    files = [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "experiments").glob("*.py"),
        Path(command.__file__),
    ]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    found = [re.match(r'\s*(?:"""\w.*: )?(vlm rehearse experiments/[^`#"]+)', line) for line in lines]
    return sorted({match[1].strip() for match in found if match})


def test_there_are_examples() -> None:
    assert len(examples()) >= 8


@pytest.mark.parametrize("example", examples())
def test_what_help_and_docs_show_divides_over_its_slice(example: str) -> None:
    arguments, overrides = build_parser().parse_known_args(example.split()[1:])
    topology = parse_topology(arguments.topology, arguments.slices)
    experiment = apply_overrides(load_experiment(str(ROOT / arguments.experiment)), overrides)
    assert arguments.stage in (None, *(stage.name for stage in experiment.stages))
    check_layout(experiment, layout_on(experiment, topology))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "EXPERIMENT is missing"),
        ((MU,), "--topology is missing"),
        ((MU, "--topology", "v9:2x2"), "unknown TPU generation 'v9'"),
        ((MU, "--topology", "v5e:3x5"), "there is no v5e:3x5"),
        ((MU, "--topology", "v5e:2x2", "--mesh.data", "3"), "does not make 4 devices"),
        ((MU, "--topology", "v5e:4x4"), "do not divide among data x fsdp = 16"),
        ((MU, "--topology", "v5e:2x2", "--stage", "none"), "it has captions, instruct"),
        ((MU, "--topology", "v5e:2x2", "--slices", "0"), "--slices is 0"),
        (("nowhere.py", "--topology", "v5e:2x2"), "nowhere.py"),
        ((MU, "--topology", "v5e:2x2", "--mesh.tpus", "3"), "mesh.tpus"),
        (
            (MU, "--topology", "v5e:2x2", "--json", "/nowhere/x.json"),
            "--json /nowhere/x.json: its directory is not there",
        ),
        ((MU, "--topology", "v5e:2x2", "--json", "/"), "--json / is a directory"),
        ((MU, "--topology", "v5e:2x2", "--search", "--details"), "--details shows one layout, --search tries many"),
        ((MU, "--topology", "v5e:2x2", "--calibrate"), "leave EXPERIMENT, --topology out"),
        (("--calibrate", "--search", "--details", "--slices", "2"), "--details shows one layout"),
        (("--calibrate", "--search", "--slices", "2"), "leave --slices, --search out"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_at_once(
    rehearse: Rehearse, arguments: tuple[str, ...], said: str
) -> None:
    began = time.monotonic()
    code, _, line = rehearse(*arguments)
    assert code == 2
    assert said in line
    assert time.monotonic() - began < 60
