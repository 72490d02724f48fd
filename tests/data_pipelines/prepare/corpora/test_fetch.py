"""Real .deb files, made here, and the machine's own apt-get against a repository in a directory."""

import dataclasses
import hashlib
import os
import shutil
import subprocess

import pytest

from data_pipelines.prepare.corpora import fetch as fetching
from data_pipelines.prepare.corpora.fetch import STAMP, Taken, fetch, taken, versions
from data_pipelines.prepare.corpora.packages import Package
from vlm_jax import cli
from vlm_jax.errors import UserError

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="Debian packages need dpkg-deb")


def make_deb(directory, name, version="1:2.0-1", text="content"):
    """Writes NAME_VERSION_all.deb with a file and a copyright, and returns its path."""
    tree = directory / f"tree-{name}"
    for path, content in (
        ("DEBIAN/control", f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: A <a@b>\n"),
        (f"usr/share/{name}/file.txt", text),
        (f"usr/share/doc/{name}/copyright", "public domain"),
    ):
        file = tree / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if path != "DEBIAN/control" else content + "Description: a test\n")
    deb = directory / f"{name}_{version.replace(':', '%3a')}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, deb], check=True, capture_output=True)
    shutil.rmtree(tree)
    return deb


def entry(deb, **changes):
    name, version = deb.name.split("_")[:2]
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    fields = {"version": version.replace("%3a", ":"), "sha256": digest, "licence": "CC0-1.0", "what": "a test"}
    return Package(name, **{**fields, **changes})


@pytest.fixture
def debs(tmp_path, monkeypatch):
    """A directory of two packages, which are the table."""
    directory = tmp_path / "debs"
    directory.mkdir()
    table = tuple(entry(make_deb(directory, name)) for name in ("birds", "trees"))
    monkeypatch.setattr(fetching, "PACKAGES", table)
    return directory


def replace_entry(monkeypatch, name, **changes):
    table = (dataclasses.replace(each, **changes) if each.name == name else each for each in fetching.PACKAGES)
    monkeypatch.setattr(fetching, "PACKAGES", tuple(table))


def test_packages_are_unpacked_once_and_their_licences_listed(debs, tmp_path):
    raw = tmp_path / "raw"
    first = list(fetch(raw, debs=debs))
    assert [(each.name, each.version, each.new) for each in first] == [
        ("birds", "1:2.0-1", True),
        ("trees", "1:2.0-1", True),
    ]
    assert (raw / "birds/usr/share/birds/file.txt").read_text() == "content"
    assert (raw / "birds/usr/share/doc/birds/copyright").exists()
    shutil.rmtree(debs)
    assert [each.new for each in fetch(raw, debs=debs)] == [False, False]
    licences = (raw / "LICENCES.md").read_text()
    assert "| birds | 1:2.0-1 | CC0-1.0 | a test | [birds/usr/share/doc/birds/copyright]" in licences
    assert sorted(path.name for path in raw.iterdir() if path.name != ".lock") == ["LICENCES.md", "birds", "trees"]


def test_only_what_was_asked_for_is_fetched(debs, tmp_path):
    assert [each.name for each in fetch(tmp_path / "raw", ["trees"], debs=debs)] == ["trees"]
    assert versions(tmp_path / "raw", ["birds", "trees"]) == {"trees": "1:2.0-1"}
    with pytest.raises(UserError, match="there are birds, trees"):
        list(fetch(tmp_path / "raw", ["fish"], debs=debs))


def test_a_file_that_is_not_what_the_table_says_is_refused_and_leaves_nothing(debs, tmp_path, monkeypatch):
    replace_entry(monkeypatch, "birds", sha256="0" * 64)
    for any_version in (False, True):
        with pytest.raises(UserError, match=r"its sha256 is .*, not 0000"):
            list(fetch(tmp_path / "raw", ["birds"], debs=debs, any_version=any_version))
    assert taken(tmp_path / "raw", "birds") is None


def test_another_version_is_taken_only_when_told_and_is_written_down(debs, tmp_path, monkeypatch):
    replace_entry(monkeypatch, "birds", version="1:1.9-1")
    with pytest.raises(UserError, match=r"no \.deb of birds 1:1\.9-1, but birds_1%3a2\.0-1_all\.deb \(--any-version"):
        list(fetch(tmp_path / "raw", ["birds"], debs=debs))
    (came,) = fetch(tmp_path / "raw", ["birds"], debs=debs, any_version=True)
    assert came.version == "1:2.0-1"
    assert taken(tmp_path / "raw", "birds") == Taken("birds", "1:2.0-1", came.sha256)
    assert "1:2.0-1 (the table pins 1:1.9-1)" in (tmp_path / "raw/LICENCES.md").read_text()


