"""How a caption is asked for, by language."""

from collections.abc import Mapping
from typing import Literal

from data_pipelines.prepare.splits import template_split

Wordings = Literal["plain", "train", "held_out"]

REQUESTS: Mapping[str, tuple[str, ...]] = {
    "en": ("Describe the picture.", "What is in the picture?", "Write a caption."),
    "ru": ("Опиши картинку.", "Что на картинке?", "Напиши подпись."),
}
"""The plain ones."""

_MORE: Mapping[str, tuple[str, ...]] = {
    "en": (
        "Describe this image.",
        "What does the image show?",
        "What is shown here?",
        "Give a short description of the picture.",
        "Caption this image.",
        "Tell me what you see in the picture.",
        "What can be seen in the picture?",
        "Say in a few words what the picture shows.",
        "What is this a picture of?",
        "What is in this image?",
        "Put the picture into words.",
        "Could you describe this image?",
        "In one sentence, what is in the image?",
    ),
    "ru": (
        "Опиши это изображение.",
        "Что изображено на картинке?",
        "Что здесь показано?",
        "Кратко опиши картинку.",
        "Придумай подпись к изображению.",
        "Расскажи, что ты видишь на картинке.",
        "Что можно увидеть на этой картинке?",
        "Скажи в нескольких словах, что на картинке.",
        "Какую подпись ты дашь этой картинке?",
        "Подпиши эту картинку.",
        "Опиши изображение одним предложением.",
    ),
}


def _of_split(language: str, held_out: bool) -> tuple[str, ...]:
    return tuple(wording for wording in _MORE[language] if (template_split(wording) != "train") == held_out)


WORDINGS: Mapping[Wordings, Mapping[str, tuple[str, ...]]] = {
    "plain": REQUESTS,
    "train": {language: (*plain, *_of_split(language, False)) for language, plain in REQUESTS.items()},
    "held_out": {language: _of_split(language, True) for language in REQUESTS},
}
"""The plain ones; those and more; and those that training never sees, as `prepare.splits.template_split` has it."""
