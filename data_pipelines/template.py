"""From an Example to token ids with loss, branches, blocks and positions; and the Processor that a checkpoint keeps.

    trunk       <bos> [image] [text] <user> question <end> …
    branches    <user> question <end> <assistant> answer <end>

A turn is its opening token, the text's ids and <end>; the loss, where there is one, falls on the text and its <end>.
"""

import dataclasses
import json
from typing import get_args

import numpy as np
from etils import epath
from jaxtyping import Float32, Int32, UInt8

from data_pipelines import images as image_functions
from data_pipelines.examples import Example, Image, Role, Text
from data_pipelines.images import ImagePreprocessing
from data_pipelines.quarantine import BadRecord
from data_pipelines.tokenizers import Tokenizer, load_tokenizer
from vlm_jax.errors import UserError

_FILE = "processor.json"


@dataclasses.dataclass(frozen=True)
class TemplateConfig:
    """bidirectional_images: the visual tokens of one picture see each other in both directions."""

    bidirectional_images: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class Rendered:
    """One example as arrays of equal length L, trunk first, then branch after branch."""

    tokens: Int32[np.ndarray, "L"]
    loss: Float32[np.ndarray, "L"]
    """Weight of *this* token as a target (the packer moves it to the position that predicts it)."""
    branch_ids: Int32[np.ndarray, "L"]
    """0 = trunk; branches are counted from 1."""
    block_ids: Int32[np.ndarray, "L"]
    """1.. = the picture it belongs to, by order in the example; 0 = no block."""
    positions: Int32[np.ndarray, "L"]
    """From 0; every branch continues from the end of the trunk."""
    visual_index: Int32[np.ndarray, "L"]
    """Which of the example's I*N visual tokens (picture by picture) fills this position; -1 = none."""
    images: tuple[Image, ...]
    id: str
    source: str

    @property
    def length(self) -> int:
        """L, positions."""
        return len(self.tokens)


class _Writer:
    """Collects runs of tokens that share weight, branch and block, and spreads them over positions at the end."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.opening = {"user": tokenizer.user_id, "assistant": tokenizer.assistant_id}
        self.tokens: list[int] = []
        self.runs: list[tuple[int, float, int, int, int, int]] = []
        self.branch = 0
        self.position = 0

    def add(self, tokens: list[int], weight: float = 0.0, block: int = 0, visual: int = -1) -> None:
        """Appends tokens; `visual` is the index of the first one's visual token."""
        self.runs.append((len(tokens), weight, self.branch, block, self.position, visual))
        self.tokens += tokens
        self.position += len(tokens)

    def text(self, text: Text) -> None:
        """Appends running text or a whole turn."""
        ids = self.tokenizer.encode(text.text)
        if text.role is None:
            self.add(ids, float(text.loss))
        elif text.loss:
            self.add([self.opening[text.role]])
            self.add([*ids, self.tokenizer.end_id], 1.0)
        else:
            self.add([self.opening[text.role], *ids, self.tokenizer.end_id])

    def finish(self, example: Example) -> Rendered:
        """Turns the runs into arrays."""
        columns = np.array(self.runs, np.float64)
        count, weight, branch, block, start, visual = (columns[:, number] for number in range(6))
        lengths = count.astype(np.int64)

        def spread(column: np.ndarray) -> np.ndarray:
            return np.repeat(column.astype(np.int32), lengths)

        within = np.arange(len(self.tokens), dtype=np.int32) - spread(np.cumsum(count) - count)
        first_visual = spread(visual)
        return Rendered(
            tokens=np.array(self.tokens, np.int32),
            loss=np.repeat(weight.astype(np.float32), lengths),
            branch_ids=spread(branch),
            block_ids=spread(block),
            positions=spread(start) + within,
            visual_index=np.where(first_visual < 0, np.int32(-1), first_visual + within),
            images=example.images,
            id=example.id,
            source=example.source,
        )


def render(
    example: Example,
    tokenizer: Tokenizer,
    template: TemplateConfig,
    prompt_tokens: int,
    *,
    open_turn: Role | None = None,
) -> Rendered:
    """Lays an example out as token ids.

    With two questions about one picture, prompt_tokens = 2 (U, A are turn tokens, E ends a turn, q and a are text):

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
        prompt_tokens: N, positions a picture takes.
        open_turn: opens a turn at the end of every branch (or of the trunk, where there is no branch) for generation.

    Raises:
        BadRecord: if a text cannot be encoded (half of a surrogate pair), or a branch opens with running text: its
            first token would have nothing to be predicted from.
    """
    writer = _Writer(tokenizer)
    try:
        _write_trunk(writer, example, template, prompt_tokens, open_turn)
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
    return writer.finish(example)


def _write_trunk(
    writer: _Writer, example: Example, template: TemplateConfig, prompt_tokens: int, open_turn: Role | None
) -> None:
    tokenizer = writer.tokenizer
    writer.add([tokenizer.bos_id])
    pictures = 0
    for segment in example.trunk:
        if isinstance(segment, Text):
            writer.text(segment)
            continue
        block = pictures + 1 if template.bidirectional_images else 0
        writer.add([tokenizer.image_id] * prompt_tokens, block=block, visual=pictures * prompt_tokens)
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


@dataclasses.dataclass(frozen=True)
class Processor:
    """Everything that turns an Example into arrays. Every checkpoint keeps one, as plain JSON and tokenizer files."""

    tokenizer: Tokenizer
    template: TemplateConfig
    images: ImagePreprocessing
    image_size: tuple[int, int]
    """(height, width) in pixels."""
    prompt_tokens: int
    """N, positions that one picture takes in the sequence."""

    def render(self, example: Example, open_turn: Role | None = None) -> Rendered:
        """See the function `render`."""
        return render(example, self.tokenizer, self.template, self.prompt_tokens, open_turn=open_turn)

    def pixels(self, image: Image) -> UInt8[np.ndarray, "H W 3"]:
        """Decodes a picture and brings it to `image_size`.

        Raises:
            BadImage: if it cannot be decoded.
        """
        return image_functions.resize(image_functions.decode(image), self.image_size, self.images)

    def save(self, directory: epath.PathLike) -> None:
        """Writes processor.json and the tokenizer's files."""
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(directory)
        plain = {
            "template": dataclasses.asdict(self.template),
            "images": dataclasses.asdict(self.images),
            "image_size": list(self.image_size),
            "prompt_tokens": self.prompt_tokens,
        }
        (directory / _FILE).write_text(json.dumps(plain, indent=2) + "\n")


def load_processor(directory: epath.PathLike) -> Processor:
    """Reads what `Processor.save` wrote.

    Raises:
        UserError: if a file is missing or damaged.
    """
    directory = epath.Path(directory)
    path = directory / _FILE
    try:
        plain = json.loads(path.read_text())
    except OSError:
        raise UserError(f"{path}: cannot be read; give a directory that holds a saved processor") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged, not JSON ({error}); restore the file or choose another checkpoint") from None
    try:
        height, width = (int(side) for side in plain["image_size"])
        return Processor(
            tokenizer=load_tokenizer(directory),
            template=TemplateConfig(**plain["template"]),
            images=_checked_choices(ImagePreprocessing(**plain["images"])),
            image_size=(height, width),
            prompt_tokens=int(plain["prompt_tokens"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error!r}); restore the file or choose another checkpoint") from None


def _checked_choices(config: ImagePreprocessing) -> ImagePreprocessing:
    for field in dataclasses.fields(config):
        choices, value = get_args(field.type), getattr(config, field.name)
        if choices and value not in choices:
            raise ValueError(f"{field.name} = {value!r}")
    return config
