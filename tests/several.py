"""Runs of several processes on this machine, each with CPU devices of its own; and what they did.

python -P several.py train RECORD ARGUMENT…      `vlm train`, with the examples of every batch written to RECORD.I
python -P several.py ADDRESS N I ACT             joins N processes, tells so, and does something
"""

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

EXPERIMENT = Path(__file__).with_name("parallel") / "processes_experiment.py"
LIMIT_S = 240


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Several:
    """Processes that were started together, and what each has said."""

    def __init__(self, directory, count, devices, arguments):
        """`arguments(address, index)` gives a process's own."""
        directory.mkdir(parents=True, exist_ok=True)
        flags = f"--xla_force_host_platform_device_count={devices}"
        quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        address = f"127.0.0.1:{free_port()}"
        self.logs = [directory / f"{i}.log" for i in range(count)]
        self.processes = []
        for i, log in enumerate(self.logs):
            # -P: this file's directory has folders of the packages' names.
            command = [sys.executable, "-P", str(Path(__file__)), *map(str, arguments(address, i))]
            with log.open("w") as file:
                self.processes.append(subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **quick}))

    def said(self, index):
        return self.logs[index].read_text(errors="replace")

    def wait_for(self, happened):
        """Waits until something has happened, which must be before any of them ends."""
        end = time.monotonic() + LIMIT_S
        while not happened():
            assert all(process.poll() is None for process in self.processes), self.said(0)[-3000:]
            assert time.monotonic() < end, self.said(0)[-3000:]
            time.sleep(0.005)

    def codes(self, limit=LIMIT_S):
        """Exit codes of all; who does not end in time is killed."""
        end = time.monotonic() + limit
        found = []
        for process in self.processes:
            try:
                found.append(process.wait(max(0.0, end - time.monotonic())))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                found.append("did not end")
        return found


def train(workdir, count, devices, *more, experiment=EXPERIMENT):
    """`vlm train`, each process with so many devices, and more arguments."""

    def arguments(address, index):
        place = ("--coordinator", address, "--processes", count, "--process", index) if count > 1 else ()
        return ("train", f"{workdir}.record.{index}", experiment, "--workdir", workdir, *place, *more)

    return Several(workdir.with_name(f"{workdir.name}.said"), count, devices, arguments)


def act(directory, count, what):
    """Processes that join and do something that has to do with no model."""
    return Several(directory, count, 1, lambda address, index: (address, count, index, what))


def batches(workdir, rows, shards):
    """Ids of the examples of each global batch of training, row by row, from what the processes wrote down."""
    found = []
    for path in sorted(workdir.parent.glob(f"{workdir.name}.record.*")):
        for number, line in enumerate(path.read_text().splitlines()):
            batch = json.loads(line)
            if number == len(found):
                found.append([None] * rows)
            rounds = rows // shards
            for place, ids in enumerate(batch["ids"]):
                row = batch["shards"][place // rounds] + shards * (place % rounds)
                assert found[number][row] in (None, ids), "two processes hold the row, and differ"
                found[number][row] = ids
    return found


def _record(path):
    """Has the loader of training, which has two sources, write down what it gives."""
    from data_pipelines.loader import Loader

    give = Loader.__next__

    def recorded(self):
        batch, info = give(self)
        if len(info.sources) == 2:
            with open(path, "a") as file:
                file.write(json.dumps({"shards": list(self._shards), "ids": info.example_ids}) + "\n")
        return batch, info

    Loader.__next__ = recorded


def _act(address, count, index, what):
    from vlm_jax.errors import RunError, UserError
    from vlm_jax.parallel import processes

    try:
        with processes.joined(processes.find_place(address, count, index, {})):
            import jax
            import numpy as np
            from jax.experimental import multihost_utils

            print("together", processes.gather_json(index), jax.device_count(), processes.is_first(), flush=True)
            if what == "all are told":
                told = ""
                try:
                    processes.first_does(lambda: _raise(UserError("no room")))
                except UserError as error:
                    told = str(error)
                processes.agree([told, min(index, 1)], "what it knows")
            if what == "first's disk is full":
                processes.first_does(_fill)
            if what == "one's disk is full" and index == 1:
                _fill()
            if what.startswith("save"):
                _save(*what.split()[1:], index)
            if what == "one is wrong" and index == 1:
                raise UserError("no room")
            if what == "one breaks" and index == 1:
                raise ZeroDivisionError("no reason")
            while what in ("compute", "one breaks", "one is wrong", "one's disk is full"):
                multihost_utils.process_allgather(np.ones(10))
    except (UserError, RunError) as error:
        print(f"vlm: {error}", file=sys.stderr, flush=True)
        os._exit(2 if isinstance(error, UserError) else 1)


def _raise(error):
    raise error


def _save(directory, refused, index):
    """Two steps, of which the second is refused to one process once its files reach 50 kB."""
    import jax
    import numpy as np

    from vlm_jax.checkpoints import CheckpointManager

    mesh = jax.sharding.Mesh(np.array(jax.devices()), "x")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    values = np.random.default_rng(0).standard_normal(60_000, "float32")
    params = {"kernel": jax.make_array_from_callback(values.shape, sharding, lambda cut: values[cut])}
    manager = CheckpointManager(directory, retry_seconds=5.0)
    try:
        manager.save(1, params, params, {"at": 1}, {"config.json": b"{}"}, wait=True)
        if index == int(refused):
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        manager.save(2, params, params, {"at": 2}, {"config.json": b"{}"})
        manager.wait()
    except Exception:
        manager.give_up()
        raise
    finally:
        manager.close()


def _fill():
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


if __name__ == "__main__":
    if sys.argv[1] == "train":
        from vlm_jax.cli import main

        with contextlib.suppress(FileNotFoundError):
            os.remove(sys.argv[2])
        _record(sys.argv[2])
        main(["train", *sys.argv[3:]])
    else:
        _act(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
