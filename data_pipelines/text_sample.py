"""A bounded sample of the texts of a mixture: by weight, from random places, with the languages balanced if asked."""

import collections
import heapq
import random
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines.examples import Text
from data_pipelines.kinds import to_example
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources import open_source
from data_pipelines.weights import Weights
from data_pipelines.words import script_of

MOST_RECORDS = 1_000_000
"""So many records of one source are drawn at most."""

LONGEST_TEXT = 20_000
"""Of a longer text, so many characters in a row are taken, from a random place, so that no page outweighs the rest."""

_POINTS = 33
"""At so many steps of a stage, shares are looked at."""

_GIVE_UP = 20
"""A sample looks at so many times the characters that it is to hold, when it waits for a rare language."""


def stage_shares(data: DataConfig, steps: int) -> list[float]:
    """The share of every entry of a stage's mixture, averaged over its steps; they sum to 1.

    Raises:
        UserError: if a source cannot be opened, of which the temperature needs the size.
    """
    sizes = [len(open_source(entry.source)) if data.temperature else 1 for entry in data.mixture]
    weights = Weights(data, sizes)
    points = np.unique(np.linspace(0, max(0, steps - 1), _POINTS).astype(int))
    return np.mean([weights.shares(int(step)) for step in points], axis=0).tolist()


def sample_texts(
    entries: Sequence[tuple[MixtureEntry, float]], characters: int, seed: int, temperature: float = 0.0
) -> Iterator[str]:
    """Texts of a mixture: every text of the records that are drawn, requests and questions too.

    The entry that lags furthest behind its share comes next, so the shares hold however the sizes of records differ; an
    entry that is used up drops out, and the others fill the sample. No record comes twice. The same arguments give the
    same texts in the same order.

    Args:
        entries: mixture entries with their shares of the characters; they need not sum to 1.
        characters: that the sample holds, give or take a record.
        seed: chooses the places.
        temperature: 0 = languages as they come. T > 0 takes of each in proportion to what comes, to the power 1/T: at
            large T, as much of each. Languages are told apart by script; texts without a letter are left as they come.

    Raises:
        UserError: if a source cannot be opened.
    """
    drawn = _by_share(entries, seed)
    if temperature <= 0:
        taken = 0
        for text in drawn:
            yield text
            taken += len(text)
            if taken >= characters:
                return
        return
    yield from _balanced(drawn, characters, temperature)


def _balanced(drawn: Iterator[str], characters: int, temperature: float) -> Iterator[str]:
    """The first tenth as it comes says how much there is of each language; then each is taken up to its quota."""
    taken: collections.Counter[str] = collections.Counter()
    for text in drawn:
        taken[script_of(text)] += len(text)
        yield text
        if taken.total() >= characters / 10:
            break
    natural = {script: n / max(1, taken.total()) for script, n in taken.items()}
    lettered = {script: share ** (1 / temperature) for script, share in natural.items() if script != "other" and share}
    room = 1 - natural.get("other", 0.0)
    quotas = {script: characters * room * share / sum(lettered.values()) for script, share in lettered.items()}
    quotas["other"] = characters * (1 - room)
    seen = taken.total()
    for text in drawn:
        script = script_of(text)
        seen += len(text)
        if taken[script] < quotas.setdefault(script, characters / 100):
            taken[script] += len(text)
            yield text
        full = lettered and all(taken[script] >= quotas[script] for script in lettered)
        if full or taken.total() >= characters or seen > _GIVE_UP * characters:
            return


def _by_share(entries: Sequence[tuple[MixtureEntry, float]], seed: int) -> Iterator[str]:
    """Texts of all entries without an end but that of the sources."""
    streams = [_texts_by_record(entry, seed) for entry, _ in entries]
    behind = [(0.0, number) for number, (_, share) in enumerate(entries) if share > 0]
    while behind:
        taken, number = behind[0]
        texts = next(streams[number], None)
        if texts is None:
            heapq.heappop(behind)
            continue
        # A record without text moves on too, or a source of nothing but pictures would be asked for ever first.
        heapq.heapreplace(behind, (taken + max(1, sum(map(len, texts))) / entries[number][1], number))
        yield from texts


def _texts_by_record(entry: MixtureEntry, seed: int) -> Iterator[list[str]]:
    source = open_source(entry.source)
    own = zlib.crc32(entry.title.encode())
    places, rng = random.Random(f"{seed} {entry.title}"), np.random.default_rng((seed, own))
    for index in places.sample(range(len(source)), min(len(source), MOST_RECORDS)):
        try:
            example = to_example(source[index], entry.kind, rng, entry.title)
        except BadRecord:
            continue
        texts = []
        for segments in (example.trunk, *example.branches):
            for segment in segments:
                if isinstance(segment, Text):
                    start = places.randrange(max(1, len(segment.text) - LONGEST_TEXT + 1))
                    texts.append(segment.text[start : start + LONGEST_TEXT])
        yield texts
