"""A tiny source, kind and processor, so that data tests say themselves what the data are."""

import dataclasses
from types import SimpleNamespace
from typing import ClassVar

import cv2
import numpy as np
import pytest

from data_pipelines.examples import Example, Image, Text
from data_pipelines.images import ImagePreprocessing
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.quarantine import BadRecord
from data_pipelines.template import Processor, TemplateConfig
from data_pipelines.tokenizers import SentencePieceConfig, train_sentencepiece

SIZE = (8, 6)
PROMPT_TOKENS = 3


@dataclasses.dataclass(frozen=True)
class TinySource:
    """Record n has n mod 3 pictures (or `pictures`) and 1 + n mod 5 questions; it is its own config."""

    name: str = "tiny"
    records: int = 40
    pictures: int | None = None
    bad_records: tuple[int, ...] = ()
    bad_pictures: tuple[int, ...] = ()
    long_records: tuple[int, ...] = ()

    def __len__(self):
        return self.records

    def __getitem__(self, index):
        if index in self.bad_records:
            raise BadRecord("no question", f"{self.name}/{index}")
        count = index % 3 if self.pictures is None else self.pictures
        images = tuple(picture(index, k, bad=index in self.bad_pictures) for k in range(count))
        questions = 400 if index in self.long_records else 1 + index % 5
        return {"id": f"{self.name}/{index}", "images": images, "questions": questions, "number": index}


@dataclasses.dataclass(frozen=True)
class TinyKind:
    """Pictures, then a branch a question, with a word that chance decides."""

    kind: ClassVar[str] = "tiny"

    def __call__(self, record, rng, source=""):
        branches = tuple(
            (
                Text(f"question {k} about {record['number']}?", role="user"),
                Text(("да", "no")[int(rng.integers(2))], loss=True, role="assistant"),
            )
            for k in range(record["questions"])
        )
        return Example(trunk=record["images"], branches=branches, source=source, id=record["id"])


def picture(number, k=0, bad=False):
    """A picture of one colour that says which record it belongs to, or bytes that are no picture."""
    if bad:
        return Image(data=b"no picture at all")
    pixels = np.full((*SIZE, 3), (10 * k, number % 256, 200), np.uint8)
    return Image(data=cv2.imencode(".png", pixels)[1].tobytes())


@pytest.fixture(scope="session")
def processor():
    texts = [f"question {k} about {n}? да no" for k in range(5) for n in range(60)]
    tokenizer = train_sentencepiece(texts, SentencePieceConfig(vocabulary_size=290))
    return Processor(tokenizer, TemplateConfig(bidirectional_images=True), ImagePreprocessing(), SIZE, PROMPT_TOKENS)


@pytest.fixture
def tiny(monkeypatch):
    """make(entries or sources, **data fields) -> a stage over tiny sources."""
    monkeypatch.setattr("data_pipelines.loader.open_source", lambda config: config)

    def make(*entries, **fields):
        entries = entries or (TinySource(),)
        mixture = tuple(e if isinstance(e, MixtureEntry) else MixtureEntry(e, TinyKind()) for e in entries)
        sizes = {"rows": 4, "length": 160, "images": 4, "examples": 12, "window": 12} | fields
        return SimpleNamespace(name="stage", data=DataConfig(mixture=mixture, **sizes))

    make.Source, make.Kind, make.Entry, make.picture = TinySource, TinyKind, MixtureEntry, picture
    return make
