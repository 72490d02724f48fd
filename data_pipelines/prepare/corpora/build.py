"""Builds the sets of the real corpora: OUT/SET/SPLIT/{shard-…, manifest.json}; those that are there are left."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from data_pipelines.manifest import Manifest
from data_pipelines.prepare.corpora.fetch import taken, versions
from data_pipelines.prepare.corpora.sets import CorpusSet, Record, corpus_sets
from data_pipelines.prepare.shards import write_splits
from data_pipelines.prepare.splits import Split
from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Built:
    """A set that lies in the output."""

    corpus: CorpusSet
    manifests: Mapping[Split, Manifest]
    new: bool
    """It was built by this call, not found."""

    @property
    def records(self) -> int:
        """Records of all splits."""
        return sum(manifest.records for manifest in self.manifests.values())


def chosen_sets(raw: Path, names: Sequence[str] = ()) -> tuple[list[CorpusSet], dict[str, tuple[str, ...]]]:
    """Which sets can be built from the packages that are there.

    Args:
        raw: where `fetch` unpacked the packages.
        names: of sets, or beginnings of them ('captions'); () = all.

    Returns:
        The sets, and {name: packages that are missing} of the sets that have to be left out.

    Raises:
        UserError: if a name is unknown, or none of the sets that a name stands for can be built.
    """
    known = corpus_sets()
    for name in names:
        if not any(_is_within(each, name) for each in known):
            raise UserError(f"--only {name}: no such set; there are {', '.join(known)}")
    sets = [each for each in known.values() if not names or any(_is_within(each.name, name) for name in names)]
    present = {name for each in sets for name in each.packages if taken(raw, name) is not None}
    missing = {each.name: tuple(sorted(set(each.packages) - present)) for each in sets}
    missing = {name: packages for name, packages in missing.items() if packages}
    hopeless = [
        each
        for name in names or [""]
        if all(each.name in missing for each in sets if _is_within(each.name, name))
        for each in sets
        if _is_within(each.name, name)
    ]
    if hopeless:
        needed = sorted({package for each in hopeless for package in missing[each.name]})
        raise UserError(
            f"{raw}: the packages {', '.join(needed)} are not there; run `vlm data fetch --output {raw}` first "
            "(experiments/quickstart.py needs none of this)"
        )
    return [each for each in sets if each.name not in missing], missing


def build_sets(
    sets: Iterable[CorpusSet],
    raw: Path,
    output: Path,
    progress: Callable[[str, int], None] = lambda name, records: None,
) -> Iterator[Built]:
    """Builds sets one after another. The same packages and code give the same files.

    Args:
        sets: to build.
        raw: where the packages lie.
        output: directory that sets go into, each at its name.
        progress: called with the set's name and the number of its records so far.

    Raises:
        UserError: if a package is not what a set expects, or the output cannot be written.
    """
    for each in sets:
        counted = _Counted(each, raw, progress)
        manifests = write_splits(
            output / each.name,
            counted,
            config={"set": each.name, "packages": dict(versions(raw, each.packages))},
            about={"kind": each.kind, "licences": [each.licence], "about": each.about},
        )
        yield Built(each, manifests, counted.begun)


class _Counted:
    """The records of a set, built when the first is asked for."""

    def __init__(self, corpus: CorpusSet, raw: Path, progress: Callable[[str, int], None]) -> None:
        self.begun = False
        self._corpus, self._raw, self._progress = corpus, raw, progress

    def __iter__(self) -> Iterator[tuple[Split, Record]]:
        self.begun = True
        for number, (split, record) in enumerate(self._corpus.build(self._raw), 1):
            yield split, record
            self._progress(self._corpus.name, number)


def _is_within(name: str, chosen: str) -> bool:
    return chosen in ("", name) or name.startswith(chosen.rstrip("/") + "/")
