"""A stand-in for gcloud with a small memory: TPUs, queued resources, a directory for every worker, a bucket.

Remote commands are really run, by bash, in the worker's directory. Like gcloud, it repeats one whose connection broke.
What goes wrong is planned by files in $FAKE_CLOUD/plans, a line an act: see `plan`. `break-ACTION` breaks the
connection of that action of tpu_worker.sh after half a second, or "at once"; with -NODE-WORKER added, that of this
worker. `before-ACTION` is run on the worker before the action.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

CLOUD = Path(os.environ["FAKE_CLOUD"])
QUOTA = """ERROR: (gcloud.compute.tpus) HttpError accessing <https://tpu>: response: <429>, content <{
  "error": {
    "code": 429,
    "message": "Quota limit 'TPUV4' has been exceeded. Limit: 8 in zone here.",
    "status": "RESOURCE_EXHAUSTED"
  }
}>"""


def fail(text: str, code: int = 1) -> NoReturn:
    print(text, file=sys.stderr)
    sys.exit(code)


def plan(name: str) -> str | None:
    """Takes the first line of a file of plans, if there is one."""
    path = CLOUD / "plans" / name
    lines = path.read_text().splitlines() if path.exists() else []
    if not lines:
        return None
    path.write_text("".join(f"{line}\n" for line in lines[1:]))
    return lines[0]


def read(kind: str, name: str) -> dict:
    path = CLOUD / kind / f"{name}.json"
    if not path.exists():
        fail(f"ERROR: (gcloud) NOT_FOUND: Resource '{name}' was not found")
    return json.loads(path.read_text())


def write(kind: str, name: str, value: dict) -> None:
    path = CLOUD / kind / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(value))
    temporary.rename(path)


def home(node: str, worker: int) -> Path:
    return CLOUD / "workers" / f"{node}-{worker}"


def make_node(name: str, accelerator: str) -> None:
    hosts = int((CLOUD / "hosts").read_text())
    for worker in range(hosts):
        shutil.rmtree(home(name, worker), ignore_errors=True)
        home(name, worker).mkdir(parents=True)
    write("nodes", name, {"state": "READY", "acceleratorType": accelerator, "hosts": hosts})


def power_off(name: str) -> None:
    """Kills what runs on a node's workers, as the end of its machines would."""
    for worker in range(read("nodes", name)["hosts"]):
        supervisor = home(name, worker) / "vlm-jax-run" / "supervisor"
        if supervisor.exists():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(supervisor.read_text()), signal.SIGKILL)


def preempt(name: str) -> None:
    write("nodes", name, {**read("nodes", name), "state": "PREEMPTED"})
    for path in (CLOUD / "queue").glob("*.json"):
        if name in read("queue", path.stem)["nodes"]:
            write("queue", path.stem, {**read("queue", path.stem), "state": "SUSPENDED"})
    power_off(name)


def delete_node(name: str) -> None:
    power_off(name)
    (CLOUD / "nodes" / f"{name}.json").unlink()
    for worker_home in (CLOUD / "workers").glob(f"{name}-*"):
        shutil.rmtree(worker_home, ignore_errors=True)


def describe(value: dict, form: str) -> None:
    fields = {
        "state": value["state"],
        "state.state": value["state"],
        "acceleratorType": f"projects/p/locations/z/acceleratorTypes/{value.get('acceleratorType')}",
        "networkEndpoints[].ipAddress": ";".join(f"10.0.0.{n + 2}" for n in range(value.get("hosts", 0))),
        "state.failedData.error.message": value.get("reason", ""),
    }
    print(fields[re.fullmatch(r"value\((.*)\)", form)[1]])


class Connection(threading.Thread):
    """One worker's ssh: runs the command, again if the connection breaks, and keeps its exit code."""

    def __init__(self, node: str, worker: int, command: str) -> None:
        super().__init__()
        self.node, self.worker, self.command, self.code = node, worker, command, 255

    def run(self) -> None:
        for _ in range(2):
            self.code = self.once()
            if self.code != 255 or read("nodes", self.node)["state"] != "READY":
                return

    def once(self) -> int:
        broken = re.search(r"tpu_worker\.sh (\w+)", self.command)
        breaks = None
        if broken:
            breaks = plan(f"break-{broken[1]}-{self.node}-{self.worker}") or plan(f"break-{broken[1]}")
        environment = {
            **os.environ,
            "HOME": str(home(self.node, self.worker)),
            "PATH": f"{CLOUD / 'worker_bin'}:{os.environ['PATH']}",
            "FAKE_NODE": self.node,
            "FAKE_WORKER": str(self.worker),
        }
        if breaks == "at once":
            print("ssh: the connection was refused", file=sys.stderr)
            return 255
        before = plan(f"before-{broken[1]}") if broken else None
        if before:
            subprocess.run(["bash", "-c", before], env=environment, cwd=environment["HOME"], check=False)
            if read("nodes", self.node)["state"] != "READY":
                return 255
        process = subprocess.Popen(
            ["bash", "-c", self.command], env=environment, cwd=environment["HOME"], start_new_session=True
        )
        since = time.monotonic()
        while process.poll() is None:
            lost = not (CLOUD / "nodes" / f"{self.node}.json").exists()
            if lost or read("nodes", self.node)["state"] != "READY" or (breaks and time.monotonic() - since > 0.5):
                process.kill()
                print("ssh: the connection was closed", file=sys.stderr)
                return 255
            time.sleep(0.02)
        return process.returncode


