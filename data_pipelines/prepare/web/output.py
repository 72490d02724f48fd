"""Writes the documents of one shard: sorted by a hash of their ids, pictures read one document at a time."""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from data_pipelines.manifest import shard_name
from data_pipelines.prepare.shards import SHARD_BYTES, write_shard
from data_pipelines.prepare.web.documents import Document, record_of
from data_pipelines.prepare.web.inputs import read_bytes
from data_pipelines.records import encode_record


def shard_count(sizes: Sequence[int], wanted: int) -> int:
    """How many files.

    Args:
        sizes: [documents, bytes] of all.
        wanted: As the config says; 0 = as many as make them about SHARD_BYTES large. Never more than documents.
    """
    documents, total = sizes
    return max(1, min(wanted or round(total / SHARD_BYTES), documents))


def document_bytes(document: Document) -> int:
    """About what the document takes in a shard."""
    texts = sum(len(segment["text"].encode()) for segment in document["segments"] if "text" in segment)
    return texts + sum(size for _, size in document["pictures"].values())


def place_of(document: Document, shards: int) -> int:
    """The shard that a document is of: a function of its id."""
    return int.from_bytes(_order(document["id"])[:8], "big") * shards >> 64


def write_documents(shard: int, shards: int, documents: Iterable[Document], directory: str) -> dict[str, Any]:
    """Writes one file, whole or not at all, and returns its entry for the manifest.

    In memory are the texts of the shard and the pictures of one document.

    Args:
        shard: Its number.
        shards: Of how many.
        documents: With 'pictures': address -> ([file, offset], bytes).
        directory: Where to; local or remote.
    """
    ordered = sorted(documents, key=lambda document: _order(document["id"]))
    name = shard_name(shard, shards)
    remote = "://" in directory
    with tempfile.TemporaryDirectory(dir=None if remote else directory, prefix=".shard-") as scratch:
        path = Path(scratch) / name
        entry = write_shard(path, map(_encode, ordered))
        if remote:
            epath.Path(path).copy(epath.Path(directory) / name, overwrite=True)
        else:
            os.replace(path, Path(directory) / name)
    return {"name": entry.name, "records": entry.records, "bytes": entry.bytes, "sha256": entry.sha256}


def _encode(document: Document) -> bytes:
    return encode_record(record_of(document, dict(_pictures(document))))


def _pictures(document: Document) -> Iterator[tuple[str, bytes]]:
    for url, (location, size) in document["pictures"].items():
        data = read_bytes(location, size)
        if data is None or len(data) != size:
            raise OSError(f"{location[0]}: picture {url} changed while the pages were prepared; run it again")
        yield url, data


def _order(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
