"""Wrong answers that are real: captions of other pictures, half of them of the same topic, that are surely wrong."""

import collections
from collections.abc import Iterable, Sequence

import numpy as np

from data_pipelines.words import words_of

_STEM = 4
"""Letters of a word that are compared: Russian endings differ."""

_OVERLAP = 0.25
"""Share of the shorter caption's words from which on two captions may say the same."""


def stems(text: str) -> frozenset[str]:
    """What a text's words begin with, without the shortest words.

    >>> sorted(stems("A sitting gnu, a duck"))
    ['duck', 'gnu', 'sitt']
    """
    return frozenset(
        word.lower().replace("ё", "е")[:_STEM] for word in words_of(text) if len(word) > 2 or word.isdigit()
    )


def may_mean_the_same(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether captions with these stems share so many words that either may be right for the other's picture."""
    fewer = min(len(one), len(other))
    return not fewer or len(one & other) / fewer >= _OVERLAP


class Distractors:
    """Captions to draw wrong answers from: of one split and one language, by topic."""

    def __init__(self, captions: Iterable[tuple[str, str]]) -> None:
        """Takes (topic, caption) pairs; the order does not matter."""
        self._topics: dict[str, list[str]] = collections.defaultdict(list)
        for topic, caption in sorted(set(captions)):
            self._topics[topic].append(caption)
        self._all = sorted({caption for captions in self._topics.values() for caption in captions})
        self._stems = {caption: stems(caption) for caption in self._all}

    def draw(
        self, right: Sequence[str], topic: str, count: int, rng: np.random.Generator, length: int = 0
    ) -> list[str]:
        """Up to `count` captions, all different, that share too few words with the right ones to be right themselves.

        Args:
            right: All that is said of the picture, in this language.
            topic: Of the picture; half of the draws are from it, as long as it has any.
            count: How many to draw.
            rng: What to draw from.
            length: Characters of the right answer; wrong ones are between a third and three times as long. 0 = any.
        """
        known = [stems(text) for text in right]
        drawn: list[str] = []
        for attempt in range(24 * count):
            near = self._topics.get(topic, [])
            pool = near if attempt % 2 == 0 and len(near) > 1 else self._all
            if not pool or len(drawn) == count:
                break
            caption = pool[int(rng.integers(len(pool)))]
            if length and not length / 3 <= len(caption) <= max(3 * length, 30):
                continue
            meant = self._stems[caption]
            taken = [self._stems[each] for each in drawn]
            if not any(may_mean_the_same(meant, other) for other in (*known, *taken)):
                drawn.append(caption)
        return drawn
