"""Reading: real sentences of the corpora set into pictures, with the question what they say and the exact text.

What is real here is the text; pictures, faces and damage are made, so the records name no real pairs. A text stands in
the split of its page, and some faces and some wordings are held out of training.
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.prepare.corpora.sets import CorpusSet, Record
from data_pipelines.prepare.corpora.transcription.fonts import FONT_PACKAGES, Face, faces, faces_for
from data_pipelines.prepare.corpora.transcription.sentences import sentences, text_sets
from data_pipelines.prepare.corpora.transcription.text_pictures import draw_style, render
from data_pipelines.prepare.splits import SPLITS, Split, template_split

PICTURES = 8000
"""How many texts of a language are set, of all splits together; those first by checksum."""

_IN_THE_OTHER = 0.15
"""Share of the questions that are asked in the other language."""

REQUESTS: Mapping[str, tuple[str, ...]] = {
    "en": (
        "What does the picture say?",
        "Read the text in the picture.",
        "Transcribe the text.",
        "What is written here?",
        "Write out the text that you see.",
        "Which text is in the image?",
        "Type what the image says, word for word.",
        "What can be read here?",
        "Copy the text from the picture exactly.",
        "Give me the exact words in the image.",
        "Read this to me, please.",
        "What text do you see?",
    ),
    "ru": (
        "Что написано на картинке?",
        "Прочитай текст на картинке.",
        "Перепиши текст.",
        "Что здесь написано?",
        "Выпиши текст, который видишь.",
        "Какой текст на изображении?",
        "Напечатай дословно то, что на изображении.",
        "Что здесь можно прочитать?",
        "Перепиши текст с картинки в точности.",
        "Дай точные слова с изображения.",
        "Прочти мне это, пожалуйста.",
        "Какой текст ты видишь?",
    ),
}


def transcriptions(
    texts: Iterable[tuple[Split, str]], language: str, every_face: Sequence[Face], seed: int = 0
) -> Iterator[tuple[Split, Record]]:
    """A picture of each text, and the question what it says.

    Args:
        texts: (split, text).
        language: Of the texts.
        every_face: To set them in; at least one must be training's.
        seed: Another seed gives other pictures.

    Yields:
        (split, {'id', 'image', 'questions': [{'question', 'answer', 'language', 'task', 'held_out'}], 'face'}):
        a function of the text, the faces and the seed alone.
    """
    faces_of = {split: faces_for(split, every_face) for split in SPLITS}
    for split, text in texts:
        checksum = _checksum(text)
        rng = np.random.default_rng([int(checksum, 16), seed])
        face = faces_of[split][int(rng.integers(len(faces_of[split])))]
        image = render(text, draw_style(rng, face.path, len(text)), rng)
        other = {"en": "ru", "ru": "en"}[language]
        asked_in = other if rng.random() < _IN_THE_OTHER else language
        question, held_out = _request(asked_in, split, rng)
        entry = {
            "question": question,
            "answer": text,
            "language": language,
            "task": "transcribe",
            "held_out": held_out,
        }
        yield (
            split,
            {
                "id": f"transcription/{language}/{checksum}",
                "image": image,
                "questions": [entry],
                "face": face.name,
            },
        )


def _request(language: str, split: Split, rng: np.random.Generator) -> tuple[str, bool]:
    """A wording, and whether it is held out: half of those in validation and test are."""
    seen = [each for each in REQUESTS[language] if template_split(each) == "train"]
    held_out = [each for each in REQUESTS[language] if each not in seen]
    take_held_out = split != "train" and bool(held_out) and rng.random() < 0.5
    pool = held_out if take_held_out else seen
    return pool[int(rng.integers(len(pool)))], take_held_out


def chosen(texts: Iterable[tuple[Split, str]], count: int) -> list[tuple[Split, str]]:
    """`count` of the texts, those whose checksums come first, in that order."""
    return sorted(texts, key=lambda each: _checksum(each[1]))[:count]


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _build(raw: Path, *, language: str) -> Iterator[tuple[Split, Record]]:
    every_face = faces(raw)
    return transcriptions(chosen(sentences(raw, language), PICTURES), language, every_face)


def _set(language: str) -> CorpusSet:
    texts = text_sets(language)
    packages = dict.fromkeys(package for each in texts for package in each.packages)
    licences = dict.fromkeys(each.licence for each in texts)
    return CorpusSet(
        name=f"transcription/{language}",
        kind="instruct",
        packages=(*packages, *FONT_PACKAGES),
        licence=" AND ".join(f"({each})" if " " in each else each for each in licences),
        build=functools.partial(_build, language=language),
        about="Sentences and headings of the manuals set in many faces; what is real is the text, not the picture",
    )


SETS = tuple(_set(language) for language in REQUESTS)
