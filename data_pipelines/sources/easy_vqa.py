"""The easy-VQA source: pictures of one coloured shape, with questions and answers (package easy-vqa, MIT licence).

4,000 training and 1,000 test pictures of 64x64 pixels with 38,575 and 9,673 questions. Validation pictures are carved
out of the training ones. See https://github.com/vzhou842/easy-VQA.
"""

import collections
import dataclasses
import hashlib
import importlib.util
import json
import os
import re
from typing import Any, Literal, get_args

from data_pipelines.examples import Image
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources import easy_vqa_captions, easy_vqa_russian
from data_pipelines.sources.easy_vqa_questions import QUESTIONS, Question
from vlm_jax.errors import UserError

Language = Literal["en", "ru"]

_DATA_SET = "easy_vqa"
_PICTURE = re.compile(r"(\d+)\.png")


@dataclasses.dataclass(frozen=True)
class EasyVQA:
    """Which pictures to list, and in which languages.

    split: 'test' is the official one; 'train' and 'validation' share the official training pictures.
    languages: of questions and captions.
    validation_images: how many of the training pictures are kept for validation, a fixed choice by picture.
    pictures: 'all'; 'captioned' = those about which the answers settle the colour, the shape or both; 'described' =
        those about which they settle both. For the captions kind choose one of the last two: it refuses a picture
        without captions, of which 'all' has 29 among the 4,000 of training and 12 among the 1,000 of the test.
    phrasings: of each language's ways to say a caption, take the first so many; 0 = all.
    limit: list so many of these pictures, a fixed choice by picture; 0 = all.
    directory: the package's `data` directory, or one laid out like it; '' = the installed package's.
    name: of the source.
    """

    split: Literal["train", "validation", "test"] = "train"
    languages: tuple[Language, ...] = ("en",)
    validation_images: int = 400
    pictures: Literal["all", "captioned", "described"] = "all"
    phrasings: int = 0
    limit: int = 0
    directory: str = ""
    name: str = "easy_vqa"


