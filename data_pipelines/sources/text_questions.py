"""Questions without pictures, written down in the config itself: for a handful that an experiment asks or trains on."""

import dataclasses
from typing import Any

from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TextQuestion:
    """A question with its answer.

    expected: words of which a right answer names one, for the metric `contains`; none = the answer itself.
    """

    question: str
    answer: str
    expected: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class TextQuestions:
    """The questions, their language, and the name of the source."""

    items: tuple[TextQuestion, ...]
    language: str = "en"
    name: str = "text_questions"


class TextQuestionsSource:
    """Records without a picture, one a question.

    {'id': 'text_questions/3', 'questions': [{'question', 'answer', 'expected', 'language', 'type'}]}
    """

    def __init__(self, config: TextQuestions) -> None:
        """Raises UserError if there is no question."""
        if not config.items:
            raise UserError(f"source '{config.name}': it has no questions; give some in `items`")
        self.config = config
        self.name = config.name

    def __len__(self) -> int:
        return len(self.config.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record of one question."""
        item = self.config.items[index]
        entry = {
            "question": item.question,
            "answer": item.answer,
            "expected": item.expected or (item.answer,),
            "language": self.config.language,
            "type": "text",
        }
        return {"id": f"{self.name}/{index}", "questions": [entry]}
