"""A manifest comes back as it was written, and whatever has changed since is noticed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.manifest import (
    Manifest,
    code_hash,
    config_hash,
    is_intact,
    read_manifest,
    sets_under,
    shard_file,
    verify,
    write_manifest,
)
from vlm_jax.errors import UserError


@pytest.fixture
def directory(tmp_path) -> Path:
    """A set of two files and their manifest."""
    for name, data in (("a.tar", b"one"), ("b.tar", b"second")):
        (tmp_path / name).write_bytes(data)
    files = (shard_file(tmp_path / "a.tar", 1), shard_file(tmp_path / "b.tar", 2))
    write_manifest(tmp_path, Manifest(files, {"языки": ["ru"]}, "c", "d", {"a": "1"}, ("MIT",), {"bad": 0}, {"x": 1}))
    return tmp_path


def test_it_comes_back_as_it_was(directory: Path) -> None:
    manifest = read_manifest(directory)
    assert manifest.records == 3
    assert manifest.bytes == 9
    assert manifest.config == {"языки": ["ru"]}
    assert manifest.licences == ("MIT",)
    assert manifest.about == {"x": 1}
    before = (directory / "manifest.json").read_bytes()
    write_manifest(directory, manifest)
    assert (directory / "manifest.json").read_bytes() == before
    assert sorted(os.listdir(directory)) == ["a.tar", "b.tar", "manifest.json"]


def test_sound_files_verify(directory: Path) -> None:
    assert list(verify(directory)) == [("a.tar", ""), ("b.tar", "")]


def test_every_damage_is_named(directory: Path) -> None:
    (directory / "a.tar").write_bytes(b"ono")
    (directory / "b.tar").write_bytes(b"secon")
    (directory / "c.tar").write_bytes(b"")
    assert dict(verify(directory)) == {
        "a.tar": "has changed since it was written (its sha256 differs)",
        "b.tar": "has 5 bytes instead of 6",
        "c.tar": "is not in the manifest",
    }
    (directory / "a.tar").unlink()
    assert next(iter(verify(directory))) == ("a.tar", "is missing")


def test_intact_means_this_set_and_every_byte(directory: Path) -> None:
    assert is_intact(directory, same=lambda found: found.config_hash == "c") == read_manifest(directory)
    assert is_intact(directory, same=lambda found: found.config_hash == "other") is None
    (directory / "a.tar").write_bytes(b"ono")
    assert is_intact(directory, same=lambda _: True) is None
    assert is_intact(directory / "nowhere", same=lambda _: True) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"records": 4}, "4 records in all, but 3 in its files"),
        ({"files": [{"name": "a.tar"}]}, "missing 3 required"),
        ({"files": [{"name": "../a.tar", "records": 1, "bytes": 3, "sha256": ""}]}, "not in the directory"),
        ({"files": [{"name": "a.tar", "records": -1, "bytes": 3, "sha256": ""}]}, "records -1"),
        ({"files": [{"name": "a.tar", "records": "3", "bytes": 3, "sha256": ""}]}, "records '3'"),
        ({"files": None}, "NoneType"),
    ],
)
def test_what_is_no_manifest_is_refused(directory: Path, change: dict, reason: str) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=reason):
        read_manifest(directory)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\ufeff{}", "[1]"])
def test_neither_is_broken_json(directory: Path, text: str) -> None:
    (directory / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: .*prepare the set again"):
        read_manifest(directory)


def test_a_directory_without_one_is_no_finished_set(tmp_path) -> None:
    with pytest.raises(UserError, match=r"no manifest\.json, so this is no finished set"):
        read_manifest(tmp_path)


def test_sets_are_found_and_unfinished_ones_are_not(directory: Path, tmp_path_factory) -> None:
    root = tmp_path_factory.mktemp("out")
    manifest = read_manifest(directory)
    for name in ("captions/birds/train", "captions/birds/.test.partial", "text/ru"):
        (root / name).mkdir(parents=True)
        write_manifest(root / name, manifest)
    (root / "empty").mkdir()
    assert sets_under(root) == [root / "captions/birds/train", root / "text/ru"]


def test_a_config_is_its_values_not_their_order() -> None:
    assert config_hash({"a": 1, "b": [1, 2]}) == config_hash({"b": (1, 2), "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
    assert config_hash({"a": "\ud800"}) != config_hash({"a": ""})


def test_the_code_is_every_file_by_name_and_contents(tmp_path) -> None:
    package = tmp_path / "package"
    (package / "deep").mkdir(parents=True)
    (package / "deep/a.py").write_text("a = 1")
    seen = {code_hash(package)}
    (package / "deep/a.py").write_text("a = 2")
    seen.add(code_hash(package))
    (package / "deep/a.py").rename(package / "deep/b.py")
    seen.add(code_hash(package))
    (package / "c.py").write_text("")
    seen.add(code_hash(package))
    (package / "notes.txt").write_text("not code")
    assert len(seen) == 4
    assert code_hash(package) in seen


def test_a_kill_leaves_the_old_manifest_or_the_new_one(directory: Path) -> None:
    big = {str(number): "x" * 1000 for number in range(3000)}
    program = (
        "import dataclasses, pathlib, sys\nfrom data_pipelines.manifest import read_manifest, write_manifest\n"
        "place = pathlib.Path(sys.argv[1])\nold = read_manifest(place)\nnew = dataclasses.replace(old, about="
        "{str(number): 'x' * 1000 for number in range(3000)})\nprint(flush=True)\n"
        "while True:\n    write_manifest(place, new)\n    write_manifest(place, old)\n"
    )
    old = read_manifest(directory)
    for _ in range(2):
        child = subprocess.Popen([sys.executable, "-c", program, str(directory)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        try:
            child.wait(timeout=0.15)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        assert read_manifest(directory) in (old, dataclasses.replace(old, about=big))
        write_manifest(directory, old)
