"""From a conversation in pieces to token ids, loss flags and the places of pictures.

Control tokens count only where the template wrote them; text between two of them is encoded as one run, across the
borders of messages, as transformers encodes it. Characters then tell which tokens are whose.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.conversation import Piece
from data_pipelines.tiles import Place
from data_pipelines.tokenizers import Found, Tokenizer

_OTHER = "\ue0f2"


@dataclasses.dataclass(frozen=True)
class Shown:
    """What stands in the sequence for each picture, in order, and text before and after every one of them."""

    places: tuple[Place, ...]
    before: str = ""
    after: str = ""
    bidirectional: bool = False
    joined: bool = False
    """`ChatTemplate.image_joined`."""
    first: bool = False
    """`ChatTemplate.pictures_first`."""


@dataclasses.dataclass(frozen=True)
class Linear:
    """One conversation as lists of equal length, and where its parts end."""

    tokens: list[int]
    loss: list[float]
    visual: list[int]
    """Which of the conversation's visual tokens stands here; -1 = none."""
    blocks: list[int]
    pictures: list[int]
    """Number of the picture whose place this is, from 0; -1 = text."""
    controls: list[int]
    """Indices of the control tokens."""
    pictures_end: int
    """Tokens up to the end of the last picture, with the text after it."""
    turn_starts: list[int]
    """Per turn: index of the first token of its text, or of what follows where it has none."""
    turn_ends: list[int]
    """Per turn: tokens up to the end of its text; of an assistant's, with the token that ends the turn."""


class _Token(NamedTuple):
    """A token and the characters that it covers.

    picture: number of the picture whose place this is, from 0; -1 = text.
    shows: it is no text, but stands for a picture: the visual token `visual` or, where that is -1, the picture itself.
    """

    id: int
    start: int
    end: int
    control: bool = False
    picture: int = -1
    shows: bool = False
    visual: int = -1


@dataclasses.dataclass
class _Stretch:
    """Text between two runs of visual tokens, from character `start` of the whole text.

    run: visual tokens before it, of picture `picture` (from 0).
    marks: (start, end, picture) of characters that belong to a picture's place.
    tail: so many of its first characters stand behind a picture as the template's text after it, marks included.
    """

    start: int
    text: str = ""
    masked: str = ""
    run: np.ndarray | None = None
    picture: int = -1
    marks: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)
    tail: int = 0

    def add(self, text: str, own: bool) -> None:
        """Appends; `own` = a message's words, in which no control token is looked for."""
        self.text += text
        self.masked += "".join(c if c.isspace() else _OTHER for c in text) if own else text

    def add_mark(self, text: str, picture: int) -> None:
        """Appends a mark of a picture's tile."""
        if text:
            self.marks.append((self.end, self.end + len(text), picture))
            self.add(text, own=False)

    def picture_at(self, character: int) -> int:
        """The picture whose mark the character belongs to; -1 = none."""
        return next((number for start, end, number in self.marks if start <= character < end), -1)

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def linear(
    pieces: Sequence[Piece],
    tokenizer: Tokenizer,
    pictures: Shown,
    *,
    learned: Sequence[bool],
    closing: Sequence[int | None],
    add_end: bool,
    add_bos: bool,
) -> Linear:
    """Encodes a conversation.

    Args:
        pieces: the conversation, as its template wrote it.
        tokenizer: gives ids.
        pictures: what stands for pictures.
        learned: per turn, whether it carries loss.
        closing: per turn, the control token that ends it; None = not known.
        add_end: put that token behind the text of every learned turn, since the template does not.
        add_bos: put <bos> in front, unless the text opens with it.
    """
    stretches, words = _stretches(pieces, len(learned), pictures)
    ends = [
        Found(stop, stop, id)
        for (_, stop), is_learned, id in zip(words, learned, closing, strict=True)
        if add_end and is_learned and id is not None
    ]
    tokens = list(_tokens(stretches, tokenizer, ends, pictures.first))
    bos = tokenizer.bos_id
    if add_bos and bos is not None and not (tokens and tokens[0].control and tokens[0].id == bos):
        tokens.insert(0, _Token(bos, 0, 0, control=True))
    loss = [0.0] * len(tokens)
    starts, stops = [], []
    for number, (start, stop) in enumerate(words):
        first = next((i for i, token in enumerate(tokens) if _reaches(token, start)), len(tokens))
        limit = words[number + 1][0] if number + 1 < len(words) else stretches[-1].end + 1
        last = _end_of_turn(tokens, first, stop, limit, closing[number])
        if learned[number]:
            loss[first:last] = [1.0] * (last - first)
        starts.append(first)
        stops.append(last)
    return Linear(
        tokens=[token.id for token in tokens],
        loss=loss,
        visual=[token.visual for token in tokens],
        blocks=[token.picture + 1 if pictures.bidirectional else 0 for token in tokens],
        pictures=[token.picture for token in tokens],
        controls=[i for i, token in enumerate(tokens) if token.control],
        pictures_end=_pictures_end(tokens, stretches),
        turn_starts=starts,
        turn_ends=stops,
    )