class EasyVQASource:
    """Records of easy-VQA; one a picture.

        {'id': 'easy_vqa/train/17', 'image': Image(path=…),
         'questions': [{'question', 'answer', 'language', 'type'}, …], 'captions': [{'text', 'language'}, …]}

    `type` is 'yes_no_color', 'yes_no_shape', 'color' or 'shape'. Questions stand in the data set's order, language
    after language; captions name what the answers settle, in several phrasings, and are none where they settle nothing.
    """

    def __init__(self, config: EasyVQA) -> None:
        """Lists the pictures and reads the questions.

        Raises:
            UserError: if the package or a file is missing or damaged, or the config asks for what there is not.
        """
        if not config.languages:
            raise UserError(f"source '{config.name}': no language; give one or more of {get_args(Language)}")
        for field in ("phrasings", "limit"):
            if getattr(config, field) < 0:
                raise UserError(
                    f"source '{config.name}': {field} is {getattr(config, field)}; give 0 for all, or a number"
                )
        self.config = config
        self.name = config.name
        self._part = "test" if config.split == "test" else "train"
        self._directory = os.path.join(_data_directory(config), self._part)
        self._questions = _read_questions(os.path.join(self._directory, "questions.json"))
        # A picture that nobody asks about is still a record, and so is a question about a picture that is gone: the one
        # is for the kind to judge, the other fails where it is decoded, and both are counted there.
        numbers = sorted(_list_pictures(os.path.join(self._directory, "images")) | self._questions.keys())
        numbers = _choose(numbers, config)
        if config.pictures != "all":
            enough = any if config.pictures == "captioned" else all
            numbers = [number for number in numbers if enough(self._settled(number))]
        if config.limit:
            numbers = sorted(_by_hash(numbers, "limit")[: config.limit])
        if not numbers:
            raise UserError(f"source '{self.name}': no picture is left in split '{config.split}' of {self._directory}")
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record of one picture.

        Raises:
            BadRecord: if a question is empty or of an unknown form, its answer is none that it may have, or the answers
                contradict each other.
        """
        number = self._numbers[index]
        record_id = f"{_DATA_SET}/{self._part}/{number}"
        asked = self._parse(number, record_id)
        try:
            color, shape = easy_vqa_captions.derive(asked)
        except ValueError as error:
            raise BadRecord(str(error), record_id) from None
        questions, captions = [], []
        for language in self.config.languages:
            for (question, answer), (text, _) in zip(asked, self._questions.get(number, ()), strict=True):
                if language == "ru":
                    text, answer = easy_vqa_russian.question(question), easy_vqa_russian.answer(answer)
                questions.append({"question": text, "answer": answer, "language": language, "type": question.type})
            for text in easy_vqa_captions.PHRASES[language](color, shape)[: self.config.phrasings or None]:
                captions.append({"text": text, "language": language})
        path = os.path.join(self._directory, "images", f"{number}.png")
        return {"id": record_id, "image": Image(path=path), "questions": questions, "captions": captions}

    def _parse(self, number: int, record_id: str) -> list[tuple[Question, str]]:
        asked = []
        for text, answer in self._questions.get(number, ()):
            if not isinstance(text, str) or not text.strip():
                raise BadRecord("a question without text", record_id)
            question = QUESTIONS.get(text)
            if question is None:
                raise BadRecord(f"a question of unknown form: {text!r}", record_id)
            if answer not in question.answers:
                raise BadRecord(f"{answer!r} is no answer to {text!r}", record_id)
            asked.append((question, answer))
        return asked

    def _settled(self, number: int) -> tuple[str, str]:
        try:
            return easy_vqa_captions.derive(self._parse(number, ""))
        except ValueError:
            # Listed, so that the loader meets it and puts it into quarantine, instead of losing it in silence here.
            return "?", "?"


def _data_directory(config: EasyVQA) -> str:
    if config.directory:
        return config.directory
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise UserError(
            f"source '{config.name}': the package easy-vqa is not installed; run `pip install easy-vqa`, "
            "or name a data directory in `directory`"
        )
    return os.path.join(os.path.dirname(spec.origin), "data")


def _read_questions(path: str) -> dict[int, list[tuple[Any, Any]]]:
    """Picture number -> its (question, answer) pairs, in the file's order."""
    try:
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); reinstall easy-vqa or mend `directory`") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged, not JSON ({error}); reinstall easy-vqa or mend the file") from None
    questions = collections.defaultdict(list)
    try:
        for question, answer, number in rows:
            if not isinstance(number, int):
                raise ValueError
            questions[number].append((question, answer))
    except (ValueError, TypeError):
        raise UserError(f"{path}: a row is not [question, answer, picture number]; mend the file") from None
    return dict(questions)


def _list_pictures(directory: str) -> set[int]:
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise UserError(f"{directory}: cannot be listed ({error.strerror}); mend `directory`") from None
    return {int(match[1]) for match in map(_PICTURE.fullmatch, names) if match}


def _choose(numbers: list[int], config: EasyVQA) -> list[int]:
    """The split's share of the official part. Which pictures validate depends on their numbers alone."""
    if config.split == "test":
        return numbers
    kept = config.validation_images
    if not 0 <= kept < len(numbers):
        raise UserError(
            f"source '{config.name}': validation_images {kept} leaves nothing to train on; "
            f"give a number from 0 to {len(numbers) - 1}"
        )
    validation = set(_by_hash(numbers, "validation")[:kept])
    return [number for number in numbers if (number in validation) == (config.split == "validation")]


def _by_hash(numbers: list[int], purpose: str) -> list[int]:
    """An order that depends on the numbers alone, and is another one for every purpose."""
    return sorted(numbers, key=lambda number: hashlib.sha256(f"easy_vqa {purpose} {number}".encode()).digest())
