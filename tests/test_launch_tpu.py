"""launch_tpu.sh with a gcloud that only writes down what it is asked."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["--name", "first", "--project", "mine", "--zone", "here", "--accelerator", "v4-8"]
COMMAND = ["--", "vlm", "train", "experiments/mu.py", "--workdir", "gs://bucket/a b"]

GCLOUD = """#!/usr/bin/env bash
printf '%q ' "$@" >> calls; echo >> calls
case "$*" in
  *" describe "*) if [[ -f there ]]; then echo READY; else exit 1; fi ;;
  *" create "*) touch there ;;
  *" ssh "*flock*)
    code=$(head -n 1 codes); sed -i 1d codes
    if [[ $code == lost ]]; then rm there; exit 255; fi
    for one in ${code//,/ }; do echo "exit code on host: $one"; done ;;
esac
"""


def launch(*arguments: str, cwd: Path | None = None, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]}
    script = "launch_tpu.sh" if cwd else str(ROOT / "launch_tpu.sh")
    return subprocess.run(
        ["bash", script, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=cwd
    )


@pytest.fixture
def cloud(tmp_path: Path) -> Path:
    """A checkout beside a gcloud, git and sleep that do nothing."""
    (tmp_path / "launch_tpu.sh").write_bytes((ROOT / "launch_tpu.sh").read_bytes())
    (tmp_path / "bin").mkdir()
    for name, text in {"gcloud": GCLOUD, "git": "#!/bin/sh\n", "sleep": "#!/bin/sh\n"}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def calls(cloud: Path, word: str) -> list[str]:
    return [line for line in (cloud / "calls").read_text().splitlines() if word in line]


@pytest.mark.parametrize(
    ("codes", "code", "created", "runs"),
    [
        ("0", 0, 1, 1),
        ("0,0", 0, 1, 1),
        ("75 75 0", 0, 1, 3),
        ("0,75 0,0", 0, 1, 2),
        ("lost 0", 0, 2, 2),
        ("2", 2, 1, 1),
        ("2,75", 2, 1, 1),
        ("75 75 75 75", 75, 1, 4),
    ],
)
def test_restarts_only_what_asks_for_it(codes: str, code: int, created: int, runs: int, cloud: Path) -> None:
    (cloud / "codes").write_text(codes.replace(" ", "\n") + "\n")
    result = launch(*FLAGS, "--max-restarts", "3", "--delete", *COMMAND, cwd=cloud, path=str(cloud / "bin"))
    assert result.returncode == code, result.stderr
    assert len(calls(cloud, " create ")) == created
    assert len(calls(cloud, "flock")) == runs
    assert len(calls(cloud, "scp")) == created
    assert "delete" in calls(cloud, "")[-1]


def test_every_call_names_the_users_project(cloud: Path) -> None:
    (cloud / "codes").write_text("0\n")
    launch(*FLAGS, *COMMAND, cwd=cloud, path=str(cloud / "bin"))
    lines = calls(cloud, "")
    assert lines
    assert all("--project mine --zone here" in line for line in lines)
    assert not calls(cloud, "delete")


def test_dry_run_prints_and_runs_nothing(cloud: Path) -> None:
    result = launch(*FLAGS, "--spot", "--queued", "--delete", "--dry-run", *COMMAND, cwd=cloud, path=str(cloud / "bin"))
    assert result.returncode == 0
    assert not (cloud / "calls").exists()
    lines = result.stdout.splitlines()
    assert lines[0].startswith("gcloud compute tpus queued-resources create first")
    assert "--spot" in lines[0]
    assert any("gs://bucket/a" in line for line in lines)
    assert "delete" in lines[-1]


def test_help() -> None:
    result = launch("--help")
    assert result.returncode == 0
    assert "usage: ./launch_tpu.sh" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--name is missing"),
        (["--name"], "--name needs a value"),
        (["--nam", "x"], "unknown argument --nam"),
        (FLAGS, "no command after --"),
        ([*FLAGS, "--max-restarts", "many", *COMMAND], "not a number"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], words: str) -> None:
    result = launch(*arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
