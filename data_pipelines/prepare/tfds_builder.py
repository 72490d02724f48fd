"""Writes prepared sets as data sets of tensorflow-datasets, in ArrayRecord files and without TensorFlow.

tfds.builder_from_directory("DIR/captions_birds/1.0.0").as_data_source("train")[0]
{'id': b'birds/duck', 'image': array(…), 'captions': {'text': [b'A duck.', …], 'language': [b'en', …]}, …}
"""

import contextlib
import functools
import io
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.manifest import Manifest, config_hash, read_manifest
from data_pipelines.optional import need
from data_pipelines.prepare.splits import SPLITS
from data_pipelines.quarantine import BadRecord, Quarantine
from data_pipelines.sources.array_records import ArrayRecords, ArrayRecordsSource
from data_pipelines.sources.tfds import KIND_KEY, ORIGIN_KEY
from data_pipelines.sources.tfds_examples import TYPED, to_example
from vlm_jax.errors import UserError

VERSION = "1.0.0"


def write_tfds(prepared: Path, data_dir: Path, *, kind: str, name: str = "") -> Path:
    """Writes a prepared set (a directory of splits) as a data set, unless it is there and made from the same files.

    Args:
        prepared: OUT/captions/birds, with train, validation and test below it; a split without records is left out.
        data_dir: Where data sets lie by name.
        kind: Of the records: 'captions', 'interleaved', 'instruct' or 'text_only'.
        name: Of the data set; '' = made from the last two parts of the path, 'captions_birds'.

    Returns:
        The directory of its version, DIR/captions_birds/1.0.0.

    Raises:
        UserError: if tensorflow-datasets is missing, there is no prepared set, the kind has no features, or the disk
            refuses.
    """
    tfds = need("tensorflow_datasets", "formats")
    if kind not in TYPED:
        raise UserError(f"{prepared}: records of kind '{kind}' cannot be written as TFDS; it can be {', '.join(TYPED)}")
    name = re.sub(r"\W+", "_", name or "_".join(prepared.parts[-2:])).lower().strip("_")
    manifests = {split: read_manifest(prepared / split) for split in SPLITS if (prepared / split).is_dir()}
    manifests = {split: manifest for split, manifest in manifests.items() if manifest.records}
    if not manifests:
        raise UserError(f"{prepared}: no prepared split with records lies there; prepare it first")
    origin = config_hash({split: manifest.contents for split, manifest in manifests.items()})
    place = data_dir / name / VERSION
    if _origin_of(tfds, place) == origin:
        return place
    try:
        shutil.rmtree(place, ignore_errors=True)
        for unfinished in place.parent.glob("incomplete.*"):
            shutil.rmtree(unfinished)
        builder = builder_class(name, kind)(
            sources={split: ArrayRecordsSource(ArrayRecords(str(prepared / split))) for split in manifests},
            manifest=next(iter(manifests.values())),
            origin=origin,
            data_dir=data_dir,
            file_format="array_record",
        )
        tfds.disable_progress_bar()
        with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_dir=downloads)
    except (OSError, RuntimeError) as error:  # a RuntimeError is what ArrayRecord makes of a full disk
        raise UserError(f"{place}: cannot be written ({' '.join(str(error).split())}); free space or mend it") from None
    return place


@functools.cache
def builder_class(name: str, kind: str) -> Any:
    """The builder of one data set: a `GeneratorBasedBuilder` whose examples come from opened sources.

    Its constructor takes `sources` (split -> Source), `manifest` (for the description and licences) and `origin`
    beside TFDS's own arguments.
    """
    tfds = need("tensorflow_datasets", "formats")

    class PreparedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc, call-arg]
        VERSION = tfds.core.Version(VERSION)
        url_infos = None  # nothing is downloaded; to look for checksums TFDS would need one more library

        def __init__(self, *, sources: Mapping[str, Any], manifest: Manifest, origin: str, **options: Any) -> None:
            self._sources, self._manifest, self._origin = sources, manifest, origin
            super().__init__(**options)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=str(self._manifest.about.get("about", "")) or f"Prepared records of kind {kind}.",
                license=" AND ".join(self._manifest.licences) or None,
                features=features_of(tfds, kind),
                metadata=tfds.core.MetadataDict({KIND_KEY: kind, ORIGIN_KEY: self._origin}),
            )

        def _split_generators(self, _: Any) -> Mapping[str, Any]:
            return {split: self._generate_examples(source) for split, source in self._sources.items()}

        def _generate_examples(self, source: Any) -> Iterator[tuple[str, dict[str, Any]]]:
            yield from _examples(source, kind)

    PreparedBuilder.name = name
    return PreparedBuilder


def features_of(tfds: Any, kind: str) -> Any:
    """The features of a kind, as tfds_examples.py lists them."""
    text, picture, number = tfds.features.Text(), tfds.features.Image(shape=(None, None, 3)), np.int32
    sequence = tfds.features.Sequence
    typed: Mapping[str, Mapping[str, Any]] = {
        "captions": {"image": picture, "captions": sequence({"text": text, "language": text})},
        "interleaved": {
            "language": text,
            "images": sequence(picture),
            "segments": sequence({"text": text, "picture": number, "text_index": number}),
        },
        "instruct": {
            "images": sequence(picture),
            "questions": sequence({"question": text, "answer": text, "language": text}),
        },
        "text_only": {"language": text, "text": text},
    }
    return tfds.features.FeaturesDict({"id": text, **typed[kind], "other": text})


def _examples(source: Any, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    quarantine = Quarantine(limit=0, floor=0)  # prepared records are sound, so a single bad one is worth stopping for
    quarantine.expect(source.name, len(source))
    for index in range(len(source)):
        quarantine.met(source.name)
        try:
            example = to_example(source[index], kind)
        except BadRecord as error:
            quarantine.add(source.name, error.record_id or str(index), str(error))
            continue
        # TFDS takes bytes for a path; a file object is taken for what is in the file.
        if "image" in example:
            example["image"] = io.BytesIO(example["image"])
        if "images" in example:
            example["images"] = [io.BytesIO(data) for data in example["images"]]
        yield example["id"], example


def _origin_of(tfds: Any, place: Path) -> str:
    if not (place / "features.json").exists():
        return ""
    try:
        return str((tfds.builder_from_directory(str(place)).info.metadata or {}).get(ORIGIN_KEY, ""))
    except (OSError, ValueError, KeyError):
        return ""
