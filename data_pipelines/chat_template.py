"""The template of a pre-trained LLM: its own chat template decides every token; the loss is found in what it writes.

trunk       <|im_start|>system …<|im_end|> <|im_start|>user [image]
branches    question<|im_end|> <|im_start|>assistant answer<|im_end|>
loss                                                 ------ ----------
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np

from data_pipelines.chat_tokens import Linear, Shown, linear
from data_pipelines.conversation import ChatWriter, Contents, Turn
from data_pipelines.examples import Example, Image, Role, Text
from data_pipelines.quarantine import BadRecord
from data_pipelines.rendered import Rendered, Writer, template_ids
from data_pipelines.tiles import Place
from data_pipelines.tokenizers import Tokenizer
from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template, as Hugging Face checkpoints bring them, and how pictures stand in it.

    jinja: the program.
    contents: 'list' if it takes a message's content as a list and writes its pictures itself; 'string' if it wants
        text, into which the picture's placeholder is put.
    image: the placeholder that stands for a picture in what the template writes.
    image_before, image_after: text that stands before and after a picture's tokens (SmolVLM puts
        `<fake_token_around_image>` there).
    image_joined: as Idefics 2's processor has it: image_after stands only behind the last of pictures that touch, and
        then a space where a word follows at once.
    bidirectional_images: the visual tokens of one picture see each other in both directions.
    first_position: position of the first token.
    adds_bos: a text that does not open with the tokenizer's <bos> gets one in front, as processors of VLMs do it.
    pictures_first: pictures stand before the text, which begins behind them as if there were none (BLIP-2).
    date: for templates that write the date, YYYY-MM-DD; where empty it is today's, and tomorrow's training differs.
    """

    jinja: str
    contents: Contents = "string"
    image: str = "<image>"
    image_before: str = ""
    image_after: str = ""
    bidirectional_images: bool = False
    first_position: int = 0
    adds_bos: bool = False
    date: str = ""
    image_joined: bool = False
    pictures_first: bool = False

    def writer(self, tokenizer: Tokenizer) -> ChatWriter:
        """The template with the texts of the tokenizer's tokens."""
        return ChatWriter(self.jinja, self.contents, self.image, token_names(tokenizer), self.date)

    def end_of_turn(self, tokenizer: Tokenizer) -> int | None:
        """The control token with which the template ends an assistant's turn; None if it ends it with none."""
        return _end_of_turn(self.writer(tokenizer), tokenizer)


def token_names(tokenizer: Tokenizer) -> tuple[tuple[str, str], ...]:
    """What templates may call the tokenizer's tokens: ((bos_token, its text), …)."""
    ids = {
        "bos_token": tokenizer.bos_id,
        "eos_token": tokenizer.end_id,
        "pad_token": tokenizer.pad_id,
        "image_token": tokenizer.image_id,
    }
    return tuple((name, tokenizer.id_to_piece(id)) for name, id in ids.items() if id is not None)


def render_chat(
    example: Example,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    places: Sequence[Place],
    *,
    open_turn: Role | None = None,
) -> Rendered:
    """Lays an example out as its chat template says; the ids are those of transformers' `apply_chat_template`.

    Every branch, read behind the trunk, has the ids of the conversation of its own. The trunk is what all branches
    share up to the last picture, the last turn that is closed, or the token that opens a branch's first turn. Pictures
    belong to the user's turn that follows them (or to the one before, where none follows).

    The loss falls on an assistant's text where it carries loss, up to and with the control token that ends the turn;
    a template that ends it with none (LLaVA-1.5's) gets the tokenizer's end token there, in turns with loss. Running
    text stands outside the template, as in pre-training: opened by <bos> where the tokenizer does that by itself, and
    closed by the end token where there is loss.

    Args:
        example: what to lay out: turns, or running text.
        tokenizer: gives ids.
        template: how.
        places: what stands for each of its pictures.
        open_turn: 'assistant' opens the assistant's turn at the end; running text is left open.

    Raises:
        BadRecord: if the template refuses the conversation or changes its texts, if turns and running text are mixed,
            or a text cannot be encoded.
        UserError: if the template or the tokenizer cannot do it for any example.
    """
    if open_turn == "user":
        raise UserError("a chat template opens the assistant's turn only; ask for open_turn='assistant'")
    pictures = _shown(example, tokenizer, template, places)
    texts = [text for text in (*example.trunk, *sum(example.branches, ())) if isinstance(text, Text)]
    try:
        if not any(text.role for text in texts):
            return _render_running(example, tokenizer, template, pictures, open_turn is not None)
        if not all(text.role for text in texts):
            raise BadRecord("running text beside turns, for which a chat template has no place")
        paths = [
            _linear(turns, learned, tokenizer, template, pictures, open_turn is not None)
            for turns, learned in (_with_pictures((*example.trunk, *branch)) for branch in example.branches or ((),))
        ]
    except BadRecord as error:
        raise BadRecord(str(error), error.record_id or example.id) from None
    except UnicodeEncodeError as error:
        raise BadRecord(f"a text holds half of a surrogate pair ({error.reason})", example.id) from None
    cut = _shared_length(paths, len(_turns(example.trunk))) if example.branches else len(paths[0].tokens)
    return _joined(example, template, paths, cut, places)


def _shown(example: Example, tokenizer: Tokenizer, template: ChatTemplate, places: Sequence[Place]) -> Shown:
    if tokenizer.image_id is None and example.images:
        raise UserError("the tokenizer has no token for a picture's place; add one by with_image_token")
    around = (template.image_before, template.image_after)
    return Shown(tuple(places), *around, template.bidirectional_images, template.image_joined, template.pictures_first)


