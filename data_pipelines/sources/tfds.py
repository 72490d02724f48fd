"""The TFDS source: built data sets of tensorflow-datasets in ArrayRecord files, read without TensorFlow."""

import bisect
import dataclasses
import itertools
import os
import re
from typing import Any

from etils import epath

from data_pipelines.examples import Image
from data_pipelines.layouts import Layout, LayoutName
from data_pipelines.layouts.values import text_in
from data_pipelines.optional import need
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources.array_shards import ArrayShards
from data_pipelines.sources.naming import source_name
from data_pipelines.sources.tfds_examples import from_example
from vlm_jax.errors import UserError

KIND_KEY = "vlm_jax_kind"
"""In the metadata of data sets that were written here: the kind of their records."""

ORIGIN_KEY = "vlm_jax_origin"
"""There too: a digest of the prepared sets that they were made from."""

_MARKER = "features.json"
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclasses.dataclass(frozen=True)
class TFDS:
    """A data set that tensorflow-datasets built, with file_format='array_record'.

    path: the directory of its version ('DIR/name/1.0.0', with features.json); or 'name' or 'name/config', whose
        latest version it is, where `data_dir` is given.
    split: as TFDS writes it: 'train', 'train[:80%]', 'train[10000:]', 'train+test'.
    data_dir: directory below which data sets lie by name; '' = `path` is a directory.
    layout: how examples are written; see `data_pipelines/layouts`. Data sets that were written here need none.
    fields: (a field as the layout calls it, the feature's name) pairs, where they differ; dots or slashes lead into
        nested features.
    language: of texts that do not say theirs.
    name: of the source; '' = the end of the path.
    """

    path: str
    split: str = "train"
    data_dir: str = ""
    layout: LayoutName = "plain"
    fields: tuple[tuple[str, str], ...] = ()
    language: str = ""
    name: str = ""


class TFDSSource:
    """Records of one split.

    A data set that was written here gives the very records that it was made of. An example of any other goes through
    the layout, after its images have become pictures, its texts strings, its labels their names, and its sequences of
    features lists of dictionaries.

    The number of records in a file is compared with what the data set says when the file is opened.
    """

    def __init__(self, config: TFDS) -> None:
        """Opens the data set.

        Raises:
            UserError: if tensorflow-datasets is not installed, the data set or the split is missing, or it is of
                another file format.
        """
        self.config = config
        self.name = source_name(config)
        self._layout = Layout(config.layout, config.fields, config.language)
        tfds = need("tensorflow_datasets", "formats")
        info = _open(tfds, config, self.name).info
        metadata = info.metadata or {}
        self._kind, self.contents = metadata.get(KIND_KEY, ""), str(metadata.get(ORIGIN_KEY, ""))
        self._features = info.features
        self._decoders = _undecoded(tfds, info.features)
        try:
            instructions = info.splits[config.split].file_instructions
        except (ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"source '{self.name}': split '{config.split}' ({reason[:200]}); there are {', '.join(info.splits)}"
            ) from None
        self._files = [os.fspath(part.filename) for part in instructions]
        self._shards = ArrayShards(
            [part.examples_in_shard for part in instructions], self._files.__getitem__, self.name
        )
        ends = list(itertools.accumulate(part.examples_in_shard for part in instructions))
        self._parts = [end - part.examples_in_shard + part.skip for part, end in zip(instructions, ends, strict=True)]
        self._starts = [0, *itertools.accumulate(part.take for part in instructions)]
        if not len(self):
            raise UserError(f"source '{self.name}': split '{config.split}' has no examples; choose another")

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record.

        Raises:
            BadRecord: if its bytes are damaged, or it does not have the layout.
            UserError: if its file is not what the data set says.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in source '{self.name}'")
        part = bisect.bisect_right(self._starts, index) - 1
        place = self._parts[part] + index - self._starts[part]
        file, row = self._shards.place(place)
        name = f"{os.path.basename(self._files[file])}#{row}"
        try:
            return self._record(self._shards.read(place), name)
        except BadRecord as error:
            raise BadRecord(str(error), error.record_id or name) from None

    def _record(self, data: bytes, name: str) -> dict[str, Any]:
        try:
            example = self._features.deserialize_example_np(data, decoders=self._decoders)
        except Exception as error:  # parsers of protocol buffers and of features raise several unrelated types
            raise BadRecord(f"not an example of this data set ({type(error).__name__}: {error})") from None
        native = _native(self._features, example)
        if self._kind:
            return from_example(native, self._kind)
        return self._layout.record(native, f"{self.name}/{name}", _no_path)


def _open(tfds: Any, config: TFDS, name: str) -> Any:
    path = _latest(epath.Path(config.data_dir) / config.path) if config.data_dir else config.path
    try:
        builder = tfds.builder_from_directory(path)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"source '{name}': {path} is no built data set of TFDS ({reason[:200]}); mend `path`") from None
    if builder.info.file_format.value != "array_record":
        raise UserError(
            f"source '{name}': {path} is in {builder.info.file_format.value} files, which need TensorFlow or have no "
            "random access; build it with file_format='array_record'"
        )
    return builder


def _latest(path: epath.Path) -> str:
    """The directory itself, or the highest version below it."""
    if not path.is_dir() or (path / _MARKER).exists():
        return os.fspath(path)
    versions = [entry for entry in path.iterdir() if _VERSION.fullmatch(entry.name) and (entry / _MARKER).exists()]
    return os.fspath(max(versions, key=lambda entry: [int(part) for part in entry.name.split(".")], default=path))


def _undecoded(tfds: Any, features: Any) -> Any:
    """Decoders that leave every picture as the bytes of its file, for a tree of features; None where there is none."""

    class Bytes(tfds.decode.Decoder):  # type: ignore[misc]
        def decode_example(self, value: Any) -> Any:
            return value

        decode_example_np = decode_batch_example_np = decode_ragged_example_np = decode_example

    def walk(feature: Any) -> Any:
        if isinstance(feature, tfds.features.Image):
            return Bytes()
        if isinstance(feature, tfds.features.Sequence):
            return walk(feature.feature)
        if isinstance(feature, tfds.features.FeaturesDict):
            found = {key: walk(inner) for key, inner in feature.items()}
            return {key: decoder for key, decoder in found.items() if decoder is not None} or None
        return None

    return walk(features)


def _native(feature: Any, value: Any) -> Any:
    """What a decoded example holds, in plain types and pictures."""
    kind = type(feature).__name__
    if kind == "FeaturesDict":
        return {key: _native(inner, value[key]) for key, inner in feature.items()}
    if kind == "Sequence":
        inner = feature.feature
        if type(inner).__name__ == "FeaturesDict":
            columns = {key: _native_list(each, value[key]) for key, each in inner.items()}
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return _native_list(inner, value)
    if kind == "Dataset":
        return [_native(feature.feature, entry) for entry in value]
    if kind == "Image":
        return Image(data=bytes(value))
    if kind == "ClassLabel":
        return feature.int2str(int(value)) if int(value) >= 0 else ""
    if isinstance(value, bytes):
        return text_in(value) if kind == "Text" else value
    return value.tolist() if hasattr(value, "tolist") else value


def _native_list(feature: Any, values: Any) -> list[Any]:
    return [_native(feature, value) for value in values]


def _no_path(path: str) -> Image:
    raise BadRecord(f"'{path[:100]}' is a path, and a data set has its pictures inside")
