"""Several real processes train as one does; what they save, any number goes on from; and none outlives another."""

import json
import re
import shutil
import signal

import numpy as np
import pytest
from several import act, batches, train

from vlm_jax.errors import UserError
from vlm_jax.parallel import MeshConfig, build_layout, held_places, processes

MESH = ("--mesh.data", "2", "--mesh.sequence", "2", "--mesh.tensor", "2")
ROWS, SHARDS = 8, 4


def lines(workdir):
    return {line["step"]: line for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())}


def data_at(workdir, step):
    return json.loads((workdir / "checkpoints" / "instruct" / str(step) / "files" / "data.json").read_text())


def same_figures(one, other):
    """Losses up to float32's rounding in sums over devices; every count exactly."""
    assert one.keys() == other.keys()
    for step, line in one.items():
        for name in ("loss", "accuracy"):
            np.testing.assert_allclose(line[name], other[step][name], rtol=1e-5, atol=1e-6)
        if "validation" in line:
            np.testing.assert_allclose(line["validation"]["loss"], other[step]["validation"]["loss"], rtol=1e-5)
        for name in ("tokens_seen", "images_seen", "padding_share", "quarantined", "cut"):
            assert line[name] == other[step][name], (step, name)
        for source, figures in line["sources"].items():
            for name in ("tokens", "examples_seen", "epochs_seen"):
                assert figures[name] == other[step]["sources"][source][name], (step, source, name)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Workdirs of runs that were left alone: of one process with eight devices, and of four with two each."""
    directory = tmp_path_factory.mktemp("straight")
    runs = {count: train(directory / str(count), count, 8 // count, *MESH) for count in (1, 4)}
    for run in runs.values():
        assert set(run.codes()) == {0}, run.said(0)[-3000:]
    return {count: directory / str(count) for count in runs}


def test_four_processes_train_as_one(straight):
    same_figures(lines(straight[1]), lines(straight[4]))
    for step in (2, 4, 6):
        assert data_at(straight[4], step) == data_at(straight[1], step)


def test_four_processes_see_the_batches_of_one(straight):
    """Positions and heads are split over two processes each, so every row is held by two."""
    one, four = (batches(straight[count], ROWS, SHARDS) for count in (1, 4))
    assert len(one) == 6
    assert all(row for batch in one for row in batch)
    assert four[:6] == one


def test_one_process_writes_what_is_shown(straight):
    said = straight[4].with_name("4.said")
    assert "instruct 6/6" in (said / "0.log").read_text()
    for i in (1, 2, 3):
        assert not re.search("instruct|tokenizer|workdir|devices|report", (said / f"{i}.log").read_text())
    assert (straight[4] / "report.html").exists()
    assert not list(straight[4].glob("quarantine-*"))


@pytest.mark.parametrize(
    ("count", "devices", "mesh"),
    [(1, 4, ("--mesh.data", "4")), (2, 2, ("--mesh.data", "1", "--mesh.fsdp", "4"))],
)
def test_what_four_saved_another_number_goes_on_from_on_another_mesh(straight, tmp_path, count, devices, mesh):
    workdir = tmp_path / "run"
    shutil.copytree(straight[4], workdir)
    shutil.rmtree(workdir / "checkpoints" / "instruct" / "6")
    run = train(workdir, count, devices, *mesh)
    assert run.codes() == [0] * count, run.said(0)[-3000:]
    assert "resumed after step 4 of 6" in run.said(0)
    same_figures(lines(straight[1]), lines(workdir))
    assert data_at(workdir, 6) == data_at(straight[1], 6)
    assert batches(workdir, ROWS, SHARDS)[:2] == batches(straight[1], ROWS, SHARDS)[4:]


def test_one_is_killed_and_what_they_had_cached_stays(tmp_path):
    """Two processes with cached features: SIGKILL to one ends the other, at once and in one line."""
    workdir = tmp_path / "run"
    endless = ("--stages.0.steps", "100000", "--stages.0.cache-features", "True", "--checkpoints.every", "100000")
    run = train(workdir, 2, 1, *endless)
    run.wait_for(lambda: "instruct 2/" in run.said(0))
    run.processes[1].send_signal(signal.SIGKILL)
    assert run.codes(60) == [1, -signal.SIGKILL], run.said(0)[-3000:]
    (why,) = [line for line in run.said(0).splitlines() if line.startswith("vlm: ")]
    assert re.fullmatch(r"vlm: process 1 \(.*\) ended without a word: it was killed, or its machine is gone", why)
    assert "Traceback" not in run.said(0)
    encoded = re.search(r"encoding (\d+) pictures once", run.said(0))
    again = train(workdir, 2, 1, *endless)
    again.wait_for(lambda: f"features of {encoded[1]} pictures are cached" in again.said(0))
    assert "encoding" not in again.said(0)
    assert again.codes(0) == ["did not end"] * 2


@pytest.mark.parametrize(
    ("what", "codes", "said"),
    [
        (
            "all are told",
            [2, 2, 2],
            ["what it knows: process 0 has ['no room', 0], process 1 has ['no room', 1]"] * 3,
        ),
        ("one is wrong", [1, 2, 1], ["ended: no room", "no room", "ended: no room"]),
        ("first's disk is full", [2, 2, 2], ["output: No space left on device; free space"] * 3),
        ("one's disk is full", [1, 2, 1], ["ended: output: No space left", "vlm: output: No space", "ended: output"]),
        ("one breaks", [1, 1, 1], ["ended: ZeroDivisionError", "ZeroDivisionError: no reason", "ZeroDivisionError"]),
    ],
)
def test_an_error_of_one_ends_all(tmp_path, what, codes, said):
    run = act(tmp_path, 3, what)
    assert run.codes(60) == codes, "\n".join(map(run.said, range(3)))
    for i, words in enumerate(said):
        assert words in run.said(i)
        assert f"together [0, 1, 2] 3 {i == 0}" in run.said(i)
        assert ("Traceback" in run.said(i)) == (what == "one breaks" and i == 1)


@pytest.mark.parametrize("refused", [0, 1])
def test_a_save_that_one_is_refused_ends_all_soon(tmp_path, refused):
    """What orbax itself tells only after it has waited for the others for 20 minutes."""
    run = act(tmp_path, 2, f"save {tmp_path / 'saved'} {refused}")
    assert run.codes(60) == [2, 2], "\n".join(map(run.said, range(2)))
    for i in range(2):
        assert f"could not save a checkpoint (process {refused}: the disk is full); step 1 is whole" in run.said(i)
    assert [path.name for path in (tmp_path / "saved").iterdir() if path.name.isdigit()] == ["1"]


def test_the_first_is_killed_while_all_compute(tmp_path):
    run = act(tmp_path, 3, "compute")
    run.wait_for(lambda: all("together" in run.said(i) for i in range(3)))
    run.processes[0].send_signal(signal.SIGKILL)
    assert run.codes(60)[0] == -signal.SIGKILL
    for i in (1, 2):
        assert "vlm: process 0 (" in run.said(i), run.said(i)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--coordinator", "127.0.0.1:1", "--processes", "2", "--process", "2"), "it must be from 0 to 1"),
        (("--coordinator", "127.0.0.1:1"), "--processes and --process is missing"),
        (("--coordinator", "nowhere", "--processes", "2", "--process", "0"), "give HOST:PORT"),
        (("--silence", "3"), "give 5 to 50 seconds"),
        (("--silence", "0"), "give 5 to 50 seconds"),
    ],
)
def test_bad_input_is_one_line(arguments, said, root, tmp_path, capsys):
    from vlm_jax.cli import run

    experiment = str(root / "tests" / "parallel" / "processes_experiment.py")
    assert run(["train", experiment, "--workdir", str(tmp_path / "run"), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "run").exists()


def test_a_process_that_is_alone_is_the_first_of_one():
    with processes.joined(None):
        assert processes.is_first()
        assert processes.count() == 1
        assert processes.gather_json({"a": 1}) == [{"a": 1}]
        assert processes.of_first(3) == 3
        assert processes.gather_at_first(4) == [4]
        assert not processes.preemption_requested(1)
        processes.agree(1, "a number")
        processes.wait_for_all()
        processes.leave()
        processes.report_end("nobody hears it")
        with pytest.raises(UserError, match="no"):
            processes.first_does(lambda: (_ for _ in ()).throw(UserError("no")))
    assert held_places(8, build_layout(MeshConfig())) == list(range(8))