def test_a_damaged_file_is_one_line(debs, tmp_path):
    deb = next(debs.glob("birds*"))
    deb.write_bytes(deb.read_bytes()[:300])
    with pytest.raises(UserError, match=r"birds_.*\.deb: cannot be unpacked|its sha256 is"):
        list(fetch(tmp_path / "raw", ["birds"], debs=debs, any_version=True))
    assert taken(tmp_path / "raw", "birds") is None


def test_what_a_killed_fetch_left_does_not_count(debs, tmp_path):
    half = tmp_path / "raw" / ".birds.partial" / "usr"
    half.mkdir(parents=True)
    (half / "half").write_text("")
    assert taken(tmp_path / "raw", "birds") is None
    (came,) = fetch(tmp_path / "raw", ["birds"], debs=debs)
    assert came.new
    assert not list((tmp_path / "raw").rglob("half"))


def test_a_package_unpacked_by_hand_is_left_alone(debs, tmp_path):
    (tmp_path / "raw/birds/usr").mkdir(parents=True)
    assert list(fetch(tmp_path / "raw", ["birds"], debs=debs)) == [Taken("birds", "")]
    assert versions(tmp_path / "raw", ["birds"]) == {"birds": "unknown"}
    assert list((tmp_path / "raw/birds/usr").iterdir()) == []


def test_a_broken_stamp_is_named(debs, tmp_path):
    list(fetch(tmp_path / "raw", ["birds"], debs=debs))
    (tmp_path / "raw/birds" / STAMP).write_text("{")
    with pytest.raises(UserError, match=r"PACKAGE\.json: cannot be read; remove"):
        list(fetch(tmp_path / "raw", ["birds"], debs=debs))


def test_without_apt_the_command_says_what_still_works(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.run(["data", "fetch", "--output", str(tmp_path / "raw")]) == 2
    error = capsys.readouterr().err
    assert "there is no apt-get here" in error
    assert "experiments/quickstart.py needs none of this" in error
    assert error.count("\n") == 1


@pytest.fixture
def mirror(debs, tmp_path, monkeypatch):
    """The packages as a repository that apt-get reads, on a machine that has no package lists yet."""
    entries = []
    for deb in sorted(debs.glob("*.deb")):
        control = subprocess.run(["dpkg-deb", "--field", deb], check=True, capture_output=True, text=True).stdout
        data = deb.read_bytes()
        plain = deb.with_name(deb.name.replace("%3a", "-"))
        deb.rename(plain)
        digest = hashlib.sha256(data).hexdigest()
        entries.append(f"{control.strip()}\nFilename: ./{plain.name}\nSize: {len(data)}\nSHA256: {digest}\n")
    (debs / "Packages").write_text("\n".join(entries))
    settings = tmp_path / "apt"
    (settings / "lists" / "partial").mkdir(parents=True)
    (settings / "sources.list").write_text(f"deb [trusted=yes] file:{debs} ./\n")
    (settings / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{settings}/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
        f'Dir::State::lists "{settings}/lists";\nAPT::Architecture "amd64";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(settings / "apt.conf"))
    return debs


needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")


@needs_apt
def test_apt_brings_packages_without_touching_the_machines_lists(mirror, tmp_path, capsys):
    raw = tmp_path / "raw"
    assert cli.run(["data", "fetch", "--output", str(raw), "--only", "trees"]) == 0
    assert "1 packages new" in capsys.readouterr().out
    assert [each.new for each in fetch(raw)] == [True, False]
    assert (raw / "birds/usr/share/birds/file.txt").read_text() == "content"
    assert os.listdir(tmp_path / "apt" / "lists") == ["partial"]
    assert not (raw / ".apt").exists()


@needs_apt
def test_a_version_that_left_the_mirror_is_named_with_the_one_that_is_there(mirror, tmp_path, monkeypatch):
    replace_entry(monkeypatch, "birds", version="1:1.0-1")
    with pytest.raises(UserError, match=r"birds 1:1\.0-1 is no longer on .* which has 1:2\.0-1: .* --any-version"):
        list(fetch(tmp_path / "raw", ["birds"]))
    (came,) = fetch(tmp_path / "raw", ["birds"], any_version=True)
    assert came.version == "1:2.0-1"


@needs_apt
def test_a_package_that_no_mirror_has_is_one_line(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "PACKAGES", (Package("no-such-birds", "1", "0" * 64, "CC0-1.0", "nothing"),))
    with pytest.raises(UserError, match=r"no-such-birds=1: apt-get cannot download it .* --debs DIR"):
        list(fetch(tmp_path / "raw"))
