"""A source with two languages, a train split of its own, and a model that knows what it is told to know."""

import dataclasses
from collections import Counter

import cv2
import numpy as np
import pytest

from data_pipelines.examples import Image, Text
from data_pipelines.quarantine import BadRecord

QUESTIONS = {"en": ("what color?", "is it red?"), "ru": ("какого цвета?", "он красный?")}
COLORS = {"en": ("red", "blue"), "ru": ("красный", "синий")}
YES_NO = {"en": ("yes", "no"), "ru": ("да", "нет")}


def picture(number):
    """Red where the number is a multiple of three, else blue; no two are equal."""
    pixels = np.full((4, 4, 3), number, np.uint8)
    pixels[..., 0 if number % 3 else 2] = 255
    return Image(data=cv2.imencode(".png", pixels)[1].tobytes())


@dataclasses.dataclass(frozen=True)
class ColorSource:
    """Record n asks two questions a language about picture n; it is its own config."""

    split: str = "test"
    records: int = 12
    languages: tuple[str, ...] = ("en",)
    bad_records: tuple[int, ...] = ()
    bad_pictures: tuple[int, ...] = ()
    empty_records: tuple[int, ...] = ()
    name: str = "colors"

    def __len__(self):
        return self.records

    def __getitem__(self, index):
        record_id = f"colors/{self.split}/{index}"
        if index in self.bad_records:
            raise BadRecord("it is torn", record_id)
        # In training most pictures are red, in the test most are blue.
        red = index % 3 == 0 if self.split == "test" else index % 3 != 0
        questions = [
            {"question": q, "answer": a, "language": language, "type": t}
            for language in self.languages
            for q, a, t in zip(
                QUESTIONS[language],
                (COLORS[language][not red], YES_NO[language][not red]),
                ("color", "yes_no_color"),
                strict=True,
            )
        ]
        image = Image(data=b"torn") if index in self.bad_pictures else picture(index)
        return {"id": record_id, "image": image, "questions": [] if index in self.empty_records else questions}


@dataclasses.dataclass(frozen=True)
class Task:
    name: str
    source: ColorSource
    metric: str = "exact_match"
    max_new_tokens: int = 4
    ask: str = "questions"
    limit: int = 0
    likelihood: bool = False


class Looker:
    """Answers rightly about the picture that it is shown, except about those in `blind_to`."""

    def __init__(self, blind_to=()):
        self.blind = {picture(number) for number in blind_to}
        self.asked = Counter()

    def generate(self, prompts, *, max_new_tokens, progress=None):
        self.asked[max_new_tokens] += len(prompts)
        if progress:
            progress(len(prompts), len(prompts))
        return [self.answer(*prompt.trunk) for prompt in prompts]

    def answer(self, image, text):
        assert isinstance(text, Text)
        assert text.role == "user"
        red = cv2.imdecode(np.frombuffer(image.data, np.uint8), cv2.IMREAD_COLOR)[0, 0, 2] == 255
        language = "ru" if text.text in QUESTIONS["ru"] else "en"
        words = COLORS if text.text == QUESTIONS[language][0] else YES_NO
        return "?" if image in self.blind else f" {words[language][not red].upper()}."


@pytest.fixture
def lab(monkeypatch):
    """Task, ColorSource and Looker, with `open_source` that gives such a source as it is."""
    monkeypatch.setattr("vlm_jax.evaluation.runner.open_source", lambda config: config)
    monkeypatch.setattr("vlm_jax.evaluation.questions.open_source", lambda config: config)
    lab = type("Lab", (), {"Task": Task, "Source": ColorSource, "Looker": Looker, "picture": staticmethod(picture)})
    return lab()
