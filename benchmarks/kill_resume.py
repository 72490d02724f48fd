"""Kills a run with SIGKILL at random moments, again and again, and compares what it ends as with an undisturbed run.

    python benchmarks/kill_resume.py [--kills 20] [--processes 1] [--experiment experiments/mu.py] [--json FILE]
        [overrides]

One run is left alone and keeps every checkpoint. Another is killed and started again until it is finished; if it is
finished before all kills are spent, the rest hit a new one. A kill waits for up to half the time that the whole run
trains, after the first step of an attempt; half of them wait then for the next save, and hit a little after it began.
A kill counts as bit-equal if the newest whole checkpoint that it left, and the end of the run that it hit, are those of
the undisturbed run: parameters, optimiser state, position in the data, loss of every step.

With several processes, which share the devices of this machine's CPU, each kill hits one of them by chance. The others
must then end by themselves, with code 1 and a line that says why; all are started again, as a launcher would do.

The undisturbed run compiles; the others load what it compiled from a cache (JAX_COMPILATION_CACHE_DIR, in a temporary
directory), so equal ends also say that cached and fresh executables compute the same bits.
"""

import argparse
import dataclasses
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vlm_jax.config import load_experiment

ROOT = Path(__file__).resolve().parents[1]
STEP_LINE = re.compile(r"^\S+ \d+/\d+ ", re.MULTILINE)
LIMIT_S = 600

State = tuple[dict[str, str], Any]
"""(checksums of parameters and optimiser state, position in the data) of a checkpoint."""


@dataclasses.dataclass
class Kill:
    """What one kill hit, and what was there after it."""

    number: int
    run: int
    aim: str
    """any moment, or save."""
    delay_ms: float
    """After the attempt's first step, or after a save began."""
    in_save: bool
    """Whether it left an unfinished save."""
    newest: str | None
    """STAGE/STEP of the newest whole checkpoint afterwards, from which the next attempt goes on."""
    newest_equal: bool
    victim: int = 0
    """The process that was hit."""
    others_ended_s: float = 0.0
    """Until the last of the others had ended by itself."""
    end_equal: bool = False

    @property
    def bit_equal(self) -> bool:
        """Whether nothing differs from the undisturbed run."""
        return self.newest_equal and self.end_equal


class Runs:
    """Starts attempts of one experiment and reads what they leave."""

    def __init__(self, directory: Path, experiment: str, overrides: list[str], processes: int) -> None:
        self.directory, self._experiment, self._overrides = directory, experiment, overrides
        self._processes = processes
        cache = {"JAX_COMPILATION_CACHE_DIR": str(directory / "cache")}
        for name, value in {"MIN_COMPILE_TIME_SECS": "0", "MIN_ENTRY_SIZE_BYTES": "-1"}.items():
            cache[f"JAX_PERSISTENT_CACHE_{name}"] = value
        self._environment = {**os.environ, **cache}
        self._attempts = 0

    def start(self, workdir: Path, *more: str) -> "Attempt":
        """Starts `vlm train`."""
        self._attempts += 1
        command = [sys.executable, "-m", "vlm_jax.cli", "train", self._experiment, "--workdir", str(workdir)]
        command += [*self._overrides, *more]
        logs = [self.directory / f"attempt-{self._attempts}.{i}.log" for i in range(self._processes)]
        place = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(self._processes), "--process"]
        processes = []
        for i, log in enumerate(logs):
            which = [*place, str(i)] if self._processes > 1 else []
            with log.open("w") as file:
                processes.append(
                    subprocess.Popen([*command, *which], stdout=file, stderr=file, env=self._environment, cwd=ROOT)
                )
        return Attempt(processes, logs)


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclasses.dataclass
class Attempt:
    """The processes that train together."""

    processes: list[subprocess.Popen[bytes]]
    logs: list[Path]

    def wait_for(self, happened: Any) -> bool:
        """Waits until something has happened; False if a process ended before."""
        end = time.monotonic() + LIMIT_S
        while not happened():
            if any(process.poll() is not None for process in self.processes):
                return False
            if time.monotonic() > end:
                for process in self.processes:
                    process.kill()
                raise SystemExit(f"nothing happened for {LIMIT_S} s; see {self.logs[0]}")
            time.sleep(0.001)
        return True

    def has_stepped(self) -> bool:
        """Whether a first step has been logged."""
        return STEP_LINE.search(self.logs[0].read_text(errors="replace")) is not None

    def finish(self) -> None:
        """Waits for the end, which must be a good one."""
        self._expect({0})

    def kill(self, victim: int) -> float | None:
        """Kills one process; how long the others took to end by themselves, None if it had ended before.

        With one that had ended the others must end well.
        """
        self.processes[victim].send_signal(signal.SIGKILL)
        if self.processes[victim].wait() != -signal.SIGKILL:
            self._expect({0})
            return None
        began = time.monotonic()
        self._expect({0, 1}, victim)  # 0 if all had parted already
        return time.monotonic() - began

    def _expect(self, codes: set[int], but: int | None = None) -> None:
        for i, (process, log) in enumerate(zip(self.processes, self.logs, strict=True)):
            if i != but and process.wait(LIMIT_S) not in codes:
                text = log.read_text(errors="replace")[-2000:]
                raise SystemExit(f"process {i} ended with code {process.returncode}, not {codes}:\n{text}")


