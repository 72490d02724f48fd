"""The Parquet source: tables with a record a row, pictures as bytes or as Hugging Face's image feature."""

import bisect
import dataclasses
import itertools
import os
from pathlib import Path
from typing import Any

from data_pipelines.layouts import Layout, LayoutName
from data_pipelines.optional import need
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources.limits import RECORD_LIMIT
from data_pipelines.sources.naming import source_name
from data_pipelines.sources.paths import ImageFolder, list_files, local_copy
from data_pipelines.sources.row_groups import RowGroups
from vlm_jax.errors import UserError

SUFFIXES = (".parquet",)

_WANTED = ("id", "language", "image", "images", "prompt")
"""Fields that layouts read where they are there."""


@dataclasses.dataclass(frozen=True)
class Parquet:
    """Parquet files.

    path: a file, a pattern, a directory with such files, or several of these; local or remote (gs://…).
    images: the directory that the records' picture paths start from, where pictures are not in the table.
    layout: how records are written; see `data_pipelines/layouts`.
    fields: (a field as the layout calls it, the column's name) pairs, where they differ.
    language: of texts that do not say theirs.
    memory: MiB of row groups that are kept decoded.
    unpacked: a directory where row groups are kept as memory-mapped files, as large as what they unpack to; '' = none.
        Reading in a random order decodes a row group for nearly every record without it, where `memory` does not hold
        all of them.
    name: of the source; '' = the end of the path.
    cache: directory where remote files are copied to; '' = $XDG_CACHE_HOME/vlm-jax/shards.
    """

    path: str | tuple[str, ...]
    images: str = ""
    layout: LayoutName = "plain"
    fields: tuple[tuple[str, str], ...] = ()
    language: str = ""
    memory: int = 512
    unpacked: str = ""
    name: str = ""
    cache: str = ""


class ParquetSource:
    """Records of Parquet files, in the order of the files and rows. Reading is safe from many threads.

    Opening it reads what stands at the end of each file; columns that the layout does not need are never read.
    """

    def __init__(self, config: Parquet) -> None:
        """Opens the files.

        Raises:
            UserError: if pyarrow is missing, there is no file, one cannot be read or lacks a column, or all are empty.
        """
        need("pyarrow.parquet", "formats")
        self.config = config
        self.name = source_name(config)
        self._layout = Layout(config.layout, config.fields, config.language)
        self._folder = ImageFolder(config.images)
        self._paths = [local_copy(file, config.cache) for file in list_files(config.path, SUFFIXES, self.name)]
        self._rows: list[tuple[int, int]] = []
        """(file, row group) of each row group, in their order."""
        sizes = []
        for number, path in enumerate(self._paths):
            metadata, columns = self._open(path)
            for group in range(metadata.num_row_groups):
                self._rows.append((number, group))
                sizes.append(metadata.row_group(group).num_rows)
            if number == 0:
                self._columns = columns
        self._starts = [0, *itertools.accumulate(sizes)]
        if not len(self):
            raise UserError(f"source '{self.name}': {config.path} has no rows; mend `path`")
        unpacked = Path(config.unpacked) if config.unpacked else None
        self._groups = RowGroups(self._paths, self._columns, config.memory << 20, unpacked)

    def _open(self, path: str) -> tuple[Any, list[str] | None]:
        """The file's metadata, and the columns to read; None = all of them."""
        metadata, names = _footer(path, self.name)
        missing = [field for field in self._layout.needs if field not in names and _top(field) not in names]
        if missing:
            raise UserError(
                f"source '{self.name}': {path} has no column '{missing[0]}', only {', '.join(names)}; set `layout`, or "
                f"`fields` to say how it is called"
            )
        if self.config.layout == "plain" and not self.config.fields:
            return metadata, None
        renamed = dict(self.config.fields)
        wanted = {*self._layout.needs, *(renamed.get(field, field) for field in _WANTED)}
        return metadata, [name for name in names if name in wanted or name in {_top(field) for field in wanted}]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record in its canonical form.

        Raises:
            BadRecord: if it cannot be read, is too large, or is not of the layout.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in source '{self.name}'")
        number = bisect.bisect_right(self._starts, index) - 1
        file, group = self._rows[number]
        place = f"{self.name}/{index}"
        row = index - self._starts[number]
        where = f"{os.path.basename(self._paths[file])}, row group {group}, row {row}"
        try:
            table = self._groups.table(file, group).slice(row, 1)
            if table.nbytes > RECORD_LIMIT:
                raise BadRecord(f"{where}: {table.nbytes:,} bytes; the limit is {RECORD_LIMIT:,}", place)
            (native,) = table.to_pylist()
        except BadRecord:
            raise
        except (OSError, ValueError) as error:  # pyarrow's own errors are of these types
            raise BadRecord(f"{where}: cannot be read ({' '.join(str(error).split())})", place) from None
        return self._layout.record(native, place, self._folder.image)


def column_names(path: str, name: str) -> list[str]:
    """Names of a file's columns.

    Raises:
        UserError: if it is no Parquet file; `name` is the source's, for the message.
    """
    return _footer(path, name)[1]


def _footer(path: str, name: str) -> tuple[Any, list[str]]:
    """A file's metadata, and the names of its columns."""
    parquet = need("pyarrow.parquet", "formats")
    try:
        with parquet.ParquetFile(path) as file:
            return file.metadata, file.schema_arrow.names
    except (OSError, ValueError) as error:
        what = " ".join(str(error).split())
        raise UserError(f"source '{name}': {path}: not a Parquet file, or damaged ({what})") from None


def _top(field: str) -> str:
    """The column that a nested field stands in."""
    return field.replace("/", ".").split(".")[0]
