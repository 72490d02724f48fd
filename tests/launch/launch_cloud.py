"""A checkout with launch_tpu.sh, and the stand-in for Google Cloud that it talks to."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAKES = Path(__file__).resolve().parent
WHERE = ["--name", "first", "--project", "mine", "--zone", "here"]
FLAGS = [*WHERE, "--accelerator", "v4-8"]
COMMAND = ["--", "vlm", "train", "experiments/mu.py", "--workdir", "gs://shared", "--note", "два 'слова' $HOME"]
ON_DISK = ["--", "vlm", "train", "experiments/mu.py", "--workdir", "runs/here"]
REFUSED = "Quota limit 'TPUV4' has been exceeded. Limit: 8 in zone here."

SLEEP = f"""#!/bin/sh
# A twentieth of the time, for the launcher and for the workers.
case $1 in
  *.*) exec {shutil.which("sleep")} 0.01 ;;
  *) exec {shutil.which("sleep")} $(($1 / 20)).$(printf %02d $(($1 % 20 * 5))) ;;
esac
"""


class Cloud:
    """A checkout with launch_tpu.sh, and the cloud it talks to, in one directory."""

    def __init__(self, root: Path) -> None:
        self.root, self.checkout = root, root / "checkout"
        for folder in ("plans", "worker_bin", "bin", "queue", "nodes"):
            (root / folder).mkdir()
        for name in ("launch_tpu.sh", "tools", "requirements/base.lock", "requirements/tpu.lock"):
            target = self.checkout / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
        self.commit("first")
        self.hosts(2)
        shutil.copy(FAKES / "fake_gcloud.py", root)
        self.program("bin/gcloud", f'exec {sys.executable} -S "$FAKE_CLOUD/fake_gcloud.py" "$@"')
        self.program("bin/sleep", SLEEP)
        self.program("worker_bin/curl", 'echo "$FAKE_WORKER"')
        self.program("worker_bin/python3.11", (FAKES / "worker_python.sh").read_text())
        self.program("worker_bin/vlm", (FAKES / "worker_vlm.sh").read_text())

    def program(self, name: str, text: str) -> None:
        (self.root / name).write_text(text if text.startswith("#!") else f"#!/usr/bin/env bash\n{text}\n")
        (self.root / name).chmod(0o755)

    def hosts(self, number: int) -> None:
        """So many will each TPU have that is made from now on."""
        (self.root / "hosts").write_text(str(number))

    def commit(self, message: str) -> None:
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "--allow-empty", "-m", message]):
            subprocess.run([*git, *words], cwd=self.checkout, check=True)

    def head(self) -> str:
        """The checkout's last commit, as the launcher names it."""
        words = ["git", "rev-parse", "HEAD"]
        return subprocess.run(words, cwd=self.checkout, check=True, capture_output=True, text=True).stdout[:10]

    def plan(self, name: str, *acts: str) -> None:
        (self.root / "plans" / name).write_text("".join(f"{act}\n" for act in acts))

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        return {**os.environ, "FAKE_CLOUD": str(self.root), "PATH": path}

    def make(self, name: str, queued: bool = False) -> None:
        """Makes a TPU without the launcher."""
        what = ["queued-resources", "create", name, f"--node-id={name}"] if queued else ["tpu-vm", "create", name]
        flags = ["--project", "mine", "--zone", "here", "--accelerator-type=v4-8"]
        subprocess.run(["gcloud", "compute", "tpus", *what, *flags], env=self.environment, check=True)

    def worker(self, node: str, number: int, command: str) -> str:
        """Runs a command on a worker, as another user could."""
        words = [*WHERE[2:], f"--worker={number}", f"--command={command}"]
        gcloud = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", node, *words]
        return subprocess.run(gcloud, env=self.environment, check=True, capture_output=True, text=True).stdout

    def preempt(self, node: str) -> None:
        program = [sys.executable, str(self.root / "fake_gcloud.py"), "preempt", node]
        subprocess.run(program, env=self.environment, check=True)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "launch_tpu.sh", *arguments],
            cwd=self.checkout,
            env=self.environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            # Where the tests run in the background, a shell has Ctrl-C ignored, and its children cannot trap it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def launch(self, *arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, errors = process.communicate(answer, timeout=150)
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def calls(self, *words: str) -> list[str]:
        path = self.root / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if all(word in line for word in words)]

    def runs(self) -> list[str]:
        """A line for every command that a worker ran: worker, what was planned for it, arguments."""
        return (self.root / "runs").read_text().splitlines()

    def there(self) -> set[str]:
        """TPUs and queued resources that somebody pays for."""
        return {path.stem for kind in ("nodes", "queue") for path in (self.root / kind).glob("*.json")}

    def until(self, what: str, where: str = "runs") -> None:
        """Waits until this is among the runs, or the calls."""
        for _ in range(1200):
            if (self.root / where).exists() and what in (self.root / where).read_text():
                return
            time.sleep(0.05)
        raise AssertionError(f"no {what} within a minute")

    def leave_running(self, act: str) -> None:
        """Starts the command on both workers, and ends the watching; forgets the calls of that."""
        for worker in range(2):
            self.plan(f"first-{worker}", act)
        process = self.start(*FLAGS, *COMMAND)
        for worker in range(2):
            self.until(f"first-{worker} {act}")
        self.until("tpu_worker.sh wait", "calls")
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
        (self.root / "calls").unlink()

    def processes(self) -> list[int]:
        """Those that were started for this cloud, by their environment."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"FAKE_CLOUD={self.root}".encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found
