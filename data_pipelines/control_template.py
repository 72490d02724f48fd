"""The template of models that are trained here: turns made of control tokens.

    trunk       <bos> [image] [text] <user> question <end> …
    branches    <user> question <end> <assistant> answer <end>

A turn is its opening token, the text's ids and <end>; the loss, where there is one, falls on the text and its <end>.
"""

import dataclasses
from collections.abc import Sequence

from data_pipelines.examples import Example, Role, Text
from data_pipelines.quarantine import BadRecord
from data_pipelines.rendered import Rendered, Writer
from data_pipelines.tiles import Place
from data_pipelines.tokenizers import Tokenizer
from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TemplateConfig:
    """bidirectional_images: the visual tokens of one picture see each other in both directions.

    Left off, a model trained here can be exported as LLaVA or Idefics 3, which read pictures as they read text.
    """

    bidirectional_images: bool = False


class _TurnWriter(Writer):
    """Writes texts as turns."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        names = ("bos_id", "image_id", "user_id", "assistant_id")
        ids = {name: getattr(tokenizer, name) for name in names}
        missing = [name.removesuffix("_id") for name, id in ids.items() if id is None]
        if missing:
            raise UserError(
                f"the tokenizer has no control token for {', '.join(missing)}, which this template is made of; "
                "choose a chat template, or train a tokenizer"
            )
        self.bos_id = ids["bos_id"]
        self.opening = {"user": ids["user_id"], "assistant": ids["assistant_id"]}

    def text(self, text: Text) -> None:
        """Appends running text or a whole turn."""
        ids = self.tokenizer.encode(text.text)
        if text.role is None:
            self.add(ids, float(text.loss))
        elif text.role not in self.opening:
            raise BadRecord(f"this template has no place for a {text.role} message")
        elif text.loss:
            self.add([self.opening[text.role]])
            self.add([*ids, self.tokenizer.end_id], 1.0)
        else:
            self.add([self.opening[text.role], *ids, self.tokenizer.end_id])


def render(
    example: Example,
    tokenizer: Tokenizer,
    template: TemplateConfig,
    places: Sequence[Place],
    *,
    open_turn: Role | None = None,
) -> Rendered:
    """Lays an example out as token ids.

    With two questions about one picture of two visual tokens (U, A are turn tokens, E ends a turn, q and a are text):

        tokens        bos img img  U q E A a E   U q E A a E
        loss            0   0   0  0 0 0 0 1 1   0 0 0 0 1 1
        branch_ids      0   0   0  1 1 1 1 1 1   2 2 2 2 2 2
        block_ids       0   1   1  0 0 0 0 0 0   0 0 0 0 0 0
        positions       0   1   2  3 4 5 6 7 8   3 4 5 6 7 8
        visual_index   -1   0   1 -1 …

    Running text is its ids; where some of it carries loss, the document closes with an <end> that carries loss too
    (unless branches continue it, or its last segment is a turn and closes with its own). Neighbouring texts are encoded
    apart from each other.

    Args:
        example: what to lay out.
        tokenizer: gives ids and control tokens.
        template: the options.
        places: what stands for each of its pictures.
        open_turn: opens a turn at the end of every branch (or of the trunk, where there is no branch) for generation.

    Raises:
        BadRecord: if a text cannot be encoded (half of a surrogate pair), or a branch opens with running text: its
            first token would have nothing to be predicted from.
    """
    writer = _TurnWriter(tokenizer)
    try:
        _write_trunk(writer, example, template, places, open_turn)
        trunk_end = writer.position
        for number, branch in enumerate(example.branches, 1):
            if branch[0].role is None:
                raise BadRecord("a branch must open with a turn, not with running text", example.id)
            writer.branch, writer.position = number, trunk_end
            for text in branch:
                writer.text(text)
            if open_turn is not None:
                writer.add([writer.opening[open_turn]])
    except UnicodeEncodeError as error:
        raise BadRecord(f"a text holds half of a surrogate pair ({error.reason})", example.id) from None
    return writer.finish(example, places)


def _write_trunk(
    writer: _TurnWriter, example: Example, template: TemplateConfig, places: Sequence[Place], open_turn: Role | None
) -> None:
    tokenizer = writer.tokenizer
    writer.add([writer.bos_id])
    pictures = 0
    for segment in example.trunk:
        if isinstance(segment, Text):
            writer.text(segment)
            continue
        block = pictures + 1 if template.bidirectional_images else 0
        writer.add_picture(places[pictures], tokenizer, block)
        pictures += 1
    if example.branches:
        return
    if open_turn is not None:
        writer.add([writer.opening[open_turn]])
        return
    running = [segment for segment in example.trunk if isinstance(segment, Text) and segment.role is None]
    last = example.trunk[-1]
    closed = isinstance(last, Text) and last.role is not None
    if not closed and any(text.loss for text in running):
        writer.add([tokenizer.end_id], 1.0)
