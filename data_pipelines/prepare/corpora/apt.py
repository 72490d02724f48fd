"""Debian packages through apt: download of one .deb, by the sources that the machine has, and nothing is installed."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vlm_jax.errors import UserError

NOT_NEEDED = "experiments/quickstart.py needs none of this"


_UNKNOWN = "Unable to locate package"


class Apt:
    """Calls apt-get. Where the machine has no package lists (a container, say), it fetches some of its own, once."""

    def __init__(self, state: Path) -> None:
        """Looks for apt-get.

        Args:
            state: directory for lists of our own; the machine's are left as they are.

        Raises:
            UserError: if there is no apt-get.
        """
        if shutil.which("apt-get") is None:
            raise UserError(
                "the corpora are Debian packages and there is no apt-get here: fetch them on Debian or Ubuntu, or give "
                f"the .deb files with --debs DIR; {NOT_NEEDED}"
            )
        self._state = state
        self._options: list[str] = []

    def download(self, name: str, version: str, into: Path) -> Path:
        """Downloads a package.

        Args:
            name: the package's.
            version: in full; '' = the one that apt would install.
            into: an empty directory for the .deb.

        Raises:
            UserError: if the mirror lacks it, or cannot be reached.
        """
        wanted = f"{name}={version}" if version else name
        why = self._try(wanted, into)
        if why and not self._options:
            self._update()
            again = self._try(wanted, into)
            # Where no list could be fetched either, the first answer says more than that the package is unknown.
            why = why if _UNKNOWN in again else again
        found = sorted(into.glob("*.deb"))
        if not why and len(found) == 1:
            return found[0]
        offered = self._versions(name)
        if version and offered and version not in offered:
            raise UserError(
                f"{name} {version} is no longer on this machine's mirror, which has {', '.join(offered)}: take that "
                "with --any-version (it is written down), or give the .deb file with --debs DIR"
            )
        raise UserError(
            f"{wanted}: apt-get cannot download it ({why or 'it wrote no file'}); check /etc/apt/sources.list and the "
            f"network, or give the .deb file with --debs DIR; {NOT_NEEDED}"
        )

    def _try(self, wanted: str, into: Path) -> str:
        """Why it failed, or ''."""
        return self._call("apt-get", ["download", wanted], into)[0]

    def _versions(self, name: str) -> list[str]:
        """Versions that the mirror has."""
        lines = self._call("apt-cache", ["madison", name], Path.cwd())[1].splitlines()
        return list(dict.fromkeys(line.split("|")[1].strip() for line in lines if line.count("|") >= 2))

    def _update(self) -> None:
        """Package lists of our own. A source that fails is no reason to give up: the package may come from another."""
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (self._state / folder).mkdir(parents=True, exist_ok=True)
        status = self._state / "status"
        status.touch()
        for key, value in (
            ("Dir::State", self._state / "state"),
            ("Dir::State::lists", self._state / "state/lists"),
            ("Dir::State::status", status),
            ("Dir::Cache", self._state / "cache"),
        ):
            self._options += ["-o", f"{key}={value.resolve()}"]
        self._call("apt-get", ["update"], self._state)

    def _call(self, program: str, arguments: Sequence[str], directory: Path) -> tuple[str, str]:
        """(why it failed or '', what it printed)."""
        patience = ["-o", "Acquire::Retries=3", "-o", "Acquire::http::Timeout=60"]
        # apt cannot give up root for a directory that only root may write to, and warns of it at length.
        sandbox = ["-o", "APT::Sandbox::User=root"] if os.getuid() == 0 else []
        done = subprocess.run(
            [program, *patience, *sandbox, *self._options, *arguments],
            cwd=directory,
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode == 0:
            return "", done.stdout
        errors = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        return (errors[0].removeprefix("E:").strip() if errors else f"exit code {done.returncode}"), done.stdout
