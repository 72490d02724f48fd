"""Brings the corpora's Debian packages here: downloads, compares with the table, unpacks into RAW/NAME/usr/…."""

import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data_pipelines.manifest import sha256_of
from data_pipelines.prepare.corpora.apt import NOT_NEEDED, Apt
from data_pipelines.prepare.corpora.packages import PACKAGES, Package
from vlm_jax.errors import UserError

STAMP = "PACKAGE.json"
"""In RAW/NAME: which version was unpacked there. Written last, so a directory without one is not ours or not whole."""

LICENCES = "LICENCES.md"


@dataclasses.dataclass(frozen=True)
class Taken:
    """A package that lies in RAW."""

    name: str
    version: str
    """'' = unpacked by hand, so nobody knows."""
    sha256: str = ""
    new: bool = False
    """It came with this call."""


def fetch(
    raw: Path, names: Sequence[str] = (), *, debs: Path | None = None, any_version: bool = False
) -> Iterator[Taken]:
    """Fetches packages, one after another, and leaves those that are there. Ends by writing RAW/LICENCES.md.

    Args:
        raw: directory that they are unpacked into.
        names: which of the table; () = all.
        debs: take the .deb files of this directory rather than asking apt.
        any_version: where the pinned version is not to be had, take another one; its version is written down.

    Yields:
        Each package when it is there.

    Raises:
        UserError: if a name is unknown, apt or dpkg-deb is missing, a package cannot be had or is not what the table
            says, or the directory cannot be written.
    """
    wanted = _chosen(names)
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with open(raw / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{raw}: another process is fetching into it; wait for it or stop it") from None
            yield from _fetch_all(raw, wanted, debs, any_version)
            _write_licences(raw)
    except OSError as error:
        raise UserError(f"{raw}: cannot be written ({error.strerror or error}); free space or mend the path") from None


def taken(raw: Path, name: str) -> Taken | None:
    """What lies in RAW/NAME, or None."""
    directory = raw / name
    try:
        stamp = json.loads((directory / STAMP).read_text(encoding="utf-8"))
        return Taken(name, stamp["version"], stamp["sha256"])
    except FileNotFoundError:
        return Taken(name, "") if (directory / "usr").is_dir() else None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{directory / STAMP}: cannot be read; remove {directory} and fetch it again") from None


def versions(raw: Path, names: Sequence[str]) -> Mapping[str, str]:
    """The version of each package that is there; 'unknown' where it was unpacked by hand."""
    found = {name: taken(raw, name) for name in names}
    return {name: each.version or "unknown" for name, each in found.items() if each is not None}


def _chosen(names: Sequence[str]) -> list[Package]:
    known = {each.name for each in PACKAGES}
    for name in names:
        if name not in known:
            raise UserError(f"--only {name}: no such package; there are {', '.join(sorted(known))}")
    return [each for each in PACKAGES if not names or each.name in names]


def _fetch_all(raw: Path, wanted: Sequence[Package], debs: Path | None, any_version: bool) -> Iterator[Taken]:
    missing = [each for each in wanted if taken(raw, each.name) is None]
    apt = Apt(raw / ".apt") if missing and debs is None else None
    if missing and shutil.which("dpkg-deb") is None:
        raise UserError(f"dpkg-deb, which unpacks the corpora's packages, is not here: install dpkg; {NOT_NEEDED}")
    download = raw / ".download"
    try:
        for each in wanted:
            present = taken(raw, each.name)
            if present is None:
                shutil.rmtree(download, ignore_errors=True)
                download.mkdir()
                deb = _given(each, debs, any_version) if debs else _downloaded(each, apt, download, any_version)
                present = _unpack(raw, each, deb, any_version)
            yield present
    finally:
        shutil.rmtree(download, ignore_errors=True)
        shutil.rmtree(raw / ".apt", ignore_errors=True)


def _downloaded(wanted: Package, apt: Apt | None, into: Path, any_version: bool) -> Path:
    assert apt is not None
    try:
        return apt.download(wanted.name, wanted.version, into)
    except UserError:
        if not any_version:
            raise
        return apt.download(wanted.name, "", into)


def _given(wanted: Package, debs: Path, any_version: bool) -> Path:
    """The package's file in the user's directory; apt writes the colon of an epoch as %3a."""
    found = sorted(debs.glob(f"{wanted.name}_*.deb"))
    exact = [path for path in found if path.name.split("_")[1].replace("%3a", ":") == wanted.version]
    if chosen := exact or (found[-1:] if any_version else []):
        return chosen[0]
    instead = f", but {', '.join(path.name for path in found)} (--any-version takes it)" if found else ""
    raise UserError(f"{debs}: no .deb of {wanted.name} {wanted.version}{instead}; download it, or leave out --debs")


def _unpack(raw: Path, wanted: Package, deb: Path, any_version: bool) -> Taken:
    """Checks the file and unpacks it beside its place; the directory gets its name when it is whole."""
    digest = sha256_of(deb)
    version = _dpkg("--field", deb, "Version").strip()
    if version != wanted.version and not any_version:
        raise UserError(
            f"{deb.name}: its version is {version}, not {wanted.version}; --any-version takes it all the same"
        )
    if version == wanted.version and digest != wanted.sha256:
        raise UserError(
            f"{deb.name}: its sha256 is {digest}, not {wanted.sha256} as the table says; it is damaged or not the "
            "package that was meant: get it again"
        )
    partial, place = raw / f".{wanted.name}.partial", raw / wanted.name
    shutil.rmtree(partial, ignore_errors=True)
    _dpkg("--extract", deb, partial)
    stamp = {"name": wanted.name, "version": version, "sha256": digest, "licence": wanted.licence}
    (partial / STAMP).write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(place, ignore_errors=True)
    partial.rename(place)
    return Taken(wanted.name, version, digest, new=True)


def _dpkg(action: str, deb: Path, *arguments: os.PathLike[str] | str) -> str:
    done = subprocess.run(
        ["dpkg-deb", action, os.fspath(deb), *(os.fspath(each) for each in arguments)], capture_output=True, text=True
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0].removeprefix(
            "dpkg-deb: error: "
        )
        raise UserError(f"{deb}: cannot be unpacked ({why}); get it again, or free space")
    return done.stdout


def _write_licences(raw: Path) -> None:
    """A table of what lies in RAW: version, licence, and where the copyright file is."""
    lines = [
        "# Licences of the corpora",
        "",
        "Each package's copyright file has the whole terms and the authors. What is prepared from a package is under",
        "the licence of its files.",
        "",
        "| package | version | licence | what | copyright file |",
        "|---|---|---|---|---|",
    ]
    for each in PACKAGES:
        present = taken(raw, each.name)
        if present is not None:
            path = each.copyright or f"{each.name}/usr/share/doc/{each.name}/copyright"
            link = f"[{path}]({path})" if (raw / path).exists() else f"in the package {path.split('/')[0]}"
            version = present.version or "unknown"
            pinned = "" if version == each.version else f" (the table pins {each.version})"
            lines.append(f"| {each.name} | {version}{pinned} | {each.licence} | {each.what} | {link} |")
    (raw / LICENCES).write_text("\n".join(lines) + "\n", encoding="utf-8")
