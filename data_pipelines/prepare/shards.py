"""Writes records as ArrayRecord shards with a manifest: the same records give the same files, or nothing is left.

A set is built in a directory beside its own and takes its place when it is whole, so a killed build leaves nothing that
looks finished, and the next one starts the set afresh. Records stand in the order of a hash of their ids: whatever
order they came in, and shuffled well enough that a part of the files is a fair sample.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.manifest import Manifest, code_hash, config_hash, is_intact, write_manifest
from data_pipelines.prepare.set_writer import SetWriter, manifest_of, refuse_foreign
from data_pipelines.prepare.shard_files import SHARD_BYTES, write_shard
from data_pipelines.prepare.splits import SPLITS, Split
from vlm_jax.errors import UserError

__all__ = ["SHARD_BYTES", "SetWriter", "find_set", "write_set", "write_shard", "write_splits"]


def write_set(
    directory: Path,
    records: Iterable[Mapping[str, Any]],
    *,
    config: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
    shards: int = 0,
    bad_record_limit: float = 0.01,
) -> Manifest:
    """Writes one set, unless it is there already: with the same config and code, and every file as it was written.

    Args:
        directory: Of the set: OUT/captions/birds/train.
        records: In any order; not touched where the set is there. Each needs an 'id' of its own. 'real' of a record,
            if it has it, lists the distinct real (picture, text) pairs that it is made from; they are counted.
        config: All that the records depend on besides the code (versions of packages, options), in JSON types.
        about: What else the manifest says; see `SetWriter`.
        shards: Number of files; 0 = as many as make them about SHARD_BYTES large.
        bad_record_limit: Share of records that cannot be encoded above which the build stops.

    Raises:
        UserError: if two records share an id, one has none, too many are bad, or the directory cannot be written.
    """
    if present := find_set(directory, config=config, about=about, shards=shards):
        return present
    with SetWriter(directory, config=config, about=about, shards=shards, bad_record_limit=bad_record_limit) as writer:
        for record in records:
            writer.add(record)
        return writer.finish()


def write_splits(
    directory: Path,
    records: Iterable[tuple[Split, Mapping[str, Any]]],
    *,
    config: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
    shards: int = 0,
    bad_record_limit: float = 0.01,
) -> dict[Split, Manifest]:
    """`write_set` for all splits of a set at once, from one pass over (split, record): OUT/captions/birds/{train, …}.

    A split without records is an empty set. A split that is there already is written again with the others.

    Raises:
        UserError: as `write_set`, or if a split has another name.
    """
    present = {split: find_set(directory / split, config=config, about=about, shards=shards) for split in SPLITS}
    if all(present.values()):
        return {split: manifest for split, manifest in present.items() if manifest}
    options: dict[str, Any] = {"config": config, "about": about, "bad_record_limit": bad_record_limit}
    with contextlib.ExitStack() as stack:
        writers = {
            split: stack.enter_context(SetWriter(directory / split, shards=shards, **options)) for split in SPLITS
        }
        for split, record in records:
            if split not in writers:
                raise UserError(f"{directory}: a record has the split {split!r}; it can be {', '.join(SPLITS)}")
            elsewhere = [other for other in SPLITS if other != split and record.get("id", "") in writers[other]]
            if elsewhere:
                raise UserError(
                    f"{directory}: record '{record['id']}' is in {split} and in {elsewhere[0]}; give it one"
                )
            writers[split].add(record)
        return {split: writer.finish() for split, writer in writers.items()}


def find_set(
    directory: Path, *, config: Mapping[str, Any], about: Mapping[str, Any] | None = None, shards: int = 0
) -> Manifest | None:
    """The manifest of this very set if it is there and whole; a change of `about` alone is written into it."""
    refuse_foreign(directory)
    wanted = config_hash({"shards": shards, **config})
    manifest = is_intact(directory, same=lambda found: found.config_hash == wanted and found.code_hash == code_hash())
    if manifest is None:
        return None
    fresh = manifest_of(manifest.files, {"shards": shards, **config}, about or {}, manifest.counts)
    fresh = dataclasses.replace(fresh, versions={**fresh.versions, **manifest.versions})
    if fresh != manifest:
        write_manifest(directory, fresh)
    return fresh
