"""launch_tpu.sh makes, refuses to touch, and deletes: always what it named."""

import subprocess

import pytest
from launch_cloud import COMMAND, FLAGS, ON_DISK, REFUSED, ROOT, WHERE, Cloud


@pytest.mark.parametrize("how", ["refuse", "queue-fails"])
def test_a_refusal_is_one_clear_line_and_nothing_is_left(how: str, cloud: Cloud) -> None:
    cloud.plan(how, REFUSED)
    result = cloud.launch(*FLAGS, "--queued", *COMMAND)
    assert result.returncode == 1
    assert [line for line in result.stderr.splitlines() if "refused" in line] == [
        f"== the queued resource first with its TPU first was refused: {REFUSED}"
    ]
    assert cloud.there() == set()
    assert not (cloud.root / "runs").exists()


@pytest.mark.parametrize(("arguments", "answer", "code", "left"), [
    ([], "y\n", 0, {"second"}),
    ([], "n\n", 1, {"first", "second"}),
    ([], "", 1, {"first", "second"}),
    (["--yes"], "", 0, {"second"}),
])  # fmt: skip
@pytest.mark.parametrize("queued", [False, True])
def test_down_names_what_it_deletes(
    arguments: list[str], answer: str, code: int, left: set[str], queued: bool, cloud: Cloud
) -> None:
    cloud.make("first", queued)
    cloud.make("second")
    result = cloud.launch("--down", *WHERE, *arguments, answer=answer)
    assert result.returncode == code
    what = (
        "the queued resource first with every TPU it made (WAITING_FOR_RESOURCES)"
        if queued
        else "the TPU first (READY)"
    )
    assert f"this deletes, in zone here of project mine, with all that is on its disks: {what}" in result.stderr
    assert cloud.there() == left
    assert ("nothing was deleted" in result.stderr) == (code == 1)


def test_an_unreachable_cloud_is_not_an_absent_tpu(cloud: Cloud) -> None:
    cloud.make("first")
    cloud.plan("unreachable", "yes")
    result = cloud.launch(*FLAGS, *COMMAND)
    assert result.returncode == 1
    assert "gcloud cannot tell about first: (gcloud) the token has expired" in result.stderr
    assert len(cloud.calls(" create ")) == 1


def test_a_stopped_tpu_is_started_with_what_is_on_its_disk(cloud: Cloud) -> None:
    cloud.make("first")
    node = cloud.root / "nodes/first.json"
    node.write_text(node.read_text().replace("READY", "STOPPED"))
    result = cloud.launch(*FLAGS, *COMMAND)
    assert result.returncode == 0, result.stderr
    assert len(cloud.calls("tpu-vm start first")) == 1
    assert not cloud.calls("delete")


def test_stopped_slices_are_started(cloud: Cloud) -> None:
    cloud.hosts(1)
    assert cloud.launch(*FLAGS, "--slices", "2", *COMMAND).returncode == 0
    node = cloud.root / "nodes/first-1.json"
    node.write_text(node.read_text().replace("READY", "STOPPED"))
    result = cloud.launch(*FLAGS, "--slices", "2", *COMMAND)
    assert result.returncode == 0, result.stderr
    assert [line.split()[4] for line in cloud.calls("tpu-vm start")] == ["first-1"]
    assert len(cloud.runs()) == 4


@pytest.mark.parametrize("queued", [False, True])
def test_what_is_there_is_deleted_as_what_it_is(queued: bool, cloud: Cloud) -> None:
    cloud.make("first", queued)
    flags = [] if queued else ["--queued"]
    result = cloud.launch(*FLAGS, *flags, "--delete", "--yes", *COMMAND)
    assert result.returncode == 0, result.stderr
    what = "the queued resource first with its TPU first" if queued else "the TPU first"
    assert f"at the end this deletes {what}, in zone here" in result.stderr
    assert len(cloud.calls(" create ")) == 1
    assert len(cloud.calls(" delete ")) == 1
    assert cloud.there() == set()


def test_a_queued_resource_of_other_slices_is_not_touched(cloud: Cloud) -> None:
    cloud.make("first", queued=True)
    result = cloud.launch(*FLAGS, "--slices", "2", "--delete", "--yes", *COMMAND)
    assert result.returncode == 2
    assert "first is there without all of first-0 first-1: is --slices 2 right?" in result.stderr
    assert cloud.there() == {"first"}


def test_several_hosts_need_a_workdir_that_all_see(cloud: Cloud) -> None:
    result = cloud.launch(*FLAGS, *ON_DISK)
    assert result.returncode == 2
    assert "--workdir runs/here: every host would have its own; name a directory that all see" in result.stderr
    assert not cloud.calls("tpu_worker.sh install")
    assert "still there, and billed: the TPU first" in result.stderr
    mount = cloud.launch(*FLAGS, "--dry-run", "--", "vlm", "train", "experiments/mu.py", "--workdir", "/mount/here")
    assert mount.returncode == 0
    assert "unless it is a mount, the workdir goes with the machine; several hosts must share it" in mount.stderr


