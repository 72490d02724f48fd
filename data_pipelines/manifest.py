"""The manifest of a set of shards: what the files are and how they came about, so that a damaged one is noticed.

A truncated ArrayRecord reads as an empty one without an error, so whoever reads shards compares them with this. It is
written last: a directory without a manifest is no prepared set. It holds no time and no path, so that the same build
gives the same manifest.

    {"format": "array_record",
     "files": [{"name": "shard-00000-of-00002.arrayrecord", "records": 120, "bytes": 65536, "sha256": "…"}, …],
     "records": 231, "bytes": 131072,
     "config": {…}, "config_hash": "…", "code_hash": "…", "versions": {"array_record": "0.8.3", …},
     "licences": ["GPL-2.0-only"], "counts": {"distinct_real_pairs": 950}, "about": {…}}
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from vlm_jax.errors import UserError

MANIFEST = "manifest.json"

_LIBRARIES = ("array_record", "msgpack", "pillow", "opencv-python-headless", "numpy")
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """A file of a set: its name in the directory, how many records and bytes it holds, and its sha256 in hex."""

    name: str
    records: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a directory of shards is made of."""

    files: tuple[ShardFile, ...]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the build was asked for: all that its records depend on, besides the code."""
    config_hash: str = ""
    code_hash: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Of the libraries and packages that took part."""
    licences: tuple[str, ...] = ()
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Figures about the records, such as 'distinct_real_pairs' and 'bad_records'."""
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Anything else that reports say: a title, the kind, a line of description."""
    format: str = "array_record"

    @property
    def records(self) -> int:
        """Records of all files."""
        return sum(file.records for file in self.files)

    @property
    def contents(self) -> str:
        """A digest of the files: the same for the same records in the same order, whoever built them and where."""
        return config_hash({"files": [file.sha256 for file in self.files]})[:16]

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)


def config_hash(config: Mapping[str, Any]) -> str:
    """A digest of a config: of its values, not of the order of its keys.

    Raises:
        TypeError: if it holds what JSON does not.
    """
    text = json.dumps(config, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def code_hash(*paths: Path) -> str:
    """A digest of source files (of directories: all .py files below); by default, of all that prepares corpora."""
    here = Path(__file__).resolve().parent
    own = (*sorted((here / "prepare").glob("*.py")), here / "prepare" / "corpora")
    chosen = paths or (*own, here / "records.py", here / "manifest.py")
    digest = hashlib.sha256()
    for path in chosen:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(path.parent).as_posix()}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide how records are written."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def shard_name(index: int, shards: int, suffix: str = ".arrayrecord") -> str:
    """'shard-00000-of-00004.arrayrecord'."""
    return f"shard-{index:05d}-of-{shards:05d}{suffix}"


def shard_file(path: Path, records: int) -> ShardFile:
    """The entry of a file that is written and closed."""
    return ShardFile(path.name, records, path.stat().st_size, sha256_of(path))


def sha256_of(path: os.PathLike[str]) -> str:
    """The file's sha256 in hex."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes manifest.json into a local directory: all of it or, if this is interrupted, nothing.

    Raises:
        UserError: if the disk refuses.
    """
    path = directory / MANIFEST
    plain = dataclasses.asdict(manifest)
    plain = {"format": plain.pop("format"), "records": manifest.records, "bytes": manifest.bytes, **plain}
    text = json.dumps(plain, indent=1, ensure_ascii=False) + "\n"
    try:
        partial = path.with_name(MANIFEST + ".partial")
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); free space or mend the path") from None


def read_manifest(directory: os.PathLike[str] | str) -> Manifest:
    """Reads manifest.json of a directory, local or remote.

    Raises:
        UserError: if there is none, or it is no manifest.
    """
    path = epath.Path(directory) / MANIFEST
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{os.fspath(directory)}: no {MANIFEST}, so this is no finished set of shards; prepare it again, or give "
            "another path"
        ) from None
    except Exception as error:  # clients of object stores raise what they like, also where one is not installed
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({reason}); mend the path, or prepare the set again") from None
    try:
        return _manifest_of(plain)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a manifest of shards ({error!r}); prepare the set again") from None


def _manifest_of(plain: Any) -> Manifest:
    names = {field.name for field in dataclasses.fields(Manifest)}
    known = {key: value for key, value in plain.items() if key in names}
    files = tuple(ShardFile(**entry) for entry in known.pop("files"))
    for file in files:
        if not (type(file.records) is type(file.bytes) is int and file.records >= 0 and file.bytes >= 0):
            raise ValueError(f"file {file.name}: records {file.records!r}, bytes {file.bytes!r}")
        if os.path.basename(file.name) != file.name:
            raise ValueError(f"file {file.name} is not in the directory")
    manifest = Manifest(**{**known, "files": files, "licences": tuple(known.get("licences", ()))})
    if plain.get("records", manifest.records) != manifest.records:
        raise ValueError(f"{plain['records']} records in all, but {manifest.records} in its files")
    return manifest


def damage(directory: Path, file: ShardFile, contents: bool = True) -> str:
    """What is wrong with a file of a set, or ''.

    Args:
        directory: Where it lies; local.
        file: Its entry in the manifest.
        contents: Whether to read it and compare the checksum, rather than its size alone.
    """
    path = directory / file.name
    try:
        size = path.stat().st_size
        if size != file.bytes:
            return f"has {size:,} bytes instead of {file.bytes:,}"
        if contents and sha256_of(path) != file.sha256:
            return "has changed since it was written (its sha256 differs)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return ""


def verify(directory: os.PathLike[str] | str) -> Iterator[tuple[str, str]]:
    """Compares every file of a set with its manifest, byte by byte.

    Yields:
        (file name, what is wrong with it or ''), one after another, so that a caller can show how far it is.

    Raises:
        UserError: if there is no manifest.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    for file in manifest.files:
        yield file.name, damage(folder, file)
    suffixes = {Path(file.name).suffix for file in manifest.files}
    listed = {file.name for file in manifest.files}
    for path in sorted(folder.iterdir()):
        if path.suffix in suffixes and path.name not in listed:
            yield path.name, "is not in the manifest"


def sets_under(directory: os.PathLike[str] | str) -> list[Path]:
    """Every directory with a manifest, from this one downwards, by name; unfinished ones are left out."""
    root = Path(directory)
    found = (path.parent for path in root.rglob(MANIFEST))
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))


def is_intact(directory: Path, *, same: Callable[[Manifest], bool]) -> Manifest | None:
    """The manifest of a finished set whose files are all as written and for which `same` holds, else None."""
    try:
        manifest = read_manifest(directory)
    except UserError:
        return None
    if not same(manifest) or any(damage(directory, file) for file in manifest.files):
        return None
    return manifest
