"""The WebDataset source: tars, in which neighbouring members with the same key are one record; any one can be read."""

import bisect
import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from data_pipelines.examples import Image
from data_pipelines.layouts import Layout, LayoutName
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources.limits import RECORD_LIMIT
from data_pipelines.sources.naming import source_name
from data_pipelines.sources.open_files import OpenFiles
from data_pipelines.sources.paths import list_files, local_copy
from data_pipelines.sources.tar_index import Sample, TarIndex, index_tar
from vlm_jax.errors import UserError

SUFFIXES = (".tar",)

_PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")
_TEXTS = ("txt", "text", "caption")


@dataclasses.dataclass(frozen=True)
class WebDataset:
    """Tars, not compressed.

    path: a file, a pattern, a directory with tars, or several of these; local or remote (gs://…).
    layout: how records are written; see `data_pipelines/layouts`. A record has the fields of its .json member,
        'text' of its .txt, 'image' (or 'images') of its pictures; a path in the .json names a member.
    fields: (a field as the layout calls it, as the data call it) pairs, where they differ; a member is called by its
        ending, as in (('image', 'left.png'),).
    language: of texts that do not say theirs.
    take_cut: read what there is of a tar that is cut off; the record in which it ends is a bad one.
    name: of the source; '' = the end of the path.
    cache: directory for indices, and for copies of remote files; '' = $XDG_CACHE_HOME/vlm-jax/shards.
    """

    path: str | tuple[str, ...]
    layout: LayoutName = "pairs"
    fields: tuple[tuple[str, str], ...] = ()
    language: str = ""
    take_cut: bool = False
    name: str = ""
    cache: str = ""


class WebDatasetSource:
    """Records of tars, in the order of the files and members. Reading is safe from many threads."""

    def __init__(self, config: WebDataset) -> None:
        """Reads the headers of the tars, once for each tar and cache.

        Raises:
            UserError: if there is no tar, one cannot be read, is compressed, or cut off, or there is no record.
        """
        self.config = config
        self.name = source_name(config)
        self._layout = Layout(config.layout, config.fields, config.language)
        self._paths = [local_copy(file, config.cache) for file in list_files(config.path, SUFFIXES, self.name)]
        with ThreadPoolExecutor(8) as pool:
            self._tars: list[TarIndex] = list(
                pool.map(lambda path: index_tar(path, self.name, config.cache), self._paths)
            )
        for path, tar in zip(self._paths, self._tars, strict=True):
            if tar.end and not config.take_cut:
                raise UserError(
                    f"source '{self.name}': {path} is cut off {tar.end}, after {len(tar):,} records: copy it "
                    "again, or set `take_cut`"
                )
        self._starts = [0, *itertools.accumulate(map(len, self._tars))]
        if not len(self):
            raise UserError(f"source '{self.name}': {config.path} holds no record; members are called KEY.ENDING")
        self._files = OpenFiles()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record in its canonical form.

        Raises:
            BadRecord: if a member is damaged or cut off, the record is too large, or is not of the layout.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in source '{self.name}'")
        native, picture = self._members(index)
        return self._layout.record(native, f"{self.name}/{index}", picture)

    def _members(self, index: int) -> tuple[dict[str, Any], Callable[[str], Image]]:
        """A record's fields, and what gives its pictures by their paths."""
        file = bisect.bisect_right(self._starts, index) - 1
        number = index - self._starts[file]
        tar, place = self._tars[file], f"{self.name}/{index}"
        sample = tar.sample(number)
        where = f"{os.path.basename(self._paths[file])}, '{sample.key}'"
        if tar.end and number == len(tar) - 1:
            raise BadRecord(f"{where}: the tar is cut off {tar.end}", place)
        if sample.size > RECORD_LIMIT:
            raise BadRecord(f"{where}: {sample.size:,} bytes; the limit is {RECORD_LIMIT:,}", place)
        try:
            members = self._read(self._paths[file], sample)
            return _native(sample.key, members, bool(self.config.fields)), _picture_of(sample.key, members)
        except BadRecord as error:
            raise BadRecord(f"{where}: {error}", place) from None
        except OSError as error:
            raise BadRecord(f"{where}: cannot be read ({error.strerror or error})", place) from None

    def _read(self, path: str, sample: Sample) -> dict[str, bytes]:
        members: dict[str, bytes] = {}
        for what, offset, size in sample.members:
            if what in members:
                raise BadRecord(f"two members '.{what}'")
            members[what] = self._files.read(path, offset, size)
        return members


def first_fields(config: WebDataset) -> dict[str, Any]:
    """The fields of the first record before the layout reads them.

    Raises:
        UserError: as opening the source does.
        BadRecord: if the record cannot be read.
    """
    return WebDatasetSource(config)._members(0)[0]


def _native(key: str, members: Mapping[str, bytes], with_members: bool) -> dict[str, Any]:
    """The fields of a sample; with `with_members` each member by its ending too."""
    native: dict[str, Any] = {"id": key}
    pictures = [data for what, data in members.items() if what.rpartition(".")[2] in _PICTURES]
    native |= {"image": pictures[0]} if len(pictures) == 1 else {"images": pictures} if pictures else {}
    if texts := [members[what] for what in _TEXTS if what in members]:
        native["text"] = texts[0]
    if with_members:
        native |= members
    if "json" in members:
        try:
            fields = json.loads(members["json"].decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise BadRecord(f"its .json is not JSON ({error})") from None
        if not isinstance(fields, dict):
            raise BadRecord(f"its .json is a {type(fields).__name__} instead of an object")
        if "image" in fields or "images" in fields:  # it says itself which of the members they are
            native.pop("image", None)
            native.pop("images", None)
        native |= fields
    return native


def _picture_of(key: str, members: Mapping[str, bytes]) -> Callable[[str], Image]:
    """What gives the member that a path in the sample's .json names: by its ending, or by its whole name."""

    def picture(path: str) -> Image:
        stem = f"{key.rpartition('/')[2]}."
        for name in (path, path.rpartition("/")[2].removeprefix(stem)):
            if name.lower() in members:
                return Image(data=members[name.lower()])
        raise BadRecord(f"picture '{path}': no such member of '{key}', only .{', .'.join(members)}")

    return picture