def test_down_where_nothing_is(cloud: Cloud) -> None:
    result = cloud.launch("--down", *WHERE)
    assert result.returncode == 0
    assert "nothing to delete" in result.stderr
    assert not cloud.calls("delete")


def test_delete_is_asked_for_before_anything_is_made(cloud: Cloud) -> None:
    result = cloud.launch(*FLAGS, "--delete", *COMMAND, answer="n\n")
    assert result.returncode == 2
    assert "at the end this deletes the TPU first, in zone here of project mine" in result.stderr
    assert not cloud.there()
    assert all(" describe " in line for line in cloud.calls())
    result = cloud.launch(*FLAGS, "--delete", *COMMAND, answer="y\n")
    assert result.returncode == 0, result.stderr
    assert cloud.there() == set()
    assert (cloud.checkout / "runs/first/metrics.jsonl").exists()


def test_delete_comes_after_a_fault_too(cloud: Cloud) -> None:
    cloud.plan("first-0", "3")
    result = cloud.launch(*FLAGS, "--delete", "--yes", *COMMAND)
    assert result.returncode == 3
    assert cloud.there() == set()
    assert (cloud.checkout / "runs/first/logs/slice-0-worker-1.log").exists()


def test_a_tpu_of_another_type_is_not_touched(cloud: Cloud) -> None:
    cloud.make("first")
    result = cloud.launch(*WHERE, "--accelerator", "v5p-8", "--delete", "--yes", *COMMAND)
    assert result.returncode == 2
    assert "first is there and is a v4-8, not a v5p-8" in result.stderr
    assert cloud.there() == {"first"}


def test_dry_run_prints_every_command_and_runs_none(cloud: Cloud) -> None:
    handed_on = ["--create-flag", "--network=mine", "--connect-flag", "--internal-ip"]
    result = cloud.launch(*FLAGS, "--slices", "2", "--best-effort", "--delete", *handed_on, "--dry-run", *COMMAND)
    assert result.returncode == 0, result.stderr
    assert cloud.calls() == []
    assert cloud.there() == set()
    lines = result.stdout.splitlines()
    first = next(line for line in lines if " create " in line)
    assert first.startswith("gcloud alpha compute tpus queued-resources create first --project mine --zone here")
    assert "--best-effort --network=mine" in first
    for node in ("first-0", "first-1"):
        for action in ("install", "start", "wait"):
            assert any(f"ssh {node} " in line and f"tpu_worker.sh {action} " in line for line in lines)
    assert all("--internal-ip" in line for line in lines if " ssh " in line or " scp " in line)
    assert lines[-1] == "gcloud compute tpus queued-resources delete first --project mine --zone here --force --quiet"
    assert not (cloud.checkout / "runs").exists()


def test_dry_runs_of_stop_and_fetch(cloud: Cloud) -> None:
    fetch = cloud.launch("--fetch", *WHERE, "--dry-run")
    assert fetch.returncode == 0, fetch.stderr
    lines = fetch.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].endswith("'--command=bash tpu_worker.sh workdir'")
    assert lines[1].endswith("'--command=bash tpu_worker.sh reports WORKDIR-OF-THE-COMMAND'")
    assert " scp first:vlm-jax-run/reports.tar.gz " in lines[2]
    stop = cloud.launch("--stop", *WHERE, "--slices", "2", "--dry-run")
    assert stop.returncode == 0, stop.stderr
    assert [line.split()[5] for line in stop.stdout.splitlines()] == ["first-0", "first-1"]
    assert cloud.calls() == []


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "launch_tpu.sh"), *arguments], capture_output=True, text=True, check=False
    )


def test_help() -> None:
    result = launch("--help")
    assert result.returncode == 0
    assert "usage: ./launch_tpu.sh" in result.stdout
    for line in (ROOT / "launch_tpu.sh").read_text().splitlines():
        if line.strip().startswith("--") and " | " in line and line.endswith(")"):
            assert all(flag in result.stdout for flag in line.strip(" )").split(" | "))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--name is missing"),
        (["--name"], "--name needs a value"),
        (["--nam", "x"], "unknown argument --nam"),
        (FLAGS, "no command after --"),
        ([*FLAGS, "--max-restarts", "many", *COMMAND], "not a number"),
        ([*FLAGS, "--slices", "0", *COMMAND], "--slices is 0"),
        ([*FLAGS, "--spot", "--reserved", *COMMAND], "--spot --reserved exclude each other"),
        ([*FLAGS, "--slices", "2", "--dry-run", *ON_DISK], "name a directory that all see, such as one in gs://"),
        ([*WHERE, "--accelerator", "v6e-16", "--dry-run", *ON_DISK], "such as one in gs://"),
        (["--down", "--fetch", *WHERE], "--down and --fetch are two things"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], words: str) -> None:
    result = launch(*arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
