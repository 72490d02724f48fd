"""Two file formats of Qt: resource archives (.rcc) and compiled translations (.qm)."""

import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_pipelines.optional import need
from vlm_jax.errors import UserError

_DIRECTORY, _ZLIB, _ZSTD = 2, 1, 4
_FILE_LIMIT = 1 << 28
"""Bytes of one unpacked file; more is taken for a damaged archive."""

_QM_MAGIC = bytes.fromhex("3cb86418caef9c95cd211cbf60a1bddd")
_HASHES, _MESSAGES = 0x42, 0x69
_END, _TRANSLATION, _SOURCE, _CONTEXT, _COMMENT = 1, 3, 6, 7, 8


def resources(path: Path) -> Mapping[str, bytes]:
    """The files of a resource archive: path inside it -> contents, unpacked.

    Raises:
        UserError: if it is not such an archive, or is cut or damaged.
    """
    data = path.read_bytes()
    try:
        return dict(_resource_files(data))
    except (struct.error, IndexError, ValueError, zlib.error, RecursionError) as error:
        raise UserError(f"{path}: not a whole Qt resource archive ({error}); unpack its package again") from None


def _resource_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    if data[:4] != b"qres":
        raise ValueError("it does not begin with 'qres'")
    version, tree, contents, names = struct.unpack_from(">4I", data, 4)
    node_size = 14 if version == 1 else 22

    def name(offset: int) -> str:
        (length,) = struct.unpack_from(">H", data, names + offset)
        start = names + offset + 6
        text = data[start : start + 2 * length]
        if len(text) < 2 * length:
            raise ValueError("it is cut")
        return text.decode("utf-16-be")

    def walk(index: int, folder: str) -> Iterator[tuple[str, bytes]]:
        node = tree + index * node_size
        name_offset, flags = struct.unpack_from(">IH", data, node)
        path = f"{folder}{name(name_offset)}" if index else ""
        if flags & _DIRECTORY:
            count, first = struct.unpack_from(">2I", data, node + 6)
            if index and first <= index:
                raise ValueError("a folder that holds itself")
            for child in range(first, first + count):
                yield from walk(child, f"{path}/" if path else "")
        else:
            (offset,) = struct.unpack_from(">I", data, node + 10)
            yield path, _unpacked(data, contents + offset, flags)

    return walk(0, "")


def _unpacked(data: bytes, start: int, flags: int) -> bytes:
    (length,) = struct.unpack_from(">I", data, start)
    packed = data[start + 4 : start + 4 + length]
    if len(packed) < length:
        raise ValueError("it is cut")
    if flags & _ZLIB:
        return zlib.decompress(packed[4:])
    if flags & _ZSTD:
        zstandard = need("zstandard", "prepare")
        try:
            return zstandard.ZstdDecompressor().decompress(packed, max_output_size=_FILE_LIMIT)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from None
    return packed


class Translations:
    """What a .qm file says of each source text."""

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Raises:
            UserError: if it is not a compiled translation, or is cut.
        """
        data = path.read_bytes()
        try:
            sections = _sections(data)
            self._messages, self._hashes = sections[_MESSAGES], _hash_table(sections[_HASHES])
        except (struct.error, KeyError, ValueError) as error:
            raise UserError(f"{path}: not a whole Qt translation ({error}); unpack its package again") from None

    def translated(self, text: str, context: str = "") -> str | None:
        """The translation of a source text; None if there is none, or several that differ and none of the context.

        Args:
            text: As it stands in `qsTr("…")`.
            context: The name of the .qml file without its ending, which tells texts apart that are spelt alike.
        """
        found: dict[str, str] = {}
        for offset in self._hashes.get(elf_hash(text.encode()), ()):
            fields = _message(self._messages, offset)
            if fields.get(_SOURCE, text) == text and fields.get(_TRANSLATION) and not fields.get(_COMMENT):
                found[fields.get(_CONTEXT, "")] = fields[_TRANSLATION]
        if context in found:
            return found[context]
        return next(iter(found.values())) if len(set(found.values())) == 1 else None


def elf_hash(data: bytes) -> int:
    """The hash of the ELF object format, under which Qt files a source text; 0 is written as 1."""
    value = 0
    for byte in data:
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ (high >> 24)) & ~high & 0xFFFFFFFF
    return value or 1


def _sections(data: bytes) -> dict[int, bytes]:
    if data[:16] != _QM_MAGIC:
        raise ValueError("it begins with other bytes")
    sections, place = {}, 16
    while place < len(data):
        kind, length = struct.unpack_from(">BI", data, place)
        sections[kind] = data[place + 5 : place + 5 + length]
        if len(sections[kind]) < length:
            raise ValueError("it is cut")
        place += 5 + length
    return sections


def _hash_table(section: bytes) -> dict[int, list[int]]:
    table: dict[int, list[int]] = {}
    for value, offset in struct.iter_unpack(">2I", section):
        table.setdefault(value, []).append(offset)
    return table


def _message(section: bytes, place: int) -> dict[int, str]:
    fields: dict[int, str] = {}
    while place < len(section) and (tag := section[place]) != _END:
        (length,) = struct.unpack_from(">I", section, place + 1)
        if length == 0xFFFFFFFF:
            length = 0
        text = section[place + 5 : place + 5 + length]
        value = text.decode("utf-16-be" if tag == _TRANSLATION else "utf-8", "replace")
        fields.setdefault(tag, value)  # the first translation is the singular
        place += 5 + length
    return fields
