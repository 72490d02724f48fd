"""The JSON Lines source: a JSON object a line (.jsonl), or a list of objects (.json), with pictures in a folder."""

import bisect
import dataclasses
import itertools
import json
import os
from typing import Any

from data_pipelines.layouts import Layout, LayoutName
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources.json_index import Spans, index_json
from data_pipelines.sources.limits import RECORD_LIMIT
from data_pipelines.sources.naming import source_name
from data_pipelines.sources.open_files import OpenFiles
from data_pipelines.sources.paths import ImageFolder, list_files, local_copy
from vlm_jax.errors import UserError

SUFFIXES = (".jsonl", ".json", ".ndjson")


@dataclasses.dataclass(frozen=True)
class JSONLines:
    """Files of JSON objects.

    path: a file, a pattern, a directory with such files, or several of these; local or remote (gs://…).
    images: the directory that the records' picture paths start from; '' = the directory of the (first) file.
    layout: how records are written; see `data_pipelines/layouts`.
    fields: (a field as the layout calls it, as the data call it) pairs, where they differ.
    language: of texts that do not say theirs.
    name: of the source; '' = the end of the path.
    cache: directory where remote files are copied to; '' = $XDG_CACHE_HOME/vlm-jax/shards.
    """

    path: str | tuple[str, ...]
    images: str = ""
    layout: LayoutName = "plain"
    fields: tuple[tuple[str, str], ...] = ()
    language: str = ""
    name: str = ""
    cache: str = ""


class JSONLinesSource:
    """Records of JSON files, in the order of the files. Where each begins is found out once, when the source is opened.

    Lines that hold nothing are no records. Reading is safe from many threads.
    """

    def __init__(self, config: JSONLines) -> None:
        """Finds the files and the records in them.

        Raises:
            UserError: if there is no file, one cannot be read, is compressed or not UTF-8, a .json is no list of
                objects, or there is no record.
        """
        self.config = config
        self.name = source_name(config)
        self._layout = Layout(config.layout, config.fields, config.language)
        files = list_files(config.path, SUFFIXES, self.name)
        self._folder = ImageFolder(config.images or os.path.dirname(files[0]) or ".")
        self._paths = [local_copy(file, config.cache) for file in files]
        self._spans: list[Spans] = [index_json(path, self.name) for path in self._paths]
        self._starts = [0, *itertools.accumulate(len(spans) for spans in self._spans)]
        if not len(self):
            raise UserError(f"source '{self.name}': {config.path} holds no record; mend `path`")
        self._files = OpenFiles()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record in its canonical form.

        Raises:
            BadRecord: if it is not JSON, not UTF-8, too long, not of the layout, or a picture's path is refused.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in source '{self.name}'")
        file = bisect.bisect_right(self._starts, index) - 1
        place = f"{self.name}/{index}"
        return self._layout.record(self._native(file, index - self._starts[file], place), place, self._folder.image)

    def _native(self, file: int, number: int, place: str) -> dict[str, Any]:
        start, size = self._spans[file].span(number)
        where = f"{os.path.basename(self._paths[file])}, record {number + 1}"
        if size > RECORD_LIMIT:
            raise BadRecord(f"{where}: {size:,} bytes; the limit is {RECORD_LIMIT:,}", place)
        try:
            value = json.loads(self._files.read(self._paths[file], start, size).decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BadRecord(f"{where}: not UTF-8 ({error.reason} at byte {start + error.start:,})", place) from None
        except json.JSONDecodeError as error:
            raise BadRecord(f"{where}: not JSON ({error.msg} at character {error.pos + 1})", place) from None
        except (ValueError, RecursionError) as error:
            raise BadRecord(f"{where}: not JSON that can be read ({error})", place) from None
        except OSError as error:
            raise BadRecord(f"{where}: cannot be read ({error.strerror or error})", place) from None
        if not isinstance(value, dict):
            raise BadRecord(f"{where}: a {type(value).__name__} instead of an object", place)
        return value
