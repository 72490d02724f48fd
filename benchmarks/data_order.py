"""Whether the order of the data is exact: killed runs that go on with other hosts and threads, and one whole epoch.

    python benchmarks/data_order.py
    python benchmarks/data_order.py --experiment experiments/mu.py --stage 1 --trials 5 --json data_order.json

Each host is a process of its own that loads its rows of every batch, writes down a digest of each row (all arrays, bit
for bit) with the ids of its examples, and saves its position now and then. A trial starts some hosts with some threads,
ends all of them with SIGKILL at a moment that chance decides, in the middle of a batch or of a save, and goes on from
the newest position that all had saved, with other hosts and threads. Together they must give what one undisturbed host
gave. Then a run of exactly one epoch is killed and continued in the same way: each id must come once, and none may lack
but those that were quarantined.
"""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
from etils import epath
from rich.console import Console
from rich.table import Table

from data_pipelines.loader import host_rows, make_loader, merge_states
from data_pipelines.mixture import DataConfig
from data_pipelines.quarantine import BadRecord, Quarantine
from data_pipelines.sources import open_source
from data_pipelines.template import load_processor
from vlm_jax.config import load_experiment
from vlm_jax.training.workdir import build_processor

LIMIT_S = 600
Rows = dict[tuple[int, int], tuple[str, tuple[str, ...]]]
"""(batch, row of the global batch) -> (digest of its arrays, ids of its examples)."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What one host does."""

    experiment: str
    stage: int
    shards: int
    epoch: bool
    """Each source once, and then the end; else without end."""
    processor: str
    directory: str
    """Takes rows-HOST.jsonl, state-HOST-BATCH.json and quarantine-HOST.jsonl."""
    batches: int
    save_every: int
    host: int = 0
    hosts: int = 1
    threads: int = 0
    prefetch: int = 2
    state: str = ""
    """Joined positions to go on from; '' = the beginning."""
    first: int = 0
    """Number of the first batch."""


def data_of(task: Task) -> SimpleNamespace:
    """The stage's name and data, with so many virtual shards that all numbers of hosts can share them."""
    stage = load_experiment(task.experiment).stages[task.stage]
    data: DataConfig = stage.data
    rows = -(-data.rows // task.shards) * task.shards
    mixture = (
        tuple(dataclasses.replace(entry, max_epochs=1.0) for entry in data.mixture) if task.epoch else data.mixture
    )
    data = dataclasses.replace(data, mixture=mixture, rows=rows, virtual_shards=task.shards)
    return SimpleNamespace(name=stage.name, data=data)


def work(task: Task) -> None:
    """A host: loads, and writes down what it got."""
    stage, directory = data_of(task), Path(task.directory)
    quarantine = Quarantine(directory / f"quarantine-{task.host}.jsonl", limit=1.0)
    options: dict[str, Any] = {"host": task.host, "hosts": task.hosts, "threads": task.threads}
    processor = load_processor(task.processor)
    loader = make_loader(stage, processor, seed=0, quarantine=quarantine, prefetch=task.prefetch, **options)
    if task.state:
        loader.set_state(json.loads(Path(task.state).read_text()))
    rows = host_rows(stage.data, task.host, task.hosts)
    with (directory / f"rows-{task.host}.jsonl").open("w") as file:
        for number, (batch, info) in enumerate(itertools.islice(loader, task.batches), task.first):
            leaves = jax.tree.leaves(batch)
            for local, row in enumerate(rows):
                digest = hashlib.sha256(b"".join(leaf[local].tobytes() for leaf in leaves)).hexdigest()
                file.write(json.dumps([number, int(row), digest, info.example_ids[local]]) + "\n")
            file.flush()
            if (number + 1) % task.save_every == 0:
                path = directory / f"state-{task.host}-{number + 1}.json"
                path.with_suffix(".partial").write_text(json.dumps(loader.get_state()))
                path.with_suffix(".partial").rename(path)
    loader.close()


def start(task: Task) -> list[subprocess.Popen]:
    """All hosts of a run."""
    Path(task.directory).mkdir()
    tasks = [dataclasses.replace(task, host=host) for host in range(task.hosts)]
    commands = [[sys.executable, __file__, "--host", json.dumps(dataclasses.asdict(each))] for each in tasks]
    return [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]


def finish(hosts: Sequence[subprocess.Popen]) -> None:
    """Waits for the end, which must be a good one."""
    for process in hosts:
        _, errors = process.communicate(timeout=LIMIT_S)
        if process.returncode:
            raise SystemExit(f"a host failed with code {process.returncode}:\n{errors[-2000:]}")


def kill_after(hosts: Sequence[subprocess.Popen], directory: Path, batches: int, chance: random.Random) -> None:
    """Ends all hosts a moment after each has loaded so many batches and saved its position."""
    end = time.monotonic() + LIMIT_S
    while any(process.poll() is None for process in hosts) and time.monotonic() < end:
        if newest_common(directory, len(hosts)) >= batches:
            break
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.02))
    for process in hosts:
        process.send_signal(signal.SIGKILL)
    for process in hosts:
        process.communicate()


