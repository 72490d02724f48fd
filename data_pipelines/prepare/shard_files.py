"""Single files of records: ArrayRecord, one record a chunk."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from data_pipelines.manifest import ShardFile, shard_file

SHARD_BYTES = 64 << 20
"""About so large is a shard where the number of shards is not given."""

_WRITER_OPTIONS = "group_size:1"
"""One record a chunk: the fastest random access."""


def write_shard(path: Path, blobs: Iterable[bytes]) -> ShardFile:
    """Writes one ArrayRecord file of encoded records; the same bytes for the same records.

    Raises:
        OSError: if the disk refuses.
    """
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(os.fspath(path), _WRITER_OPTIONS)
    records = 0
    for blob in blobs:
        _checked(writer.write, blob)
        records += 1
    _checked(writer.close)
    return shard_file(path, records)


def _checked(write: Callable[..., None], *arguments: bytes) -> None:
    try:
        write(*arguments)
    except RuntimeError as error:  # what ArrayRecord makes of a full disk
        raise OSError(" ".join(str(error).split())) from None
