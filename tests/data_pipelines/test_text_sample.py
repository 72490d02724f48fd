"""The tokenizer's sample: bounded, seeded, from all over the sources, by weight, and with languages balanced."""

import collections
import dataclasses

import numpy as np
import pytest

from data_pipelines import text_sample
from data_pipelines.examples import Example, Text
from data_pipelines.mixture import MixtureEntry
from data_pipelines.quarantine import BadRecord
from data_pipelines.text_sample import LONGEST_TEXT, sample_texts
from data_pipelines.words import script_of


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Record n says its number, in as many words as it is told; it is its own config."""

    name: str = "numbered"
    records: int = 10_000
    words: int = 4
    russian: float = 0.0
    bad: int = 0

    def __len__(self):
        return self.records

    def __getitem__(self, index):
        if self.bad and index % self.bad == 0:
            raise BadRecord("bad", f"{index}")
        word = "слово" if (index % 1000) / 1000 < self.russian else "words"
        return {"id": f"{self.name}/{index}", "text": f"{word} " * self.words + f"{self.name}:{index}"}


@dataclasses.dataclass(frozen=True)
class Plain:
    def __call__(self, record, rng, source=""):
        return Example((Text(record["text"], loss=True),), source=source, id=record["id"])


@pytest.fixture(autouse=True)
def own_config(monkeypatch):
    monkeypatch.setattr(text_sample, "open_source", lambda config: config)


def entry(**fields):
    return MixtureEntry(Numbered(**fields), Plain())


def places(texts, name="numbered"):
    return [int(t.rpartition(":")[2]) for t in texts if f" {name}:" in t]


def characters(texts):
    return sum(map(len, texts))


def test_the_sample_is_bounded_and_the_same_for_the_same_seed():
    texts = list(sample_texts([(entry(), 1.0)], 20_000, seed=3))
    assert 20_000 <= characters(texts) < 20_000 + 50
    assert texts == list(sample_texts([(entry(), 1.0)], 20_000, seed=3))
    assert set(texts) != set(sample_texts([(entry(), 1.0)], 20_000, seed=4))


def test_places_are_all_over_the_source_and_none_comes_twice():
    found = places(sample_texts([(entry(), 1.0)], 20_000, seed=0))
    assert len(found) == len(set(found)) > 500
    share, _ = np.histogram(found, bins=10, range=(0, 10_000))
    assert share.min() > 0.6 * len(found) / 10


def test_a_small_source_is_taken_whole_and_the_others_fill_the_sample():
    small, large = entry(name="small", records=20), entry(name="large")
    texts = list(sample_texts([(small, 1.0), (large, 1.0)], 30_000, seed=0))
    assert sorted(places(texts, "small")) == list(range(20))
    assert characters(texts) >= 30_000
    assert characters(list(sample_texts([(small, 1.0)], 30_000, seed=0))) < 1_000


def test_shares_are_of_characters_however_long_the_records_are():
    long, short = entry(name="long", words=200), entry(name="short", words=1)
    texts = list(sample_texts([(long, 3.0), (short, 1.0)], 60_000, seed=0))
    assert characters([t for t in texts if " long:" in t]) / characters(texts) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(("temperature", "share"), [(0.0, 0.1), (1.0, 0.1), (2.0, 0.25), (1e9, 0.5)])
def test_temperature_brings_languages_together(temperature, share):
    texts = list(sample_texts([(entry(russian=0.1, records=50_000), 1.0)], 100_000, seed=1, temperature=temperature))
    taken: collections.Counter[str] = collections.Counter()
    for text in texts:
        taken[script_of(text)] += len(text)
    # Latin and Cyrillic are 9 : 1; to the power 1/2 that is 3 : 1.
    assert taken["cyrillic"] / taken.total() == pytest.approx(share, abs=0.04)
    assert taken.total() == pytest.approx(100_000, rel=0.1)


def test_a_language_that_runs_out_ends_the_sample_with_what_there_is():
    texts = list(sample_texts([(entry(russian=0.1, records=1_000), 1.0)], 30_000, seed=1, temperature=1e9))
    assert sum(script_of(text) == "cyrillic" for text in texts) >= 99


def test_languages_in_other_scripts_are_left_as_they_come():
    class Numbers:
        kind = "numbers"

        def __call__(self, record, rng, source=""):
            return Example((Text("漢字 12345"),), source=source, id=record["id"])

    texts = list(sample_texts([(MixtureEntry(Numbered(), Numbers()), 1.0)], 5_000, seed=0, temperature=3.0))
    assert 5_000 <= characters(texts) < 5_100


def test_bad_records_are_passed_over_and_endless_texts_cut():
    texts = list(sample_texts([(entry(bad=2, records=100), 1.0)], 10**9, seed=0))
    assert sorted(places(texts)) == list(range(1, 100, 2))
    (text,) = sample_texts([(entry(words=20_000, records=1), 1.0)], 10**9, seed=0)
    assert len(text) == LONGEST_TEXT