def written(path: Path) -> Iterator[list[Any]]:
    """The lines of a host's file; half a line of a killed one is passed over."""
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def newest_common(directory: Path, hosts: int, before: float = float("inf")) -> int:
    """The newest batch before a number after which all hosts saved their positions; 0 if there is none."""
    saved = [{int(path.stem.split("-")[2]) for path in directory.glob(f"state-{host}-*.json")} for host in range(hosts)]
    return max((number for number in set.intersection(*saved) if number < before), default=0)


def read_rows(directory: Path, before: float = float("inf")) -> Rows:
    """What the hosts of a run wrote down, of the batches before a number."""
    lines = itertools.chain.from_iterable(map(written, directory.glob("rows-*.jsonl")))
    return {(number, row): (digest, tuple(ids)) for number, row, digest, ids in lines if number < before}


def killed_and_continued(
    base: Task, directory: Path, first: dict[str, Any], second: dict[str, Any], kill_at: int, chance: random.Random
) -> tuple[Rows, int]:
    """All rows of a run that is killed once and goes on with other hosts; and the batch that it went on from."""
    directory.mkdir()
    run = dataclasses.replace(base, directory=str(directory / "killed"), **first | {"batches": 1 << 40})
    kill_after(start(run), directory / "killed", kill_at, chance)
    position = newest_common(directory / "killed", run.hosts, base.batches)
    state = ""
    if position:
        states = [
            json.loads((directory / "killed" / f"state-{host}-{position}.json").read_text())
            for host in range(run.hosts)
        ]
        (directory / "state.json").write_text(json.dumps(merge_states(states)))
        state = str(directory / "state.json")
    rest = dataclasses.replace(base, directory=str(directory / "rest"), state=state, first=position, **second)
    finish(start(dataclasses.replace(rest, batches=base.batches - position)))
    return read_rows(directory / "killed", position) | read_rows(directory / "rest"), position


def random_run(chance: random.Random, hosts: Sequence[int]) -> dict[str, Any]:
    """Hosts, decoding threads and batches ahead."""
    return {"hosts": chance.choice(hosts), "threads": chance.choice([1, 2, 3, 5]), "prefetch": chance.choice([0, 1, 4])}


