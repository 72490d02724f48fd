"""launch_tpu.sh runs a command on every worker, through preemptions, faults and broken connections."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from launch_cloud import COMMAND, FLAGS, ON_DISK, WHERE, Cloud


def test_a_command_runs_on_every_worker_and_its_reports_come_back(cloud: Cloud) -> None:
    result = cloud.launch(*FLAGS, *COMMAND)
    assert result.returncode == 0, result.stderr
    words = "train experiments/mu.py --workdir gs://shared --note два 'слова' $HOME"
    assert sorted(cloud.runs()) == [f"first-0 0 {words}", f"first-1 0 {words}"]
    assert result.stdout.splitlines() == ["step 1 on first-0", "the end: 0"]
    assert (cloud.checkout / "runs/first/metrics.jsonl").read_text() == '{"loss": 1.0}\n'
    assert "still there, and billed: the TPU first, in zone here of project mine" in result.stderr
    assert cloud.there() == {"first"}
    assert not cloud.calls("delete")
    assert all("--project mine --zone here" in line for line in cloud.calls() if "storage cp" not in line)
    pip = (cloud.root / "pip-first-1").read_text().splitlines()
    assert pip[0].startswith("-m pip install --quiet --requirement requirements/tpu.lock")
    assert "--no-deps" in pip[1]


def test_the_second_time_it_is_reused_and_not_installed_again(cloud: Cloud) -> None:
    cloud.launch(*FLAGS, *COMMAND)
    (cloud.root / "calls").unlink()
    assert cloud.launch(*FLAGS, *COMMAND).returncode == 0
    assert not cloud.calls("create")
    assert not cloud.calls("tpu_worker.sh install ")
    assert len(cloud.runs()) == 4
    # A new commit under the same lock: its code is installed, its environment is not made anew.
    (cloud.checkout / "new.py").write_text("")
    cloud.commit("second")
    assert cloud.launch(*FLAGS, *COMMAND).returncode == 0
    lines = (cloud.root / "pip-first-0").read_text().splitlines()
    assert ["tpu.lock" in line for line in lines] == [True, False, False]
    assert ["--editable" in line for line in lines] == [False, True, True]
    assert (cloud.root / "workers/first-0/vlm-jax/new.py").exists()


def test_reports_come_from_the_disk_of_a_single_host(cloud: Cloud) -> None:
    cloud.hosts(1)
    result = cloud.launch(*FLAGS, *ON_DISK)
    assert result.returncode == 0, result.stderr
    assert "the workdir is on the disk of worker 0 and goes with that machine" in result.stderr
    assert (cloud.checkout / "runs/first/metrics.jsonl").read_text() == '{"loss": 1.0}\n'


def test_a_file_that_a_commit_no_longer_has_goes_and_runs_stay(cloud: Cloud) -> None:
    (cloud.checkout / "old name.py").write_text("")
    cloud.commit("with it")
    cloud.launch(*FLAGS, *COMMAND)
    tree = cloud.root / "workers/first-0/vlm-jax"
    assert (tree / "old name.py").exists()
    (cloud.checkout / "old name.py").unlink()
    cloud.commit("without it")
    cloud.launch(*FLAGS, *COMMAND)
    assert not (tree / "old name.py").exists()
    assert (tree / "runs/here/metrics.jsonl").exists()


def test_what_fails_to_install_shows_the_workers_last_lines(cloud: Cloud) -> None:
    cloud.plan("pip-fails-first-1", "yes")
    result = cloud.launch(*FLAGS, *COMMAND)
    assert result.returncode == 1
    assert "first worker 1 | no matching distribution" in result.stderr
    assert "first worker 0" not in result.stderr
    assert not (cloud.root / "runs").exists()


def test_one_worker_that_ends_with_75_starts_all_again(cloud: Cloud) -> None:
    cloud.plan("first-0", "75", "0")
    result = cloud.launch(*FLAGS, *COMMAND)
    assert result.returncode == 0, result.stderr
    assert len(cloud.runs()) == 4
    assert len(cloud.calls(" create ")) == 1
    assert "restart 1" in result.stderr
    assert result.stdout.count("step 1 on first-0") == 2


def test_restarts_end(cloud: Cloud) -> None:
    cloud.plan("first-0", "75", "75", "75")
    result = cloud.launch(*FLAGS, "--max-restarts", "1", *COMMAND)
    assert result.returncode == 75
    assert "still not done after 1 restarts" in result.stderr
    assert len(cloud.runs()) == 4


@pytest.mark.parametrize("queued", [False, True])
def test_a_preempted_tpu_is_made_anew(queued: bool, cloud: Cloud) -> None:
    cloud.plan("first-1", "preempted")
    cloud.plan("first-0", "hang")
    flags = [*FLAGS, "--spot", *(["--queued"] if queued else [])]
    result = cloud.launch(*flags, *COMMAND)
    assert result.returncode == 0, result.stderr
    created = cloud.calls(" create first", "--spot")
    assert len(created) == 2
    assert ("queued-resources" in created[0]) == queued
    assert len(cloud.calls(" delete first ")) == 1
    assert len(cloud.runs()) == 4
    assert "its machines are gone, so it is made anew" in result.stderr


def test_those_who_fail_for_want_of_a_machine_that_was_taken_away_are_no_fault(cloud: Cloud) -> None:
    cloud.plan("first-0", "bereft")
    cloud.plan("first-1", "preempted")
    result = cloud.launch(*FLAGS, "--spot", *COMMAND)
    assert result.returncode == 0, result.stderr
    assert len(cloud.calls(" create ")) == 2
    assert "failed with" not in result.stderr


@pytest.mark.parametrize(("code", "other"), [("1", "hang"), ("2", "hang"), ("1", "deaf")], ids=lambda x: str(x))
def test_a_fault_on_one_worker_stops_the_others(code: str, other: str, cloud: Cloud) -> None:
    cloud.plan("first-0", other)
    cloud.plan("first-1", code)
    result = cloud.launch(*FLAGS, *COMMAND)
    assert result.returncode == int(code)
    assert f"worker 1 of first failed with {code}" in result.stderr
    assert f"   the end: {code}" in result.stderr
    logs = cloud.checkout / "runs/first/logs"
    assert logs.joinpath("slice-0-worker-1.log").read_text() == f"step 1 on first-1\nthe end: {code}\n"
    assert ("told to end" in logs.joinpath("slice-0-worker-0.log").read_text()) == (other == "hang")
    assert len(cloud.runs()) == 2
    # The lock is free: nothing of the run is left on a worker.
    assert all("supervise" not in Path(f"/proc/{n}/cmdline").read_text() for n in cloud.processes())


def test_a_broken_connection_neither_ends_nor_repeats_anything(cloud: Cloud) -> None:
    for action in ("start", "stream", "wait"):
        cloud.plan(f"break-{action}", *["yes"] * 3)
    cloud.plan("first-0", "slow")
    result = cloud.launch(*FLAGS, *COMMAND)
    assert result.returncode == 0, result.stderr
    assert len(cloud.runs()) == 2
    assert result.stdout.splitlines() == ["step 1 on first-0", *(f"step {n}" for n in range(2, 42))]
    assert "the connection to first is broken (ssh: the connection was closed); the command goes on" in result.stderr


def test_a_cloud_that_is_out_of_reach_for_a_while_changes_nothing(cloud: Cloud) -> None:
    cloud.plan("break-wait", *["yes"] * 4)
    cloud.plan("first-0", "slow")
    process = cloud.start(*FLAGS, *COMMAND)
    cloud.until("first-0 slow")
    cloud.plan("unreachable", "yes", "yes")
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    assert "gcloud cannot tell about first: (gcloud) the token has expired" in errors
    assert len(cloud.runs()) == 2


def test_a_worker_that_lost_its_run_is_started_again(cloud: Cloud) -> None:
    cloud.plan("first-0", "hang")
    cloud.plan("first-1", "hang")
    process = cloud.start(*FLAGS, *COMMAND)
    cloud.until("first-0 hang")
    cloud.until("first-1 hang")
    # As a reboot would: nothing runs any more, and nobody wrote an exit code.
    os.killpg(int((cloud.root / "workers/first-1/vlm-jax-run/supervisor").read_text()), signal.SIGKILL)
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    assert len(cloud.runs()) == 4
    assert len(cloud.calls(" create ")) == 1


def test_ctrl_c_says_what_is_left_and_the_same_command_watches_it_again(cloud: Cloud) -> None:
    cloud.plan("first-0", "until-told")
    process = cloud.start(*FLAGS, *COMMAND)
    cloud.until("first-0 until-told")
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Still there, and billed: the TPU first, in zone here of project mine" in errors
    assert "launch_tpu.sh --stop --name first --project mine --zone here" in errors
    assert "launch_tpu.sh --down --name first --project mine --zone here" in errors
    assert not cloud.calls("delete")
    assert not [n for n in cloud.processes() if b"launch_tpu" in Path(f"/proc/{n}/cmdline").read_bytes()]

    other = cloud.launch(*FLAGS, "--delete", "--", "vlm", "eval", "experiments/mu.py", answer="y\n")
    assert other.returncode == 2
    assert "another command is running on first: vlm train" in other.stderr
    assert cloud.there() == {"first"}

    before = cloud.head()
    cloud.commit("later")
    (cloud.root / "calls").unlink()
    again = cloud.start(*FLAGS, *COMMAND)
    cloud.until("tpu_worker.sh wait", "calls")
    (cloud.root / "end").touch()
    out, errors = again.communicate(timeout=150)
    assert again.returncode == 0, errors
    assert f"running there already, with commit {before}: watching it" in errors
    assert f"if it must be started again, that will be with commit {cloud.head()}" in errors
    assert len(cloud.runs()) == 2
    assert out.splitlines()[-1] == "the end"


@pytest.mark.parametrize(("answers", "left"), [("y\ny\n", set()), ("y\nn\n", {"first"}), ("y\n", {"first"})])
def test_ctrl_c_with_delete_asks(answers: str, left: set[str], cloud: Cloud) -> None:
    cloud.plan("first-0", "hang")
    process = cloud.start(*FLAGS, "--delete", *COMMAND)
    process.stdin.write(answers)
    process.stdin.close()
    process.stdin = None
    cloud.until("first-0 hang")
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Delete it now?" in errors
    assert cloud.there() == left


def test_several_slices_are_told_of_each_other(cloud: Cloud) -> None:
    result = cloud.launch(*FLAGS, "--slices", "2", "--reserved", "--delete", "--yes", *COMMAND)
    assert result.returncode == 0, result.stderr
    create = cloud.calls(" create ")
    assert len(create) == 1
    assert "queued-resources create first" in create[0]
    assert "--node-count=2 --node-prefix=first" in create[0]
    assert "--reserved" in create[0]
    assert len(cloud.runs()) == 4
    for node in range(2):
        for worker in range(2):
            assert (cloud.root / f"environment-first-{node}-{worker}").read_text().split() == [
                "MEGASCALE_COORDINATOR_ADDRESS=10.0.0.2",
                "MEGASCALE_NUM_SLICES=2",
                f"MEGASCALE_SLICE_ID={node}",
            ]
    assert cloud.there() == set()
    assert "deleting the queued resource first with its TPUs first-0 first-1" in result.stderr


def test_a_slice_that_is_taken_away_takes_all_with_it(cloud: Cloud) -> None:
    cloud.plan("first-1-0", "preempted")
    cloud.plan("first-0-0", "hang")
    result = cloud.launch(*FLAGS, "--slices", "2", "--spot", *COMMAND)
    assert result.returncode == 0, result.stderr
    assert len(cloud.runs()) == 8
    assert len(cloud.calls(" create ")) == 2


def test_reports_come_from_a_bucket_and_on_demand(cloud: Cloud) -> None:
    bucket = cloud.root / "bucket/mine/run"
    bucket.mkdir(parents=True)
    (bucket / "eval.json").write_text("{}")
    command = ["--", "vlm", "train", "experiments/mu.py", "--workdir=gs://mine/run"]
    assert cloud.launch(*FLAGS, *command).returncode == 0
    fetched = cloud.checkout / "runs/first"
    assert [path.name for path in fetched.iterdir()] == ["eval.json"]
    shutil.rmtree(fetched)
    (bucket / "report.html").write_text("<html>")
    for arguments in ([], command):
        assert cloud.launch("--fetch", *WHERE, *arguments).returncode == 0
        assert {path.name for path in fetched.iterdir()} == {"eval.json", "report.html"}
        shutil.rmtree(fetched)
    gone = cloud.launch("--fetch", *WHERE, "--", "vlm", "train", "--workdir", "gs://mine/none")
    assert gone.returncode == 1
    assert "no reports fetched from gs://mine/none" in gone.stderr
