"""The command line as a user calls it, with good input and with bad."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vlm_jax import cli

ROOT = Path(__file__).resolve().parents[1]
MU = str(ROOT / "experiments" / "mu.py")
SHORT = [MU, "--stages.0.steps", "3", "--stages.1.steps", "3"]
SHORT += ["--evaluation.tasks.0.source.validation-images", "2", "--evaluation.tasks.1.source.validation-images", "2"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `vlm ARGUMENTS` in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.run([str(argument) for argument in arguments])
        except SystemExit as leaving:  # argparse leaves by itself after --help
            code = int(leaving.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Runs `vlm ARGUMENTS`, which must end with code 2 and one line; gives that line."""

    def call(*arguments: object) -> str:
        code, _, err = run(*arguments)
        lines = [line for line in err.splitlines() if line.startswith("vlm: ")]
        assert code == 2, err
        assert len(lines) == 1, err
        assert err.splitlines()[-1] == lines[0]
        assert "Traceback" not in err
        return lines[0]

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with a finished, evaluated run of a few steps; tests that change it take a copy."""
    workdir = tmp_path_factory.mktemp("runs") / "mu"
    assert cli.run(["train", *SHORT, "--workdir", str(workdir)]) == 0
    assert cli.run(["eval", *SHORT, "--workdir", str(workdir)]) == 0
    return workdir


@pytest.fixture
def workdir(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained`."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


@pytest.fixture(scope="module")
def picture() -> Path:
    import easy_vqa

    return Path(easy_vqa.__file__).parent / "data" / "test" / "images" / "0.png"


COMMANDS = ("train", "eval", "compare", "generate", "serve", "convert", "data inspect", "data stats")
COMMANDS += ("data tokenizer", "data quarantine", "data verify", "data fetch")
COMMANDS += ("data prepare corpora", "data prepare web")
COMMANDS += ("convert from-hf", "convert from-gguf", "convert from-onnx", "convert to-hf")


@pytest.mark.parametrize("command", ["", "data", *COMMANDS])
def test_help_explains(command: str, run: Run) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert f"usage: vlm {command}".strip() in out
    if command in COMMANDS:
        assert f"\n  vlm {command} " in out, "an example to copy"


def test_train_leaves_what_programs_outside_read(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines][-1] == ("instruct", 3)
    assert {"loss", "tokens_per_second", "padding_share", "sources"} <= lines[0].keys()
    assert json.loads((trained / "config.json").read_text())["name"] == "mu"
    for stage in ("captions", "instruct"):
        assert (trained / "checkpoints" / stage / "3" / "params").is_dir()
    assert (trained / "report.html").stat().st_size > 10_000


def test_eval_leaves_what_programs_outside_read(trained: Path) -> None:
    results = json.loads((trained / "eval.json").read_text())
    assert set(results["tasks"]) == {"easy_vqa_en", "easy_vqa_ru"}
    for name, task in results["tasks"].items():
        assert task["metric"] == "exact_match"
        assert 0 <= task["low"] <= task["score"] <= task["high"] <= 1
        assert set(task["controls"]) == {"majority", "shuffled_image"}
        predictions = (trained / "predictions" / f"{name}.jsonl").read_text().split("\n")
        assert len(predictions) - 1 == task["n"]


def test_train_again_has_nothing_to_do(workdir: Path, run: Run) -> None:
    before = (workdir / "metrics.jsonl").read_text()
    code, out, _ = run("train", *SHORT, "--workdir", workdir)
    assert code == 0
    assert out.strip().endswith("report.html")
    assert (workdir / "metrics.jsonl").read_text() == before


def test_eval_of_chosen_tasks_goes_where_it_is_told(trained: Path, tmp_path: Path, run: Run) -> None:
    code, out, _ = run("eval", *SHORT, "--model", trained, "--tasks", "easy_vqa_ru", "--output", tmp_path / "russian")
    assert code == 0
    assert "easy_vqa_ru" in out
    assert set(json.loads((tmp_path / "russian" / "eval.json").read_text())["tasks"]) == {"easy_vqa_ru"}


def test_relative_paths_work(workdir: Path, picture: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workdir.parent)
    assert run("eval", *SHORT, "--workdir", workdir.name, "--tasks", "easy_vqa_en")[0] == 0
    assert run("train", *SHORT, "--workdir", workdir.name)[0] == 0
    assert run("generate", "--model", workdir.name, "--prompt", "hello", "--max-new-tokens", 1)[0] == 0


def test_compare_with_itself_finds_no_difference(trained: Path, run: Run) -> None:
    code, out, _ = run("compare", trained, trained)
    assert code == 0
    assert "+0.00%" in out


def test_generate_answers_every_turn(trained: Path, picture: Path, run: Run) -> None:
    arguments = ["--model", trained, "--image", picture, "--prompt", "what shape is present?", "--prompt", "Опиши."]
    code, out, _ = run("generate", *arguments, "--max-new-tokens", 4)
    assert code == 0
    assert out.count("\n") >= 2
    assert run("generate", *arguments, "--max-new-tokens", 4)[1] == out


def test_generate_gives_several_answers_to_one_prompt(trained: Path, run: Run, refused: Callable[..., str]) -> None:
    arguments = ["--model", trained, "--prompt", "Опиши.", "--max-new-tokens", 4, "--samples", 3]
    code, out, _ = run("generate", *arguments, "--temperature", 1.5)
    assert code == 0
    answers = [line[4:] for line in out.splitlines() if line.startswith("[")]
    assert len(answers) == 3
    assert "--samples" in refused("generate", *arguments, "--prompt", "Ещё.")
    (first, *_) = answers
    if first:
        stopped = run("generate", *arguments, "--temperature", 1.5, "--stop", first[0])[1]
        assert stopped.startswith("[1] \n")


def test_a_step_directory_is_a_model(trained: Path, run: Run) -> None:
    step = trained / "checkpoints" / "captions" / "3"
    assert run("generate", "--model", step, "--prompt", "hello", "--max-new-tokens", 2)[0] == 0


def test_data_inspect_draws_rows(tmp_path: Path, run: Run) -> None:
    code, out, _ = run("data", "inspect", MU, "--stage", "instruct", "--rows", 2, "--output", tmp_path)
    assert code == 0
    assert "<assistant>" in out
    assert sorted(page.name for page in tmp_path.iterdir()) == ["instruct-0.html", "instruct-1.html"]


def test_data_stats_counts(tmp_path: Path, run: Run) -> None:
    code, _, _ = run("data", "stats", MU, "--batches", 2, "--output", tmp_path)
    assert code == 0
    assert json.loads((tmp_path / "captions-stats.json").read_text())
    assert (tmp_path / "captions-stats.html").exists()


def test_overrides_are_listed_as_they_stand(run: Run) -> None:
    code, out, _ = run("train", MU, "--overrides", "--stages.0.steps", 7)
    assert code == 0
    assert "--stages.0.steps 7\n" in out
    assert "--stages.1.steps 20\n" in out


# What is wrong, in words that the line must have, and the mend.


def test_no_such_command(refused: Callable[..., str]) -> None:
    assert "fly" in refused("fly")


def test_no_such_argument(trained: Path, refused: Callable[..., str]) -> None:
    assert "--modell" in refused("generate", "--model", trained, "--prompt", "x", "--modell", "y")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no such experiment file"),
        ("x = 1", "defines no experiment()"),
        ("def experiment(): return 3", "gave int"),
        ("import no_such_module_here", "no_such_module_here"),
        ("def experiment(:", "SyntaxError"),
    ],
)
def test_bad_experiment_file(content: str | None, words: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "bad.py"
    if content is not None:
        path.write_text(content)
    line = refused("train", path, "--workdir", tmp_path / "run")
    assert words in line
    assert str(path) in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (["--stages.0.stepps", "10"], "did you mean --stages.0.steps"),
        (["--stages.5.steps", "10"], "--stages.5.steps"),
        (["--stages.0.steps", "ten"], "ten"),
        (["--stages.0.steps", "0"], "give at least 1"),
        (["--stages.0.steps"], "steps"),
        (["--stages.0.optimizer.schedule.shape", "zigzag"], "zigzag"),
        (["--model.decoder.heads", "3"], "heads"),
        (["stray"], "stray"),
    ],
)
def test_bad_override(override: list[str], words: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert words in refused("train", MU, "--workdir", tmp_path / "run", *override)
    assert not (tmp_path / "run").exists()


def test_no_workdir(refused: Callable[..., str]) -> None:
    assert "--workdir is missing" in refused("train", MU)


def test_workdir_that_cannot_be_one(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "file").write_text("x")
    assert "choose another" in refused("train", *SHORT, "--workdir", tmp_path / "file")
    assert "choose another" in refused("train", *SHORT, "--workdir", tmp_path / "file" / "below")


def test_workdir_of_another_config(workdir: Path, refused: Callable[..., str], run: Run) -> None:
    line = refused("train", *SHORT, "--workdir", workdir, "--stages.0.data.length", 96)
    assert "stages.0.data.length: 128 -> 96" in line
    assert "--allow-config-change" in line
    # What has no say in the result may change.
    assert run("train", *SHORT, "--workdir", workdir, "--log-every", 2)[0] == 0


def test_checkpoint_of_another_model(workdir: Path, refused: Callable[..., str]) -> None:
    arguments = ["--workdir", workdir, "--allow-config-change", "--model.decoder.width", 16]
    assert "another model" in refused("train", *SHORT, *arguments)


@pytest.mark.parametrize("command", ["eval", "generate"])
def test_no_checkpoint(command: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    rest = [MU, "--output", tmp_path] if command == "eval" else ["--prompt", "x"]
    assert "no checkpoint" in refused(command, *rest, "--model", tmp_path / "nothing")


def test_damaged_checkpoint(workdir: Path, refused: Callable[..., str], run: Run) -> None:
    step = workdir / "checkpoints" / "instruct" / "3"
    damage_largest_file(step / "params")
    line = refused("eval", *SHORT, "--workdir", workdir)
    assert "damaged checkpoint" in line
    assert str(step) in line
    before = workdir / "checkpoints" / "captions" / "3"
    assert run("generate", "--model", before, "--prompt", "x", "--max-new-tokens", 1)[0] == 0


def damage_largest_file(directory: Path) -> None:
    path = max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 64):
        content[place] ^= 0xFF
    path.write_bytes(content)


def test_damaged_config_in_a_checkpoint(workdir: Path, refused: Callable[..., str]) -> None:
    path = workdir / "checkpoints" / "instruct" / "3" / "files" / "config.json"
    path.write_text(path.read_text()[:100])
    assert "damaged" in refused("generate", "--model", workdir, "--prompt", "x")


def test_eval_of_what_nobody_named(trained: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "--workdir" in refused("eval", MU)
    assert "--output is missing" in refused("eval", MU, "--model", trained)
    assert "easy_vqa_en" in refused("eval", *SHORT, "--model", trained, "--output", tmp_path, "--tasks", "nonsense")


def test_picture_that_is_none(trained: Path, tmp_path: Path, picture: Path, refused: Callable[..., str]) -> None:
    text, half = tmp_path / "text.png", tmp_path / "half.png"
    text.write_text("not a picture")
    half.write_bytes(picture.read_bytes()[:100])
    for path in (text, half, tmp_path / "missing.png"):
        line = refused("generate", "--model", trained, "--image", path, "--prompt", "x")
        assert path.name in line
        assert "--image" in line


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--temperature", "-1"),
        ("--top-p", "2"),
        ("--top-k", "-1"),
        ("--max-new-tokens", "0"),
        ("--samples", "0"),
        ("--stop", ""),
        ("--seed", "x"),
    ],
)
def test_bad_sampling(option: str, value: str, trained: Path, refused: Callable[..., str]) -> None:
    line = refused("generate", "--model", trained, "--prompt", "x", option, value)
    assert option.removeprefix("--").split("-")[0] in line


def test_compare_without_results(trained: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "no results" in refused("compare", trained, tmp_path)


def test_data_of_no_stage(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "captions, instruct" in refused("data", "inspect", MU, "--stage", "rl", "--output", tmp_path)


# True processes: what this process cannot show of itself.


def vlm(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vlm_jax.cli", *map(str, arguments)]


def test_bad_override_is_met_before_a_device_is_touched() -> None:
    code = (
        "import sys; from vlm_jax import cli; code = cli.run(sys.argv[1:]); import jax._src.xla_bridge as bridge; "
        "assert not bridge.backends_are_initialized(); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "train", MU, "--workdir", "never", "--sedd", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert result.stderr.strip() == "vlm: unknown override --sedd; did you mean --seed?"


def test_sigterm_saves_and_leaves_with_75(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    command = vlm("train", MU, "--workdir", workdir, "--stages.0.steps", 5000, "--log-every", 1)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (workdir / "metrics.jsonl").exists() or not (workdir / "metrics.jsonl").read_text():
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    last = err.strip().splitlines()[-1]
    assert "run the same command to go on" in last
    saved = [int(path.name) for path in (workdir / "checkpoints" / "captions").iterdir() if path.name.isdigit()]
    assert f"saved step {max(saved)} " in last


@pytest.mark.parametrize(("vendor", "platforms"), [("0x8086", "cpu"), ("0x1ae0", None)])
def test_the_tpu_compiler_alone_is_no_tpu(
    vendor: str, platforms: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0000:00:04.0").mkdir()
    (tmp_path / "0000:00:04.0" / "vendor").write_text(f"{vendor}\n")
    monkeypatch.setenv("JAX_PLATFORMS", "")  # so that it is put back afterwards
    monkeypatch.delenv("JAX_PLATFORMS")
    cli._pass_over_absent_tpus(tmp_path)
    assert os.environ.get("JAX_PLATFORMS") == platforms
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    cli._pass_over_absent_tpus(tmp_path)
    assert os.environ["JAX_PLATFORMS"] == "cuda"