def trials(base: Task, directory: Path, arguments: argparse.Namespace, chance: random.Random) -> list[dict[str, Any]]:
    """Kills runs, and compares them with an undisturbed one."""
    finish(start(dataclasses.replace(base, directory=str(directory / "straight"))))
    expected, found = read_rows(directory / "straight"), []
    for number in range(arguments.trials):
        first, second = random_run(chance, arguments.hosts), random_run(chance, arguments.hosts)
        kill_at = chance.randint(1, base.batches * 2 // 3)
        rows, position = killed_and_continued(base, directory / f"trial-{number}", first, second, kill_at, chance)
        ids = {place: ids for place, (_, ids) in rows.items()} == {place: ids for place, (_, ids) in expected.items()}
        found.append({
            "first": first, "kill_at": kill_at, "went_on_from": position, "second": second,
            "ids_equal": ids, "bit_equal": rows == expected,
        })  # fmt: skip
        print(f"trial {number + 1}: {'equal' if rows == expected else 'DIFFERS'}", file=sys.stderr, flush=True)
    return found


def epoch(base: Task, directory: Path, chance: random.Random, hosts: Sequence[int]) -> dict[str, Any]:
    """One epoch of every source, killed and continued: how often the ids came."""
    base = dataclasses.replace(base, epoch=True, batches=1 << 40, save_every=10)
    first, second = random_run(chance, hosts), random_run(chance, hosts)
    rows, position = killed_and_continued(base, directory / "epoch", first, second, chance.randint(5, 40), chance)
    times = collections.Counter(id for _, ids in rows.values() for id in ids)
    lines = [line for path in (directory / "epoch").glob("*/quarantine-*.jsonl") for line in path.open()]
    quarantined = {json.loads(line)["id"] for line in lines}
    expected, unreadable = collections.Counter[str](), 0
    for entry in data_of(base).data.mixture:
        source = open_source(entry.source)
        for index in range(len(source)):
            try:
                expected[source[index]["id"]] += 1
            except BadRecord:
                unreadable += 1
    whole = collections.Counter({id.partition("#")[0]: 1 for id in times})
    lacking = [id for id in expected if id not in whole and id not in times and id not in quarantined]
    return {
        "records": expected.total(),
        "distinct_ids": len(expected),
        "quarantined": len(quarantined),
        "unreadable": unreadable,
        "batches": 1 + max(number for number, _ in rows),
        "killed_at": position,
        "lacking": lacking,
        "more_than_once": [id for id, count in times.items() if count > max(1, expected[id])],
    }


def show(result: dict[str, Any]) -> None:
    """The table and the verdict."""
    table = Table("trial", "hosts, threads, ahead", "killed after", "went on from", "then", "ids", "batches")
    for number, trial in enumerate(result["trials"], 1):
        runs = [", ".join(str(value) for value in trial[name].values()) for name in ("first", "second")]
        words = {True: "equal", False: "DIFFER"}
        places = (str(trial["kill_at"]), str(trial["went_on_from"]))
        table.add_row(str(number), runs[0], *places, runs[1], words[trial["ids_equal"]], words[trial["bit_equal"]])
    Console().print(table)
    equal = sum(trial["bit_equal"] for trial in result["trials"])
    print(f"{equal} of {len(result['trials'])} give the same ids and bit-equal batches as one undisturbed run")
    if counts := result["epoch"]:
        print(
            f"one epoch: {counts['records']:,} records, {counts['quarantined']} quarantined, "
            f"{len(counts['lacking'])} lacking, {len(counts['more_than_once'])} more than once"
        )


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="experiments/quickstart.py", help="experiment file (quickstart)")
    parser.add_argument("--stage", type=int, default=0, help="number of its stage, from 0 (0)")
    parser.add_argument("--trials", type=int, default=20, help="(20)")
    parser.add_argument("--batches", type=int, default=60, help="of a trial (60)")
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 3, 4, 6], help="to choose from (1 2 3 4 6)")
    parser.add_argument("--no-epoch", action="store_true", help="leave the epoch out")
    parser.add_argument("--seed", type=int, default=0, help="of the choices and moments")
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--host", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Runs the benchmark; the exit code is 0 if everything was exact."""
    arguments = parse()
    if arguments.host:
        work(Task(**json.loads(arguments.host)))
        return
    chance = random.Random(arguments.seed)
    shards = math.lcm(*arguments.hosts)
    with tempfile.TemporaryDirectory(prefix="data-order-") as temporary:
        directory = Path(temporary)
        build_processor(load_experiment(arguments.experiment)).save(epath.Path(directory / "processor"))
        base = Task(
            str(Path(arguments.experiment).resolve()), arguments.stage, shards, False,
            str(directory / "processor"), "", arguments.batches, 2,
        )  # fmt: skip
        result: dict[str, Any] = {"trials": trials(base, directory, arguments, chance), "epoch": None}
        if not arguments.no_epoch:
            result["epoch"] = epoch(base, directory, chance, arguments.hosts)
    show(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    exact = all(trial["bit_equal"] for trial in result["trials"])
    counts = result["epoch"] or {"lacking": [], "more_than_once": []}
    sys.exit(0 if exact and not counts["lacking"] and not counts["more_than_once"] else 1)


if __name__ == "__main__":
    main()
