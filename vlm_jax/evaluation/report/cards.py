"""Which answers a report shows as cards, and their pictures."""

import base64
import collections
import dataclasses
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from data_pipelines import images as image_functions
from data_pipelines.examples import Image
from data_pipelines.images import BadImage, ImagePreprocessing
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources import SourceConfig, open_source
from vlm_jax.errors import UserError
from vlm_jax.evaluation.report.contents import Contents, Task
from vlm_jax.evaluation.results import Answer

CARDS = 24
_LARGEST = 320
"""Pixels of a picture's longer side on the page; small ones stay as they are and are scaled up by the browser."""
_SMALL = 128


@dataclasses.dataclass(frozen=True)
class Card:
    """An answer to show."""

    task: str
    answer: Answer
    picture: str = ""
    """data: URI, '' if the picture was not found."""
    small: bool = False
    """Few pixels: they are to be seen."""

    @property
    def verdict(self) -> str:
        """'right', 'wrong', or 'partly'."""
        return "right" if self.answer.score >= 1 else "wrong" if self.answer.score <= 0 else "partly"


def choose(tasks: Sequence[Task], count: int = CARDS, seed: int = 0) -> list[Card]:
    """Answers of all kinds, right and wrong, in a mixed order; the same tasks and seed give the same cards.

    A kind is a task with a type of question. Every kind that has a wrong answer shows at least one; wrong ones take a
    third of the cards where there are so many (more if kinds, or a lack of right ones, ask for it), so that mistakes
    can be studied: the cards' share of wrong answers is not the model's.
    """
    rng = np.random.default_rng(seed)
    kinds: dict[tuple[bool, str, str], list[Card]] = collections.defaultdict(list)
    for task in tasks:
        for answer in task.answers:
            kinds[answer.score >= 1, task.name, answer.type].append(Card(task.name, answer))
    mixed = {kind: [cards[i] for i in rng.permutation(len(cards))] for kind, cards in kinds.items()}
    used: set[str] = set()
    wrong_kinds = [cards for (right, *_), cards in mixed.items() if not right]
    right_kinds = [cards for (right, *_), cards in mixed.items() if right]
    wrong = _take_turns(wrong_kinds, max(count // 3, len(wrong_kinds)), used)
    right = _take_turns(right_kinds, max(count - len(wrong), 0), used)
    if len(right) + len(wrong) < count:
        rest = [[card for card in cards if card not in wrong] for cards in wrong_kinds]
        wrong += _take_turns(rest, count - len(right) - len(wrong), used)
    chosen = wrong + right
    return [chosen[i] for i in rng.permutation(len(chosen))]


def _take_turns(kinds: Sequence[Sequence[Card]], count: int, used: set[str]) -> list[Card]:
    """One of each kind in turn until there are `count`; pictures that no card shows yet come first."""
    taken: list[Card] = []
    queues = [collections.deque(sorted(cards, key=lambda card: card.answer.picture in used)) for cards in kinds]
    while len(taken) < count and any(queues):
        for queue in queues:
            if not queue or len(taken) >= count:
                continue
            for _ in range(len(queue)):
                if queue[0].answer.picture not in used:
                    break
                queue.rotate(-1)
            taken.append(queue.popleft())
            used.add(taken[-1].answer.picture)
    return taken


def with_pictures(cards: Sequence[Card], contents: Contents) -> list[Card]:
    """The cards with their pictures: from the file that the prediction names, else from the task's source."""
    sources = {} if contents.experiment is None else {t.name: t.source for t in contents.experiment.evaluation.tasks}
    found: dict[tuple[str, str], UInt8[np.ndarray, "h w 3"]] = {}
    missing: dict[str, set[str]] = collections.defaultdict(set)
    for card in cards:
        try:
            found[card.task, card.answer.picture] = image_functions.decode(Image(path=card.answer.image))
        except BadImage:
            missing[card.task].add(card.answer.picture)
    for task, ids in missing.items():
        if task in sources:
            found |= {(task, record_id): pixels for record_id, pixels in _from_source(sources[task], ids)}
    shown = []
    for card in cards:
        pixels = found.get((card.task, card.answer.picture))
        if pixels is not None:
            card = dataclasses.replace(card, picture=data_uri(pixels), small=max(pixels.shape[:2]) <= _SMALL)
        shown.append(card)
    return shown


def _from_source(config: SourceConfig, ids: set[str]) -> Iterable[tuple[str, UInt8[np.ndarray, "h w 3"]]]:
    """(record id, picture) of the records with these ids that can be had."""
    wanted = set(ids)
    try:
        source = open_source(config)
    except UserError:
        return
    for index in range(len(source)):
        if not wanted:
            return
        try:
            record = source[index]
            if record["id"] in wanted:
                wanted.remove(record["id"])
                yield record["id"], image_functions.decode(record["image"])
        except (BadRecord, BadImage):
            continue


def data_uri(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """A picture within a page: small ones exactly, larger ones reduced and compressed."""
    longer = max(pixels.shape[:2])
    if longer > _LARGEST:
        size = tuple(max(1, round(side * _LARGEST / longer)) for side in pixels.shape[:2])
        pixels = image_functions.resize(pixels, (size[0], size[1]), ImagePreprocessing("squash", "area"))
    kind, options = ("png", []) if longer <= _SMALL else ("jpeg", [cv2.IMWRITE_JPEG_QUALITY, 85])
    encoded = cv2.imencode(f".{kind}", pixels[:, :, ::-1], options)[1].tobytes()
    return f"data:image/{kind};base64," + base64.b64encode(encoded).decode()


def commonest_mistakes(task: Task, count: int = 8) -> list[tuple[str, str, str, int]]:
    """(type, true answer, generated answer, how often), the most frequent first."""
    counts = collections.Counter((x.type, x.answer, x.prediction) for x in task.answers if x.score <= 0)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(*mistake, n) for mistake, n in ranked[:count]]
