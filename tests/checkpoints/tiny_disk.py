"""A disk that is really full for a process, and is freed while it runs."""

import os
import resource
import subprocess
import sys
from pathlib import Path

LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
os.execv(sys.argv[2], sys.argv[2:])
"""


class Tmpfs:
    """A file system in memory, in a name space of its own that lives as long as a process that sleeps in it."""

    def __init__(self, directory, room, ballast):
        """A directory for at most `room` bytes, beside which `ballast` bytes lie in the way."""
        self._inside = directory
        mount = (
            'mount -t tmpfs -o size="$1" tmpfs "$2" && head -c "$3" /dev/zero > "$2/ballast" && echo ready && '
            "exec sleep 600"
        )
        self._user = [] if os.geteuid() == 0 else ["--map-root-user"]
        command = ["unshare", *self._user, "--mount", "sh", "-c", mount, "sh", str(room + ballast), str(directory)]
        self._holder = subprocess.Popen([*command, str(ballast)], stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        self.works = self._holder.stdout.readline() == "ready\n"

    @property
    def path(self):
        """The directory, as this process sees it."""
        return Path(f"/proc/{self._holder.pid}/root{self._inside}")

    def start(self, *command, **options):
        """Starts a process that sees it as the directory that was given."""
        own = ["--user", "--preserve-credentials"] if self._user else []
        enter = ["nsenter", "--target", str(self._holder.pid), *own, "--mount"]
        return subprocess.Popen([*enter, *command], **options)

    def free(self, process):
        """Makes room."""
        (self.path / "ballast").unlink()

    def close(self):
        """The files are gone then."""
        self._holder.kill()
        self._holder.wait()


class LargestFile:
    """Where nothing may be mounted: a limit on the size of files, which makes write() fail too, and can be lifted."""

    def __init__(self, directory, largest):
        self.path, self._largest = Path(directory), largest

    def start(self, *command, **options):
        """Starts a process that may write no larger file."""
        return subprocess.Popen([sys.executable, "-c", LIMITED, str(self._largest), *command], **options)

    def free(self, process):
        """Makes room."""
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def close(self):
        """Nothing is left to do."""


def tiny_disk(directory, room, ballast, largest):
    """A full disk, of the kind that this machine allows.

    Args:
        directory: an empty one.
        room: bytes that may be written before it is full, and with `ballast` more after it was freed.
        ballast: see above.
        largest: bytes of a file, where that has to do.
    """
    disk = Tmpfs(directory, room, ballast)
    if disk.works:
        return disk
    disk.close()
    return LargestFile(directory, largest)