def unfinished_saves(workdir: Path) -> list[Path]:
    """What saves that are under way, or were killed, have in the workdir."""
    return [path for path in workdir.glob("checkpoints/*/*") if "orbax-checkpoint-tmp" in path.name]


def checkpoints(workdir: Path, stages: list[str]) -> dict[str, State]:
    """{STAGE/STEP: what it holds} of every whole checkpoint, oldest first."""
    found = {}
    for stage in stages:
        steps = [path for path in workdir.glob(f"checkpoints/{stage}/*") if path.name.isdigit()]
        for path in sorted(steps, key=lambda path: int(path.name)):
            try:
                sums = json.loads((path / "files" / "checksums.json").read_text())
                data = json.loads((path / "files" / "data.json").read_text())
            except FileNotFoundError:  # a kill hit the deletion of an old step
                continue
            arrays = {name: value for name, value in sums.items() if name.startswith(("params/", "optimizer/"))}
            found[f"{stage}/{path.name}"] = (arrays, data)
    return found


def losses(workdir: Path) -> dict[tuple[str, int], tuple[float, int]]:
    """{(stage, step): (loss, tokens seen)} of metrics.jsonl."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {(line["stage"], line["step"]): (line["loss"], line["tokens_seen"]) for line in lines}


def kill_once(
    attempt: Attempt, workdir: Path, aim: str, window_s: float, chance: random.Random
) -> tuple[float, int, float] | None:
    """Kills a process of the attempt at a moment that chance decides, or nothing if that is finished before.

    Returns:
        The delay in ms, which process it was, and for how many seconds the others lived on.
    """
    if not attempt.wait_for(attempt.has_stepped):
        return None
    delay = chance.uniform(0, window_s)
    end = time.monotonic() + delay
    if not attempt.wait_for(lambda: time.monotonic() >= end):
        return None
    if aim == "save":
        if not attempt.wait_for(lambda: unfinished_saves(workdir)):
            return None
        delay = chance.uniform(0, 0.05)
        time.sleep(delay)
    victim = chance.randrange(len(attempt.processes))
    lived_on = attempt.kill(victim)
    return None if lived_on is None else (1000 * delay, victim, lived_on)


def kill_and_resume(
    runs: Runs, stages: list[str], straight: Path, steady_s: float, kills: int, chance: random.Random
) -> list[Kill]:
    """Spends all kills on as few runs as will take them, and finishes every run."""
    expected, expected_losses = checkpoints(straight, stages), losses(straight)
    last = list(expected)[-1]
    done: list[Kill] = []
    run = 0
    while len(done) < kills:
        run += 1
        workdir = runs.directory / f"killed-{run}"
        of_run: list[Kill] = []
        while len(done) + len(of_run) < kills:
            aim = chance.choice(["any moment", "save"])
            attempt = runs.start(workdir)
            hit = kill_once(attempt, workdir, aim, steady_s / 2, chance)
            if hit is None:
                attempt.finish()
                break
            delay, victim, lived_on = hit
            left = checkpoints(workdir, stages)
            newest = list(left)[-1] if left else None
            equal = newest is None or left[newest] == expected[newest]
            number, in_save = len(done) + len(of_run) + 1, bool(unfinished_saves(workdir))
            of_run.append(Kill(number, run, aim, round(delay, 1), in_save, newest, equal, victim, round(lived_on, 1)))
            where = "in a save" if in_save else "between saves"
            print(f"kill {number}: run {run}, process {victim}, {where}, left {newest}", flush=True)
        runs.start(workdir).finish()
        equal = checkpoints(workdir, stages)[last] == expected[last] and losses(workdir) == expected_losses
        done += [dataclasses.replace(kill, end_equal=equal) for kill in of_run]
    return done


def report(kills: list[Kill], seconds: float) -> None:
    """Prints the table and the verdict."""
    table = Table(
        "kill", "run", "process", "others ended", "aimed at", "in a save", "went on from", "checkpoint", "end of run"
    )
    for kill in kills:
        words = {True: "equal", False: "DIFFERS"}
        went_on = kill.newest or "the start"
        hit = "yes" if kill.in_save else "no"
        others = f"after {kill.others_ended_s:.1f} s"
        cells = (str(kill.number), str(kill.run), str(kill.victim), others, kill.aim, hit, went_on)
        table.add_row(*cells, words[kill.newest_equal], words[kill.end_equal])
    Console().print(table)
    equal, in_save = sum(kill.bit_equal for kill in kills), sum(kill.in_save for kill in kills)
    where = f"{in_save} kills landed in a save, {len(kills) - in_save} between saves"
    went_on = sum(kill.newest is not None for kill in kills)
    print(f"{equal} of {len(kills)} bit-equal; {where}; {went_on} left a whole checkpoint; ", end="")
    print(f"{kills[-1].run} runs; {seconds:.0f} s")


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The arguments, and overrides of the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1, help="that train together, each with devices of its own")
    parser.add_argument("--experiment", default=str(ROOT / "experiments" / "mu.py"))
    parser.add_argument("--steps", type=int, default=60, help="of each stage")
    parser.add_argument("--save-every", type=int, default=5, help="steps between two saves")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--json", metavar="FILE", help="write the result here too")
    parser.allow_abbrev = False
    return parser.parse_known_args()


def main() -> None:
    """Runs the benchmark; the exit code is 0 if every kill was bit-equal."""
    arguments, rest = parse()
    names = [stage.name for stage in load_experiment(arguments.experiment).stages]
    steps = [word for i in range(len(names)) for word in (f"--stages.{i}.steps", str(arguments.steps))]
    overrides = [*steps, "--checkpoints.every", str(arguments.save_every), "--log-every", "1", *rest]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill-resume-") as temporary:
        runs = Runs(Path(temporary), str(Path(arguments.experiment).resolve()), overrides, arguments.processes)
        straight = runs.directory / "straight"
        attempt = runs.start(straight, "--checkpoints.keep-last", "1000000")
        attempt.finish()
        lines = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
        seconds = sorted(after["seconds"] - before["seconds"] for before, after in itertools.pairwise(lines))
        steady_s = sum(seconds[: -2 * len(names)])  # the slowest steps are those that compile
        print(f"undisturbed: {len(lines)} steps, {steady_s:.1f} s of them without compiling", flush=True)
        kills = kill_and_resume(runs, names, straight, steady_s, arguments.kills, random.Random(arguments.seed))
        took = time.monotonic() - began
        report(kills, took)
    equal = sum(kill.bit_equal for kill in kills)
    if arguments.json:
        result = {
            "kills": len(kills),
            "processes": arguments.processes,
            "others_ended_s": max(kill.others_ended_s for kill in kills),
            "bit_equal": equal,
            "in_save": sum(kill.in_save for kill in kills),
            "seconds": round(took, 1),
            "trials": [{**dataclasses.asdict(kill), "bit_equal": kill.bit_equal} for kill in kills],
        }
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if equal == len(kills) else 1)


if __name__ == "__main__":
    main()
