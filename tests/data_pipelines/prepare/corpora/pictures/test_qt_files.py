"""Qt's resource archives and translations are read back as they were written here, and damaged ones are refused."""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest
import zstandard

from data_pipelines.prepare.corpora.pictures.qt_files import Translations, elf_hash, resources
from vlm_jax.errors import UserError


def write_rcc(path: Path, files: Mapping[str, bytes], version: int = 2, packing: str = "none") -> None:
    """A resource archive of files two folders deep or less, as Qt's rcc lays them out."""
    names, contents = b"", b""
    folders: dict[str, list[str]] = {}
    for file in files:
        folder, _, last = file.rpartition("/")
        folders.setdefault(folder, []).append(last)

    def name(text: str) -> int:
        nonlocal names
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return len(names) - 6 - 2 * len(text)

    def content(data: bytes) -> tuple[int, int]:
        nonlocal contents
        flag = 0
        if packing == "zlib":
            data, flag = struct.pack(">I", len(data)) + zlib.compress(data), 1
        elif packing == "zstd":
            data, flag = zstandard.compress(data), 4
        contents += struct.pack(">I", len(data)) + data
        return len(contents) - 4 - len(data), flag

    rest = b"" if version == 1 else bytes(8)
    nodes = [struct.pack(">IHII", 0, 2, len(folders), 1) + rest]
    first = 1 + len(folders)
    for folder, members in folders.items():
        nodes.append(struct.pack(">IHII", name(folder), 2, len(members), first) + rest)
        first += len(members)
    for folder, members in folders.items():
        for member in members:
            place, flag = content(files[f"{folder}/{member}"])
            nodes.append(struct.pack(">IHHHI", name(member), flag, 0, 0, place) + rest)
    tree = 20
    begin = tree + sum(map(len, nodes))
    header = b"qres" + struct.pack(">4I", version, tree, begin, begin + len(contents))
    path.write_bytes(header + b"".join(nodes) + contents + names)


def write_qm(path: Path, messages: list[tuple[str, str, str]]) -> None:
    """A translation of (context, source, translation)."""
    body, table = b"", []
    for context, source, translation in messages:
        table.append((elf_hash(source.encode()), len(body)))
        fields = ((3, translation.encode("utf-16-be")), (6, source.encode()), (7, context.encode()))
        body += b"".join(struct.pack(">BI", tag, len(data)) + data for tag, data in fields) + b"\x01"
    hashes = b"".join(struct.pack(">2I", *entry) for entry in sorted(table))
    magic = bytes.fromhex("3cb86418caef9c95cd211cbf60a1bddd")
    path.write_bytes(
        magic + struct.pack(">BI", 0x42, len(hashes)) + hashes + struct.pack(">BI", 0x69, len(body)) + body
    )


FILES = {"boards/a.qml": b"one" * 50, "boards/b.qml": b"", "pictures/лев.webp": bytes(range(256))}


@pytest.mark.parametrize("packing", ["none", "zlib", "zstd"])
@pytest.mark.parametrize("version", [1, 2])
def test_files_come_out_as_they_went_in(tmp_path: Path, version: int, packing: str) -> None:
    write_rcc(tmp_path / "a.rcc", FILES, version, packing)
    assert resources(tmp_path / "a.rcc") == FILES


@pytest.mark.parametrize("keep", [3, 19, 60, 150, -2])
def test_a_cut_archive_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.rcc"
    write_rcc(path, FILES, packing="zstd")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"cut\.rcc: not a whole Qt resource archive"):
        resources(path)


def test_the_hash_is_that_of_the_object_format() -> None:
    assert elf_hash(b"printf") == 0x077905A6  # as the System V ABI's hash of this symbol
    assert elf_hash(b"") == 1


def test_texts_are_told_apart_by_context(tmp_path: Path) -> None:
    write_qm(
        tmp_path / "ru.qm",
        [("Sky", "Star", "звезда"), ("Film", "Star", "кинозвезда"), ("Sky", "Moon", "луна"), ("Sky", "Sun", "")],
    )
    russian = Translations(tmp_path / "ru.qm")
    assert russian.translated("Star", "Film") == "кинозвезда"
    assert russian.translated("Star", "Sky") == "звезда"
    assert russian.translated("Star") is None
    assert russian.translated("Moon") == "луна"
    assert russian.translated("Sun") is None
    assert russian.translated("Earth") is None


@pytest.mark.parametrize("keep", [10, 18, 40, -1])
def test_a_cut_translation_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "ru.qm"
    write_qm(path, [("Sky", "Star", "звезда")])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"ru\.qm: not a whole Qt translation"):
        Translations(path)
