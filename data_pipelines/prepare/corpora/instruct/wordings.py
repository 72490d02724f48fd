"""What is asked about a picture, and how: wordings by task and language, some of which training never sees."""

import hashlib
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from data_pipelines.prepare.splits import Split, template_split

Task = Literal["name", "describe", "fits", "choose_letter", "choose_text", "correct", "keywords", "heading"]

TASKS: tuple[Task, ...] = get_args(Task)

Language = Literal["en", "ru"]

YES_NO: Mapping[str, tuple[str, str]] = {"en": ("Yes.", "No."), "ru": ("Да.", "Нет.")}

LETTERS: Mapping[str, str] = {"en": "ABCD", "ru": "АБВГ"}

RIGHT: Mapping[str, str] = {"en": "Yes, that is right.", "ru": "Да, верно."}

WRONG: Mapping[str, str] = {"en": "No. The right caption is “{caption}”.", "ru": "Нет. Верная подпись: «{caption}»."}

QUOTES: Mapping[str, str] = {"en": "“{}”", "ru": "«{}»"}

WORDINGS: Mapping[Task, Mapping[str, tuple[str, ...]]] = {
    "name": {
        "en": (
            "What is this?",
            "What does the picture show? Name it.",
            "Name what you see in the picture.",
            "What is the thing in the picture called?",
            "In a few words: what is in the picture?",
            "Which thing is shown here?",
            "Give the name of what is shown.",
            "Can you tell me what this is?",
            "Say briefly what this picture shows.",
            "What would you call this?",
        ),
        "ru": (
            "Что это?",
            "Что показано на картинке? Назови.",
            "Назови то, что видишь на картинке.",
            "Как называется то, что изображено?",
            "В двух словах: что на картинке?",
            "Что здесь изображено?",
            "Дай название изображённому.",
            "Можешь сказать, что это такое?",
            "Скажи кратко, что на этой картинке.",
            "Как бы ты это назвал?",
        ),
    },
    "describe": {
        "en": (
            "Describe the picture.",
            "Tell me about what is shown in the picture.",
            "What can you say about this picture?",
            "Explain what the picture shows.",
            "Write a caption with some detail.",
            "What is worth knowing about what is shown here?",
            "Give a description of the image.",
            "What is going on in this image?",
        ),
        "ru": (
            "Опиши картинку.",
            "Расскажи о том, что показано на картинке.",
            "Что можно сказать об этой картинке?",
            "Объясни, что показано на картинке.",
            "Напиши подробную подпись.",
            "Что стоит знать о том, что здесь изображено?",
            "Дай описание изображения.",
            "Что происходит на этом изображении?",
        ),
    },
    "fits": {
        "en": (
            "Does the caption “{caption}” fit the picture? Answer yes or no.",
            "Is “{caption}” a right caption for this image? Yes or no.",
            "Somebody called the picture “{caption}”. Is that right? Yes or no?",
            "Is this what the words “{caption}” describe? Answer yes or no.",
            "Yes or no: do the words “{caption}” belong to this picture?",
            "Could “{caption}” stand below this picture? Yes or no?",
            "Do the words “{caption}” match the image? Say yes or no.",
            "Is the text “{caption}” about this picture? Reply yes or no.",
        ),
        "ru": (
            "Подходит ли к картинке подпись «{caption}»? Ответь да или нет.",
            "Верна ли подпись «{caption}» для этого изображения? Да или нет.",
            "Картинку назвали «{caption}». Это верно? Да или нет?",
            "Это описывают слова «{caption}»? Ответь да или нет.",
            "Да или нет: слова «{caption}» относятся к этой картинке?",
            "Может ли «{caption}» стоять под этой картинкой? Да или нет?",
            "Соответствуют ли слова «{caption}» изображению? Скажи да или нет.",
            "Текст «{caption}» — об этой картинке? Ответь да или нет.",
        ),
    },
    "choose_letter": {
        "en": (
            "Which caption fits the picture?\n{options}\nAnswer with the letter.",
            "Choose the caption that belongs to the image.\n{options}\nReply with one letter.",
            "What does the picture show?\n{options}\nGive only the letter.",
            "Pick the right description.\n{options}\nLetter only.",
            "One of these captions is right. Which?\n{options}\nAnswer with its letter.",
            "Look at the picture and choose.\n{options}\nWrite the letter of the right answer.",
        ),
        "ru": (
            "Какая подпись подходит к картинке?\n{options}\nОтветь буквой.",
            "Выбери подпись, которая относится к изображению.\n{options}\nОтветь одной буквой.",
            "Что показано на картинке?\n{options}\nНапиши только букву.",
            "Выбери верное описание.\n{options}\nТолько букву.",
            "Одна из этих подписей верна. Какая?\n{options}\nОтветь её буквой.",
            "Посмотри на картинку и выбери.\n{options}\nНапиши букву верного ответа.",
        ),
    },
    "choose_text": {
        "en": (
            "Which of these captions fits the picture: {options}?",
            "Which words belong to the image: {options}?",
            "Choose the right caption and write it out: {options}.",
            "Which is shown here: {options}?",
            "One of these is right, which one: {options}?",
            "What is the picture about: {options}?",
        ),
        "ru": (
            "Какая из этих подписей подходит к картинке: {options}?",
            "Какие слова относятся к изображению: {options}?",
            "Выбери верную подпись и выпиши её: {options}.",
            "Что здесь изображено: {options}?",
            "Одно из этого верно, что именно: {options}?",
            "О чём эта картинка: {options}?",
        ),
    },
    "correct": {
        "en": (
            "I think that this is “{caption}”. If I am wrong, correct me.",
            "The caption says “{caption}”. Is it right? If not, give the right one.",
            "Check the caption “{caption}” and correct it if needed.",
            "Someone wrote “{caption}” below this. Is it so? If not, what is it?",
            "Is it right to call this “{caption}”? If not, say what it is.",
            "Did I caption this well: “{caption}”? Put it right if not.",
        ),
        "ru": (
            "По-моему, это «{caption}». Если я ошибаюсь, поправь.",
            "Подпись гласит: «{caption}». Верно ли это? Если нет, дай верную.",
            "Проверь подпись «{caption}» и исправь, если нужно.",
            "Под этим написали «{caption}». Так ли это? Если нет, то что это?",
            "Верно ли назвать это «{caption}»? Если нет, скажи, что это.",
            "Хорошо ли я подписал картинку: «{caption}»? Если нет, исправь.",
        ),
    },
    "keywords": {
        "en": (
            "Give keywords for the picture.",
            "By which words would you search for this picture?",
            "List words that go with this image, separated by commas.",
            "Tag this picture.",
            "Which keywords describe the image?",
            "Name a few words that have to do with the picture.",
        ),
        "ru": (
            "Дай ключевые слова к картинке.",
            "По каким словам можно найти эту картинку?",
            "Перечисли через запятую слова, которые подходят к изображению.",
            "Поставь метки этой картинке.",
            "Какие ключевые слова описывают изображение?",
            "Назови несколько слов, связанных с картинкой.",
        ),
    },
    "heading": {
        "en": (
            "The picture comes from a manual. Under which heading does it stand?",
            "Which section of the manual does this picture illustrate?",
            "What is the section called that shows this picture?",
            "Give the heading of the passage that belongs to this picture.",
            "To which topic of the manual does the picture belong?",
            "Which heading goes with this image?",
        ),
        "ru": (
            "Картинка взята из руководства. Под каким заголовком она стоит?",
            "Какой раздел руководства иллюстрирует эта картинка?",
            "Как называется раздел, где показана эта картинка?",
            "Дай заголовок отрывка, к которому относится картинка.",
            "К какой теме руководства относится картинка?",
            "Какой заголовок подходит к этому изображению?",
        ),
    },
}


def held_out(task: Task, language: str) -> tuple[str, ...]:
    """The wordings that training never sees: those that `splits.template_split` gives to validation or test; if it
    gives none of them, the one that comes first by checksum.
    """
    every = WORDINGS[task][language]
    chosen = tuple(each for each in every if template_split(each) != "train")
    return chosen or (min(every, key=lambda each: hashlib.sha256(each.encode()).digest()),)


def wording(task: Task, language: str, split: Split, rng: np.random.Generator) -> tuple[str, bool]:
    """A wording for a question of a split, and whether it is held out: in validation and test, half of them are."""
    kept_back = held_out(task, language)
    take_held_out = split != "train" and rng.random() < 0.5
    pool = kept_back if take_held_out else [each for each in WORDINGS[task][language] if each not in kept_back]
    return pool[int(rng.integers(len(pool)))], take_held_out