def workers_of(node: str, which: str) -> range | list[int]:
    value = read("nodes", node)
    if value["state"] != "READY":
        fail(f"ERROR: (gcloud.compute.tpus) the TPU is in state {value['state']}")
    return range(value["hosts"]) if which == "all" else [int(which)]


def ssh(node: str, worker: str, command: str) -> None:
    connections = [Connection(node, n, command) for n in workers_of(node, worker)]
    for connection in connections:
        connection.start()
    for connection in connections:
        connection.join()
    sys.exit(next((connection.code for connection in connections if connection.code), 0))


def scp(paths: list[str], worker: str) -> None:
    *sources, target = paths
    if ":" in target:
        node, folder = target.split(":")
        for n in workers_of(node, worker):
            for source in sources:
                shutil.copy(source, home(node, n) / folder)
        return
    node, path = sources[0].split(":")
    source = home(node, next(iter(workers_of(node, worker)))) / path
    if not source.exists():
        fail("scp: No such file")
    shutil.copy(source, target)


def queued(action: str, name: str, flags: dict[str, str]) -> None:
    if action == "create":
        if plan("refuse"):
            fail(QUOTA)
        names = [flags["node-id"]] if "node-id" in flags else []
        names += [f"{flags['node-prefix']}-{n}" for n in range(int(flags.get("node-count", 0)))]
        value = {"state": "WAITING_FOR_RESOURCES", "nodes": names, "acceleratorType": flags["accelerator-type"]}
        write("queue", name, value)
        return
    value = read("queue", name)
    if action == "delete":
        assert "force" in flags
        for node in value["nodes"]:
            if (CLOUD / "nodes" / f"{node}.json").exists():
                delete_node(node)
        (CLOUD / "queue" / f"{name}.json").unlink()
        return
    describe(value, flags["format"])
    if value["state"] == "WAITING_FOR_RESOURCES":
        reason = plan("queue-fails")
        if not reason:
            for node in value["nodes"]:
                make_node(node, value["acceleratorType"])
        write("queue", name, {**value, "state": "FAILED" if reason else "ACTIVE", "reason": reason or ""})


def tpu_vm(action: str, names: list[str], flags: dict[str, str]) -> None:
    if action == "scp":
        scp(names, flags["worker"])
    elif action == "ssh":
        ssh(names[0], flags["worker"], flags["command"])
    elif action == "describe":
        describe(read("nodes", names[0]), flags["format"])
    elif action == "start":
        write("nodes", names[0], {**read("nodes", names[0]), "state": "READY"})
    elif action == "delete":
        read("nodes", names[0])
        delete_node(names[0])
    elif action == "create":
        if plan("refuse"):
            fail(QUOTA)
        make_node(names[0], flags["accelerator-type"])


def main(words: list[str]) -> None:
    with (CLOUD / "calls").open("a") as calls:
        calls.write(shlex.join(words) + "\n")
    flags: dict[str, str] = {}
    names: list[str] = []
    rest = [word for word in words if word != "alpha"]
    while rest:
        word = rest.pop(0)
        if word in ("--project", "--zone"):
            flags[word[2:]] = rest.pop(0)
        elif word.startswith("--"):
            key, _, value = word[2:].partition("=")
            flags[key] = value
        else:
            names.append(word)
    if names[:2] == ["storage", "cp"]:
        source = CLOUD / "bucket" / names[2].removeprefix("gs://")
        if not source.exists():
            fail("ERROR: (gcloud.storage.cp) The following URLs matched no objects or files: " + names[2])
        shutil.copy(source, names[3])
        return
    if (flags["project"], flags["zone"]) != ("mine", "here"):
        fail("another project or zone", 3)
    if names[3] == "describe" and plan("unreachable"):
        fail("ERROR: (gcloud) the token has expired")
    if names[2] == "queued-resources":
        queued(names[3], names[4], flags)
    else:
        tpu_vm(names[3], names[4:], flags)


if __name__ == "__main__":
    if sys.argv[1] == "preempt":
        preempt(sys.argv[2])
    else:
        main(sys.argv[1:])
