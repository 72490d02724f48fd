"""Files of a source, and picture paths that may not lead out of their directory."""

import os
from pathlib import Path

import pytest
from etils import epath

from data_pipelines.quarantine import BadRecord
from data_pipelines.sources.paths import ImageFolder, copy_once, list_files, local_copy
from vlm_jax.errors import UserError


@pytest.fixture
def root(tmp_path):
    """A directory of pictures, and what must not be reached from it."""
    root = tmp_path / "pictures"
    (root / "birds").mkdir(parents=True)
    (root / "birds" / "утка 1.png").write_bytes(b"duck")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "pictures-2").mkdir()
    (tmp_path / "pictures-2" / "near.png").write_bytes(b"near")
    (root / "inside.png").symlink_to("birds/утка 1.png")
    (root / "out.png").symlink_to("../secret.png")
    (root / "above").symlink_to("..")
    (root / "near").symlink_to("../pictures-2")
    (root / "loop.png").symlink_to("loop2.png")
    (root / "loop2.png").symlink_to("loop.png")
    (root / "round").symlink_to("round")
    os.mkfifo(root / "pipe.png")
    return root


@pytest.mark.parametrize("path", ["birds/утка 1.png", "./birds/утка 1.png", "inside.png"])
def test_what_lies_in_the_directory_is_read(root, path):
    image = ImageFolder(str(root)).image(path)
    assert Path(image.path).read_bytes() == b"duck"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../secret.png", "leads out of"),
        ("birds/../../secret.png", "leads out of"),
        ("birds\\..\\..\\secret.png", "leads out of"),
        ("/etc/hostname", "not a relative path"),
        ("\\etc\\hostname", "not a relative path"),
        ("C:\\secret.png", "not a relative path"),
        ("", "not a relative path"),
        ("birds/\0.png", "not a relative path"),
        ("file:///etc/hostname", "nothing is fetched"),
        ("http://example.org/a.png", "nothing is fetched"),
        ("out.png", "symbolic link leads it out"),
        ("above/secret.png", "symbolic link leads it out"),
        ("near/near.png", "symbolic link leads it out"),
        ("loop.png", "links form a loop"),
        ("round/a.png", "links form a loop"),
        ("none.png", "No such file"),
        ("birds", "not a file"),
        ("pipe.png", "not a file"),
        ("a" * 5000, "too long"),
    ],
)
def test_what_does_not_is_refused(root, path, reason):
    with pytest.raises(BadRecord, match=reason):
        ImageFolder(str(root)).image(path)


def test_the_directory_itself_may_be_a_link(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    assert Path(ImageFolder(str(tmp_path / "link")).image("inside.png").path).read_bytes() == b"duck"
    assert ImageFolder("gs://bucket/pictures").image("birds/a.png").path == "gs://bucket/pictures/birds/a.png"
    with pytest.raises(BadRecord, match="leads out"):
        ImageFolder("gs://bucket/pictures").image("../a.png")
    with pytest.raises(BadRecord, match="no directory of pictures"):
        ImageFolder("").image("a.png")


def test_files_come_in_order_and_once(tmp_path):
    for name in ("b.tar", "a.tar", "c.txt", "[1].tar"):
        (tmp_path / name).touch()

    def names(path):
        return [os.path.basename(file) for file in list_files(path, (".tar",), "set")]

    assert names(str(tmp_path)) == ["[1].tar", "a.tar", "b.tar"]
    assert names(str(tmp_path / "[ab].tar")) == ["a.tar", "b.tar"]
    assert names((str(tmp_path / "b.tar"), str(tmp_path / "*.tar"))) == ["b.tar", "[1].tar", "a.tar"]
    assert names(str(tmp_path / "[1].tar")) == ["[1].tar"]


def test_no_file_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match=r"source 'set': .*holds no \*\.tar"):
        list_files(str(tmp_path), (".tar",), "set")
    with pytest.raises(UserError, match="there is no such file"):
        list_files(str(tmp_path / "*.tar"), (".tar",), "set")
    for nothing in ("", (), ("",)):
        with pytest.raises(UserError, match="no path is given"):
            list_files(nothing, (".tar",), "set")


def test_a_remote_file_is_copied_once_and_anew_when_it_changed(tmp_path):
    origin, cache = tmp_path / "a.jsonl", tmp_path / "cache"
    origin.write_bytes(b"one")
    first = copy_once(epath.Path(origin), cache)
    assert Path(first).read_bytes() == b"one"
    time = os.stat(first).st_mtime_ns
    assert copy_once(epath.Path(origin), cache) == first
    assert os.stat(first).st_mtime_ns == time
    origin.write_bytes(b"three")
    second = copy_once(epath.Path(origin), cache)
    assert (Path(second).read_bytes(), Path(first).read_bytes()) == (b"three", b"one")
    assert not [name for name in os.listdir(cache / "files") if name.startswith(".")]
    assert local_copy(str(origin), str(cache)) == str(origin)
