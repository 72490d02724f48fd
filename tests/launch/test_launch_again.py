"""launch_tpu.sh watches again, is stopped, starts again: the run that is meant, and the code that it began with."""

import shutil

import pytest
from launch_cloud import COMMAND, FLAGS, ON_DISK, REFUSED, ROOT, WHERE, Cloud


@pytest.mark.parametrize("silent", [(0, 1), (0,)], ids=["both", "one"])
def test_a_run_whose_workers_do_not_answer_is_neither_ended_nor_repeated(silent: tuple[int, ...], cloud: Cloud) -> None:
    cloud.leave_running("until-told")
    for worker in silent:
        cloud.plan(f"break-status-first-{worker}", "at once", "at once")
    again = cloud.start(*FLAGS, *COMMAND)
    cloud.until("tpu_worker.sh wait", "calls")
    (cloud.root / "end").touch()
    _, errors = again.communicate(timeout=150)
    assert again.returncode == 0, errors
    said = "not every worker of first answers (ssh: the connection was refused), and the command may be running there"
    # One that tells of the run is enough.
    assert (said in errors) == (len(silent) == 2)
    assert "running there already" in errors
    assert len(cloud.runs()) == 2
    assert not cloud.calls("tpu_worker.sh halt")


def test_workers_that_were_taken_away_are_not_waited_for(cloud: Cloud) -> None:
    cloud.leave_running("until-told")
    cloud.plan("break-status-first-1", "at once", "at once")
    cloud.plan("before-status", "python3 $FAKE_CLOUD/fake_gcloud.py preempt first")
    result = cloud.launch(*FLAGS, "--max-restarts", "0", *COMMAND)
    assert result.returncode == 0, result.stderr
    assert "asking again" in result.stderr
    assert len(cloud.calls(" create ")) == 1


def test_a_run_that_another_started_meanwhile_is_left_alone(cloud: Cloud) -> None:
    cloud.hosts(1)
    assert cloud.launch(*FLAGS, *ON_DISK).returncode == 0
    cloud.plan("before-start", "bash tpu_worker.sh start other-1 anew vlm eval theirs")
    cloud.plan("first-0", "until-told")
    result = cloud.launch(*FLAGS, "--delete", "--yes", *ON_DISK)
    assert result.returncode == 2
    assert "could not start everywhere: worker 0: another command is running: vlm eval theirs" in result.stderr
    assert len(cloud.calls("tpu_worker.sh halt 60 ")) == 1
    assert "worker 0 running other-1 " in cloud.worker("first", 0, "bash tpu_worker.sh status")
    assert "told to end" not in cloud.worker("first", 0, "cat vlm-jax-run/other-1.log")


def test_stop_lets_the_command_save_and_nobody_starts_it_again(cloud: Cloud) -> None:
    cloud.plan("first-0", "hang")
    cloud.plan("first-1", "hang")
    process = cloud.start(*FLAGS, *COMMAND)
    cloud.until("first-0 hang")
    cloud.until("first-1 hang")
    stopped = cloud.launch("--stop", *WHERE)
    assert stopped.returncode == 0
    assert "nothing was running" not in stopped.stderr
    out, errors = process.communicate(timeout=150)
    assert process.returncode == 75
    assert "ended by --stop: it is not started again" in errors
    assert "told to end" in out
    assert len(cloud.runs()) == 2
    assert cloud.there() == {"first"}
    # A new start is a new start.
    cloud.plan("first-0", "75", "0")
    result = cloud.launch(*FLAGS, *COMMAND)
    assert result.returncode == 0, result.stderr
    assert len(cloud.runs()) == 6


def test_stop_between_two_attempts_counts(cloud: Cloud) -> None:
    cloud.hosts(1)
    cloud.plan("first-0", "75")
    cloud.plan("before-start", "true", "bash tpu_worker.sh stop 600")
    result = cloud.launch(*FLAGS, *ON_DISK)
    assert result.returncode == 75
    assert "the command saved and asks to be started again" in result.stderr
    assert "ended by --stop: it is not started again" in result.stderr
    assert len(cloud.runs()) == 1


def test_stop_where_nothing_runs_says_so(cloud: Cloud) -> None:
    cloud.hosts(1)
    assert cloud.launch(*FLAGS, *ON_DISK).returncode == 0
    result = cloud.launch("--stop", *WHERE)
    assert result.returncode == 0
    assert "worker 0: nothing was running" in result.stderr


def test_a_restart_goes_on_with_the_commit_of_the_start(cloud: Cloud) -> None:
    cloud.hosts(1)
    cloud.plan("first-0", "until-told")
    begun_with = cloud.head()
    process = cloud.start(*FLAGS, *ON_DISK)
    cloud.until("first-0 until-told")
    (cloud.checkout / "new.py").write_text("")
    with (cloud.checkout / "tools/tpu_worker.sh").open("a") as script:
        script.write("# later\n")
    cloud.commit("later")
    cloud.preempt("first")
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    assert len(cloud.runs()) == 2
    assert errors.count(f"installing commit {begun_with} ") == 2
    home = cloud.root / "workers/first-0"
    assert not (home / "vlm-jax/new.py").exists()
    assert (home / "tpu_worker.sh").read_text() == (ROOT / "tools/tpu_worker.sh").read_text()


def test_waiting_for_capacity_is_no_restart(cloud: Cloud) -> None:
    cloud.hosts(1)
    cloud.make("first")
    cloud.plan("refuse", *["yes"] * 5)
    cloud.plan("first-0", "preempted")
    # Nobody sleeps for long here; the cloud is out of reach after the first time.
    cloud.program(
        "bin/sleep",
        'echo "$1" >> "$FAKE_CLOUD/sleeps"\n'
        '[[ $1 != 60 ]] || echo yes > "$FAKE_CLOUD/plans/unreachable"\n'
        f"exec {shutil.which('sleep')} 0.02",
    )
    result = cloud.launch(*FLAGS, "--spot", "--max-restarts", "1", *COMMAND)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count(REFUSED) == 5
    assert result.stderr.count("asking again in ") == 5
    assert result.stderr.count("== restart ") == 1
    assert "gcloud cannot tell about first" in result.stderr
    waits = [n for n in (cloud.root / "sleeps").read_text().split() if n in ("60", "120", "240", "300")]
    assert waits == ["60", "120", "240", "300", "300"]
    assert len(cloud.runs()) == 2