def _linear(
    turns: Sequence[Turn],
    learned: Sequence[bool],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    pictures: Shown,
    open_turn: bool,
) -> Linear:
    end = template.end_of_turn(tokenizer)
    own_end = tokenizer.end_id if end is None else end
    return linear(
        template.writer(tokenizer).write(turns, open_turn),
        tokenizer,
        pictures,
        learned=learned,
        closing=[own_end if turn.role == "assistant" else None for turn in turns],
        add_end=end is None,
        add_bos=template.adds_bos,
    )


@functools.lru_cache(maxsize=64)
def _end_of_turn(writer: ChatWriter, tokenizer: Tokenizer) -> int | None:
    pieces = writer.write([Turn("user", "a"), Turn("assistant", "b")], False)
    behind = pieces[[piece.turn for piece in pieces].index(1) + 1 :]
    found = tokenizer.find_control("".join(piece.text for piece in behind))
    return found[0].id if found else None


def _shared_length(paths: Sequence[Linear], trunk_turns: int) -> int:
    """Tokens of the trunk: what all paths share, and not more than up to the first branch's own words."""
    first = paths[0]
    limit = min(_start(path, trunk_turns) for path in paths)
    for path in paths[1:]:
        pairs = zip(first.tokens[:limit], path.tokens[:limit], strict=True)
        limit = next((number for number, (a, b) in enumerate(pairs) if a != b), limit)
    opening = max((number for number in first.controls if number < limit), default=0)
    closed = first.turn_ends[trunk_turns - 1] if trunk_turns else 0
    cut = min(limit, max(first.pictures_end, closed, opening, 1))
    # A branch's first token is predicted by nothing, since the trunk goes on in several ways: it must not carry loss.
    while cut and any(path.loss[cut] for path in paths):
        cut -= 1
    return cut


def _start(path: Linear, turn: int) -> int:
    """Index of the first token of a turn's words, which is never behind the last token."""
    return min(path.turn_starts[turn], len(path.tokens) - 1)


def _turns(segments: Sequence[Text | Image]) -> list[Text]:
    return [segment for segment in segments if isinstance(segment, Text)]


def _with_pictures(segments: Sequence[Text | Image]) -> tuple[list[Turn], list[bool]]:
    turns: list[Turn] = []
    learned: list[bool] = []
    waiting = 0
    for segment in segments:
        if isinstance(segment, Image):
            waiting += 1
            continue
        assert segment.role is not None
        if waiting and segment.role != "user":
            turns, waiting = _shown_after(turns, waiting, learned), 0
        turns.append(Turn(segment.role, segment.text, before=waiting))
        learned.append(segment.loss)
        waiting = 0
    return (_shown_after(turns, waiting, learned) if waiting else turns), learned


def _shown_after(turns: list[Turn], pictures: int, learned: list[bool]) -> list[Turn]:
    """Gives pictures to the user's turn before them, or makes one for them."""
    if turns and turns[-1].role == "user":
        return [*turns[:-1], dataclasses.replace(turns[-1], after=turns[-1].after + pictures)]
    learned.append(False)
    return [*turns, Turn("user", "", before=pictures)]


def _joined(
    example: Example, template: ChatTemplate, paths: Sequence[Linear], cut: int, places: Sequence[Place]
) -> Rendered:
    """Trunk and what each path adds to it, as arrays."""
    parts = [(0, paths[0], slice(0, cut))]
    if example.branches:
        parts += [(number, path, slice(cut, None)) for number, path in enumerate(paths, 1)]

    def column(name: Literal["tokens", "loss", "visual", "blocks", "pictures"], kind: type) -> np.ndarray:
        return np.concatenate([np.array(getattr(path, name)[span], kind) for _, path, span in parts])

    lengths = [len(path.tokens[span]) for _, path, span in parts]
    starts = [0 if number == 0 else cut for number, _, _ in parts]
    positions = [start + np.arange(length, dtype=np.int32) for start, length in zip(starts, lengths, strict=True)]
    return Rendered(
        tokens=column("tokens", np.int32),
        loss=column("loss", np.float32),
        branch_ids=np.repeat(np.array([number for number, _, _ in parts], np.int32), lengths),
        block_ids=column("blocks", np.int32),
        positions=np.concatenate(positions) + np.int32(template.first_position),
        visual_index=column("visual", np.int32),
        pictures=column("pictures", np.int32),
        images=example.images,
        cuts=tuple(place.cut for place in places),
        id=example.id,
        source=example.source,
        labels=example.labels,
    )


def _render_running(
    example: Example, tokenizer: Tokenizer, template: ChatTemplate, pictures: Shown, left_open: bool
) -> Rendered:
    if example.branches:
        raise BadRecord("a branch must open with a turn, not with running text")
    writer = Writer(template.first_position)
    if tokenizer.adds_bos and tokenizer.bos_id is not None:
        writer.add([tokenizer.bos_id])
    shown, first = 0, True
    for segment in example.trunk:
        if isinstance(segment, Text):
            ids, _ = tokenizer.encode_run(segment.text, first)
            writer.add(ids, float(segment.loss))
        else:
            writer.add(template_ids(pictures.before, tokenizer))
            writer.add_picture(pictures.places[shown], tokenizer, shown + 1 if pictures.bidirectional else 0)
            writer.add(template_ids(pictures.after, tokenizer))
            shown += 1
        first = False
    if not left_open and any(text.loss for text in _turns(example.trunk)):
        writer.add([tokenizer.end_id], 1.0)
    return writer.finish(example, pictures.places)
