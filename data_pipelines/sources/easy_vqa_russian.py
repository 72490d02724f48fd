"""easy-VQA in Russian: a fixed table that turns each English question, answer and caption into one Russian sentence.

'Фигура' is feminine, the shapes' names are masculine and inanimate, so an adjective takes the form of its noun and of
its case: nominative after 'есть', genitive after 'нет' and 'не видно'. A negated question keeps the sense of the
English one: 'да' means that the thing is absent.

The answer to a question about colour is always the colour's name, that is the masculine adjective in the nominative
('синий'), whatever the gender of the thing asked about.
"""

import dataclasses
import functools
from collections.abc import Mapping

from data_pipelines.sources.easy_vqa_questions import Question


@dataclasses.dataclass(frozen=True)
class Adjective:
    """Forms of a colour's name that the table needs."""

    masculine: str
    """синий (круг)"""
    masculine_genitive: str
    """синего (цвета)"""
    feminine: str
    """синяя (фигура)"""
    feminine_genitive: str
    """синей (фигуры)"""


COLORS: Mapping[str, Adjective] = {
    "black": Adjective("чёрный", "чёрного", "чёрная", "чёрной"),
    "gray": Adjective("серый", "серого", "серая", "серой"),
    "red": Adjective("красный", "красного", "красная", "красной"),
    "brown": Adjective("коричневый", "коричневого", "коричневая", "коричневой"),
    "yellow": Adjective("жёлтый", "жёлтого", "жёлтая", "жёлтой"),
    "green": Adjective("зелёный", "зелёного", "зелёная", "зелёной"),
    "blue": Adjective("синий", "синего", "синяя", "синей"),
    "teal": Adjective("бирюзовый", "бирюзового", "бирюзовая", "бирюзовой"),
}

SHAPES: Mapping[str, tuple[str, str]] = {
    "rectangle": ("прямоугольник", "прямоугольника"),
    "circle": ("круг", "круга"),
    "triangle": ("треугольник", "треугольника"),
}
"""Nominative and genitive."""

QUESTIONS: Mapping[str, str] = {
    "is there a {color} shape?": "Есть ли здесь {feminine} фигура?",
    "is there a {color} shape in the image?": "Есть ли на картинке {feminine} фигура?",
    "is a {color} shape present?": "Видна ли {feminine} фигура?",
    "does the image contain a {color} shape?": "Изображена ли на картинке {feminine} фигура?",
    "is there not a {color} shape?": "Правда ли, что здесь нет {feminine_genitive} фигуры?",
    "is there not a {color} shape in the image?": "Правда ли, что на картинке нет {feminine_genitive} фигуры?",
    "is no {color} shape present?": "Верно ли, что {feminine_genitive} фигуры не видно?",
    "does the image not contain a {color} shape?": "Верно ли, что на картинке не изображена {feminine} фигура?",
    "is there a {shape}?": "Есть ли здесь {shape}?",
    "is there a {shape} in the image?": "Есть ли на картинке {shape}?",
    "is a {shape} present?": "Виден ли {shape}?",
    "does the image contain a {shape}?": "Изображён ли на картинке {shape}?",
    "is there not a {shape}?": "Правда ли, что здесь нет {shape_genitive}?",
    "is there not a {shape} in the image?": "Правда ли, что на картинке нет {shape_genitive}?",
    "is no {shape} present?": "Верно ли, что {shape_genitive} не видно?",
    "does the image not contain a {shape}?": "Верно ли, что на картинке не изображён {shape}?",
    "what color is the shape?": "Какого цвета фигура?",
    "what is the color of the shape?": "Какой цвет у фигуры?",
    "what color is the {shape}?": "Какого цвета {shape}?",
    "what is the color of the {shape}?": "Какой цвет у {shape_genitive}?",
    "what shape is in the image?": "Какая фигура на картинке?",
    "what shape does the image contain?": "Какая фигура изображена на картинке?",
    "what shape is present?": "Какая фигура здесь видна?",
    "what is the {color} shape?": "Что это за {feminine} фигура?",
}

_YES_NO = {"yes": "да", "no": "нет"}


@functools.cache
def question(asked: Question) -> str:
    """The Russian sentence for an English question."""
    return QUESTIONS[asked.template].format(**_words(asked.color, asked.shape))


def answer(english: str) -> str:
    """The Russian answer.

    Raises:
        KeyError: if it is none of the data set's 13 answers.
    """
    if english in _YES_NO:
        return _YES_NO[english]
    if english in COLORS:
        return COLORS[english].masculine
    return SHAPES[english][0]


@functools.cache
def captions(color: str, shape: str) -> tuple[str, ...]:
    """Captions that name the colour and the shape; '' = not known."""
    if color and shape:
        phrases: tuple[str, ...] = (
            "{masculine} {shape}",
            "на картинке {masculine} {shape}",
            "это {shape} {masculine_genitive} цвета",
            "здесь изображён {masculine} {shape}",
        )
    elif color:
        phrases = ("{feminine} фигура", "на картинке {feminine} фигура", "это фигура {masculine_genitive} цвета")
    elif shape:
        phrases = ("{shape}", "на картинке {shape}", "здесь изображён {shape}")
    else:
        phrases = ()
    sentences = (phrase.format(**_words(color, shape)) for phrase in phrases)
    return tuple(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def _words(color: str, shape: str) -> dict[str, str]:
    words = dataclasses.asdict(COLORS[color]) if color else {}
    if shape:
        words["shape"], words["shape_genitive"] = SHAPES[shape]
    return words