def _stretches(pieces: Sequence[Piece], turns: int, pictures: Shown) -> tuple[list[_Stretch], list[tuple[int, int]]]:
    """The text between visual tokens, and where in the whole text the words of every turn stand."""
    stretches = [_Stretch(0)]
    words = [(0, 0)] * turns
    number = visual_tokens = 0
    for piece in pieces:
        now = stretches[-1]
        if piece.picture:
            place = pictures.places[number]
            if pictures.joined and now.run is not None and now.text == pictures.after:
                now.text, now.masked, now.tail = "", "", 0
            now.add(pictures.before, own=False)
            for mark, visual in place.runs:
                stretches[-1].add_mark(mark, number)
                stretches.append(_Stretch(stretches[-1].end, run=visual + visual_tokens, picture=number))
            stretches[-1].tail = len(place.after) + len(pictures.after)
            stretches[-1].add_mark(place.after, number)
            stretches[-1].add(pictures.after, own=False)
            number += 1
            visual_tokens += place.visual_tokens
            continue
        follows = now.run is not None and now.tail == len(now.text)
        if pictures.joined and follows and not piece.text.startswith(("<", " ", "\n", "\t")) and piece.text:
            now.add(" ", own=False)
        start = now.end
        now.add(piece.text, own=piece.turn >= 0)
        if piece.turn >= 0:
            words[piece.turn] = (start, now.end)
    return stretches, words


def _tokens(
    stretches: Sequence[_Stretch], tokenizer: Tokenizer, ends: Sequence[Found], pictures_first: bool
) -> Iterator[_Token]:
    image_id = tokenizer.image_id or 0
    for stretch in stretches:
        if stretch.run is not None:
            at, picture = stretch.start, stretch.picture
            yield from (_Token(image_id, at, at, False, picture, True, visual) for visual in stretch.run.tolist())
        control = tokenizer.find_control(stretch.masked)
        found = [Found(f.start + stretch.start, f.end + stretch.start, f.id) for f in control]
        inside = [f for f in ends if stretch.start < f.start <= stretch.end]
        at = stretch.start
        for start, end, id in sorted([*found, *inside]):
            yield from _run(stretch, at, start, tokenizer, pictures_first)
            pictures_first &= start <= at
            yield _Token(id, start, end, control=True, picture=stretch.picture_at(start))
            at = end
        yield from _run(stretch, at, stretch.end, tokenizer, pictures_first)
        pictures_first &= stretch.end <= at


def _run(stretch: _Stretch, start: int, end: int, tokenizer: Tokenizer, first: bool) -> Iterator[_Token]:
    """Tokens of some characters; `first` = the text begins here, whatever stands before."""
    if start >= end:
        return
    text = stretch.text[start - stretch.start : end - stretch.start]
    # A picture before the first text has no characters here, so its stretch begins at 0 too, but not the sequence.
    ids, spans = tokenizer.encode_run(text, first=first or (start == 0 and stretch.run is None))
    for id, (a, b) in zip(ids, spans, strict=True):
        yield _Token(id, start + a, start + b, picture=stretch.picture_at(start + a) if stretch.marks else -1)


def _reaches(token: _Token, start: int) -> bool:
    """Whether the token covers the character at `start`, or stands behind it."""
    if token.control:
        return token.start >= start > 0
    return not token.shows and token.end > start


def _end_of_turn(tokens: Sequence[_Token], first: int, stop: int, limit: int, closing: int | None) -> int:
    """Tokens up to the end of the words that stop at character `stop`, with the token that ends the turn if any."""
    last = first
    while last < len(tokens) and tokens[last].start < stop and not tokens[last].shows:
        last += 1
    for number in range(last, len(tokens)):
        token = tokens[number]
        if token.shows or token.start >= limit:
            break
        if token.control:
            return number + 1 if token.id == closing else last
    return last


def _pictures_end(tokens: Sequence[_Token], stretches: Sequence[_Stretch]) -> int:
    """Tokens up to the end of the last picture and of the text after it."""
    shown = [i for i, token in enumerate(tokens) if token.shows]
    if not shown:
        return 0
    end = stretches[-1].start + stretches[-1].tail
    number = shown[-1] + 1
    while number < len(tokens) and tokens[number].end <= end and tokens[number].start < end:
        number += 1
    return number
