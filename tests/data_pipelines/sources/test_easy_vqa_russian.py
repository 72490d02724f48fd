"""Every English template has one Russian sentence of its own, and every word in it agrees."""

import itertools
import re

import pytest

from data_pipelines.sources import EasyVQA, open_source
from data_pipelines.sources import easy_vqa_russian as russian
from data_pipelines.sources.easy_vqa_questions import COLORS, QUESTIONS, SHAPES, TEMPLATES

GOLDEN = {
    "is there a blue shape?": "Есть ли здесь синяя фигура?",
    "is there a red shape in the image?": "Есть ли на картинке красная фигура?",
    "is a yellow shape present?": "Видна ли жёлтая фигура?",
    "does the image contain a brown shape?": "Изображена ли на картинке коричневая фигура?",
    "is there not a blue shape?": "Правда ли, что здесь нет синей фигуры?",
    "is there not a teal shape in the image?": "Правда ли, что на картинке нет бирюзовой фигуры?",
    "is no black shape present?": "Верно ли, что чёрной фигуры не видно?",
    "does the image not contain a gray shape?": "Верно ли, что на картинке не изображена серая фигура?",
    "is there a circle?": "Есть ли здесь круг?",
    "is there a triangle in the image?": "Есть ли на картинке треугольник?",
    "is a rectangle present?": "Виден ли прямоугольник?",
    "does the image contain a circle?": "Изображён ли на картинке круг?",
    "is there not a circle?": "Правда ли, что здесь нет круга?",
    "is there not a rectangle in the image?": "Правда ли, что на картинке нет прямоугольника?",
    "is no triangle present?": "Верно ли, что треугольника не видно?",
    "does the image not contain a circle?": "Верно ли, что на картинке не изображён круг?",
    "what color is the shape?": "Какого цвета фигура?",
    "what is the color of the shape?": "Какой цвет у фигуры?",
    "what color is the triangle?": "Какого цвета треугольник?",
    "what is the color of the circle?": "Какой цвет у круга?",
    "what shape is in the image?": "Какая фигура на картинке?",
    "what shape does the image contain?": "Какая фигура изображена на картинке?",
    "what shape is present?": "Какая фигура здесь видна?",
    "what is the green shape?": "Что это за зелёная фигура?",
}
NOMINATIVE = "круг|прямоугольник|треугольник"


def sentences():
    return {english: russian.question(question) for english, question in QUESTIONS.items()}


def test_each_template_as_a_speaker_would_say_it():
    assert {english: russian.question(QUESTIONS[english]) for english in GOLDEN} == GOLDEN
    assert {QUESTIONS[english].template for english in GOLDEN} == set(TEMPLATES) == set(russian.QUESTIONS)
    assert len(set(GOLDEN.values())) == 24


def test_no_two_questions_become_the_same_sentence():
    assert len(set(sentences().values())) == len(QUESTIONS) == 107


def test_colours_are_declined_by_the_rules():
    for color, forms in russian.COLORS.items():
        soft = color == "blue"
        stem, ending = forms.masculine[:-2], forms.masculine[-2:]
        assert ending == ("ий" if soft else "ый")
        assert forms.masculine_genitive == stem + ("его" if soft else "ого")
        assert forms.feminine == stem + ("яя" if soft else "ая")
        assert forms.feminine_genitive == stem + ("ей" if soft else "ой")
    for nominative, genitive in russian.SHAPES.values():
        assert genitive == nominative + "а"
    assert tuple(russian.COLORS) == COLORS
    assert tuple(russian.SHAPES) == SHAPES


@pytest.mark.parametrize(("english", "sentence"), sentences().items())
def test_every_word_agrees(english, sentence):
    question = QUESTIONS[english]
    assert re.fullmatch(r"[А-ЯЁ][а-яё ,]+\?", sentence)
    if question.color:
        forms = russian.COLORS[question.color]
        before = re.search(r"(\w+) (фигур\w)\b", sentence)
        assert before[1] == {"фигура": forms.feminine, "фигуры": forms.feminine_genitive}[before[2]]
    if question.shape:
        assert russian.SHAPES[question.shape][0] in sentence
    # The genitive stands after 'нет' and 'у' and before 'не видно', and nowhere else; verbs agree with their noun.
    genitive = re.search(rf"\b(фигуры|({NOMINATIVE})а)\b", sentence) is not None
    assert genitive == bool(re.search(r"\bнет\b|\bу\b|не видно", sentence))
    verb = re.search(r"\b(вид(?:ен|на)|изображ(?:ён|ена))\b", sentence.lower())
    if verb:
        assert verb[1].endswith("на") == ("фигура" in sentence)


@pytest.mark.parametrize("english", [english for english, asked in QUESTIONS.items() if asked.type.startswith("yes")])
def test_yes_means_the_same_in_both_languages(english):
    sentence = russian.question(QUESTIONS[english])
    assert QUESTIONS[english].negated == bool(re.search(r"\b(not|no)\b", english))
    assert QUESTIONS[english].negated == bool(re.search(r"\b(нет|не)\b", sentence))
    # 'Нет ли …?' would turn the sense of the answer round; asking whether a negation is true does not.
    assert QUESTIONS[english].negated == bool(re.match(r"(Правда|Верно) ли, что ", sentence))


def test_answers():
    answers = {answer: russian.answer(answer) for answer in ("yes", "no", *COLORS, *SHAPES)}
    assert len(set(answers.values())) == 13
    assert answers["yes"] == "да"
    assert answers["no"] == "нет"
    assert answers["blue"] == "синий"
    assert answers["triangle"] == "треугольник"
    with pytest.raises(KeyError):
        russian.answer("pink")


def test_captions_agree():
    assert russian.captions("blue", "rectangle") == (
        "Синий прямоугольник.",
        "На картинке синий прямоугольник.",
        "Это прямоугольник синего цвета.",
        "Здесь изображён синий прямоугольник.",
    )
    assert russian.captions("red", "") == (
        "Красная фигура.",
        "На картинке красная фигура.",
        "Это фигура красного цвета.",
    )
    assert russian.captions("", "circle") == ("Круг.", "На картинке круг.", "Здесь изображён круг.")
    assert russian.captions("", "") == ()
    for color, shape in itertools.product(COLORS, SHAPES):
        for caption in russian.captions(color, shape):
            assert re.fullmatch(r"[А-ЯЁ][а-яё ]+\.", caption)
            assert russian.SHAPES[shape][0] in caption.lower()
            forms = russian.COLORS[color]
            agreeing = rf"\b{forms.masculine} (?:{NOMINATIVE})\b|\b{forms.masculine_genitive} цвета\b"
            assert re.search(agreeing, caption.lower())


@pytest.mark.parametrize(("split", "pictures", "count"), [("train", 4000, 38_575), ("test", 1000, 9_673)])
def test_every_question_of_the_data_set_has_its_twin(split, pictures, count):
    source = open_source(EasyVQA(split, ("en", "ru"), validation_images=0))
    assert len(source) == pictures
    asked = {"en": [], "ru": []}
    for index in range(len(source)):
        for entry in source[index]["questions"]:
            asked[entry["language"]].append((entry["question"], entry["answer"], entry["type"]))
    assert len(asked["en"]) == len(asked["ru"]) == count
    for (text, answer, kind), twin in zip(asked["en"], asked["ru"], strict=True):
        assert twin == (russian.question(QUESTIONS[text]), russian.answer(answer), kind)
