"""A conversation as a chat template writes it, cut into what the template wrote and what the messages say.

The template is a program, so its output alone does not tell whose words are whose. It is run twice: once with marks
for contents, which shows what stands before, between and behind them, and once with the contents.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from data_pipelines.jinja_chat import Message, write_chat
from data_pipelines.quarantine import BadRecord
from vlm_jax.errors import UserError

Contents = Literal["string", "list"]

# Private-use characters: templates look for words and strip spaces, and these are neither.
_MARK = "\ue0f0{}\ue0f1"


@dataclasses.dataclass(frozen=True)
class Turn:
    """One message: `before` pictures, the text, `after` pictures."""

    role: str
    text: str
    before: int = 0
    after: int = 0


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stretch of the written conversation.

    turn: which turn's text this is; -1 for what the template wrote.
    picture: this stretch is a picture's placeholder.
    """

    text: str
    turn: int = -1
    picture: bool = False


@dataclasses.dataclass(frozen=True)
class ChatWriter:
    """A chat template with everything that it needs to write.

    contents: 'string' puts the placeholders into the text; 'list' leaves them to the template.
    placeholder: how a picture is written.
    """

    jinja: str
    contents: Contents
    placeholder: str
    names: tuple[tuple[str, str], ...]
    date: str = ""

    def write(self, turns: Sequence[Turn], open_turn: bool) -> list[Piece]:
        """The conversation, in pieces whose texts joined are what the template writes.

        Args:
            turns: the conversation.
            open_turn: whether the assistant's turn is opened at the end.

        Raises:
            BadRecord: if the template refuses the conversation, or changes a content by more than spaces around it.
            UserError: if the template fails, or does not write every message and picture once.
        """
        shape = tuple((turn.role, turn.before, turn.after) for turn in turns)
        parts = _parts(self, shape, open_turn)
        whole = self.rendered(turns, open_turn)
        texts = _fitted(whole, parts, [turn.text for turn in turns])
        if texts is None:
            raise BadRecord("the chat template changes a message by more than the spaces around it")
        pieces: list[Piece] = []
        for number, part in enumerate(parts):
            pieces += self._template_pieces(part)
            if number < len(texts):
                pieces.append(Piece(texts[number], turn=number))
        return pieces

    def rendered(self, turns: Sequence[Turn], open_turn: bool) -> str:
        """The conversation as the template writes it."""
        return write_chat(
            self.jinja,
            [self.message(turn) for turn in turns],
            names=dict(self.names),
            add_generation_prompt=open_turn,
            date=self.date,
        )

    def message(self, turn: Turn) -> Message:
        """A turn as the template takes it."""
        if self.contents == "string":
            content: object = self.placeholder * turn.before + turn.text + self.placeholder * turn.after
        else:
            picture = {"type": "image"}
            words = {"type": "text", "text": turn.text}
            content = [*([picture] * turn.before), words, *([picture] * turn.after)]
        return {"role": turn.role, "content": content}

    def _template_pieces(self, text: str) -> Iterator[Piece]:
        for number, part in enumerate(text.split(self.placeholder) if self.placeholder else [text]):
            if number:
                yield Piece(self.placeholder, picture=True)
            if part:
                yield Piece(part)


def contents_of(jinja: str, names: Mapping[str, str], placeholder: str) -> Contents:
    """Whether a template takes a message's content as a list and writes its pictures itself, or wants plain text.

    Raises:
        UserError: if it can write neither.
    """
    mark = _MARK.format(0)
    turn = Turn("user", mark, before=1)
    trouble: Exception | None = None

    def attempt(contents: Contents, turn: Turn) -> str:
        nonlocal trouble
        try:
            return ChatWriter(jinja, contents, placeholder, tuple(names.items())).rendered([turn], True)
        except (UserError, BadRecord) as error:
            trouble = error
            return ""

    listed = attempt("list", turn)
    if listed.count(mark) == 1 and placeholder and listed.count(placeholder) == 1 and "'type'" not in listed:
        return "list"
    if attempt("string", Turn("user", mark)).count(mark) == 1:
        return "string"
    listed = attempt("list", Turn("user", mark))
    if listed.count(mark) == 1 and "'type'" not in listed:
        return "list"
    raise UserError(
        f"the chat template does not write a user's message ({trouble or 'its text is missing'}); choose another"
    )


@functools.lru_cache(maxsize=1024)
def _parts(writer: ChatWriter, shape: tuple[tuple[str, int, int], ...], open_turn: bool) -> tuple[str, ...]:
    """What the template writes before, between and behind the texts: one part more than there are turns."""
    marks = [_MARK.format(number) for number in range(len(shape))]
    turns = [Turn(role, mark, before, after) for (role, before, after), mark in zip(shape, marks, strict=True)]
    rest = writer.rendered(turns, open_turn)
    parts = []
    for (role, _, _), mark in zip(shape, marks, strict=True):
        part, found, rest = rest.partition(mark)
        if not found or mark in rest:
            raise UserError(f"the chat template does not write the {role}'s message once and in order; choose another")
        parts.append(part)
    parts.append(rest)
    pictures = sum(before + after for _, before, after in shape)
    written = sum(part.count(writer.placeholder) for part in parts) if writer.placeholder else 0
    if written != pictures:
        raise UserError(
            f"the chat template writes {written} placeholders '{writer.placeholder}' for {pictures} pictures; "
            "choose another, or another placeholder"
        )
    return tuple(parts)


def _fitted(whole: str, parts: Sequence[str], texts: Sequence[str]) -> list[str] | None:
    """The texts as they stand in `whole`, between the parts; templates may strip them. None if they do not stand so."""
    start = len(parts[0])
    if not whole.startswith(parts[0]):
        return None
    # Places where the next text may begin -> the texts chosen on the way there.
    ways: dict[int, list[str]] = {start: []}
    for text, part in zip(texts, parts[1:], strict=True):
        after: dict[int, list[str]] = {}
        for at, chosen in ways.items():
            for form in dict.fromkeys((text, text.strip(), text.lstrip(), text.rstrip(), text.strip("\n"))):
                end = at + len(form)
                if whole.startswith(form, at) and whole.startswith(part, end):
                    after.setdefault(end + len(part), [*chosen, form])
        ways = after
    return ways.get(len(whole))
