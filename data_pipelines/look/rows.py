"""Shows a packed row to a person: in the terminal (`describe_row`) or as one self-contained HTML page (`draw_row`)."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, UInt8
from rich.markup import escape

from data_pipelines.look.pages import page_template, picture_runs
from data_pipelines.look.row_slots import data_uri, seen_pictures, shown_pictures, visual_title
from data_pipelines.template import Processor
from vlm_jax.batch import Batch, BatchInfo

# Colour-blind safe (Okabe and Ito), in the order in which branches take them.
_BRANCH_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#a05195", "#4d7f17")
_TRUNK_COLOUR, _BLOCK_COLOUR = "#8a8f98", "#f2b134"
_TERMINAL_COLOURS = ("blue", "dark_orange3", "green4", "magenta", "yellow4", "cyan", "purple", "chartreuse4")


@dataclasses.dataclass(frozen=True)
class Token:
    """A position of a row."""

    position: int
    """Index into the row."""
    piece: str
    """The tokenizer's piece; visual tokens are named by picture and number."""
    learned: bool
    """The token before it is trained to predict it."""
    weight: float
    """With which weight."""
    visual: int
    """Which visual token of the row fills it; -1 = none."""
    picture: int
    """Number of the picture it belongs to, from 1; 0 = none."""
    slot_title: str = ""
    """That picture, or which of its tiles; '' = text."""
    sees: str = ""
    """The pictures that it sees through cross-attention, as '2' or '1–3'."""

    @property
    def control(self) -> bool:
        """Whether the template wrote it; bytes, which look like <0x5B>, are text."""
        return self.piece.startswith("<") and self.piece.endswith(">") and not self.piece.startswith("<0x")


@dataclasses.dataclass(frozen=True)
class Branch:
    """The positions of a trunk (number 0) or of a branch."""

    number: int
    tokens: tuple[Token, ...]
    label: float = -1.0
    """Preference data: 1 = chosen, 0 = rejected; -1 = it has none."""

    @property
    def title(self) -> str:
        """What to call it."""
        if not self.number:
            return "trunk"
        return {1.0: "chosen", 0.0: "rejected"}.get(self.label, f"branch {self.number}")

    @property
    def span(self) -> str:
        """First and last position in the row."""
        return f"{self.tokens[0].position}–{self.tokens[-1].position}"

    @property
    def colour(self) -> str:
        """For the page."""
        return _cycle(_BRANCH_COLOURS, self.number) if self.number else _TRUNK_COLOUR


@dataclasses.dataclass(frozen=True)
class PackedExample:
    """An example as it stands in a row."""

    id: str
    source: str
    branches: tuple[Branch, ...]

    @property
    def length(self) -> int:
        """Positions."""
        return sum(len(branch.tokens) for branch in self.branches)


@dataclasses.dataclass(frozen=True)
class RowFigures:
    """Counts of one row."""

    positions: int
    padding: int
    pictures: int
    used: int
    """Image slots that hold one of their tiles."""
    slots: int
    learned: int

    @property
    def padding_share(self) -> float:
        """Share of positions that hold nothing."""
        return self.padding / self.positions


def attention_mask(batch: Batch, row: int) -> Bool[np.ndarray, "S S"]:
    """Which positions (second axis) each position (first axis) attends to, straight from the rule.

    Two branches on a trunk with a picture, then another example (v a visual token, . = sees):

              B v v a a b b B c
        B     .
        v     . . .                 a picture's tokens see each other both ways
        v     . . .
        a     . . . .               a branch sees the trunk and itself
        a     . . . . .
        b     . . .     .           and not its neighbour
        b     . . .     . .
        B                   .       nothing sees another example
        c                   . .
    """
    segment, branch, block = (
        np.asarray(plane[row]) for plane in (batch.segment_ids, batch.branch_ids, batch.block_ids)
    )
    place = np.arange(len(segment))
    same_example = (segment[:, None] == segment[None, :]) & (segment[:, None] != 0)
    causal = place[None, :] <= place[:, None]
    trunk_or_own = (branch[None, :] == 0) | (branch[None, :] == branch[:, None])
    same_block = (block[:, None] == block[None, :]) & (block[:, None] != 0)
    return same_example & ((causal & trunk_or_own) | same_block)


def row_examples(batch: Batch, row: int, info: BatchInfo, processor: Processor) -> list[PackedExample]:
    """The examples of a row with their branches and tokens; an example whose picture was unusable is not among them."""
    segments = np.asarray(batch.segment_ids[row])
    examples = []
    for number, name in enumerate(info.example_ids[row]):
        at = np.flatnonzero(segments == number + 1)
        if not len(at):
            continue
        source = info.sources[int(batch.source_ids[row, int(batch.example_index[row, at[0]])])]
        examples.append(PackedExample(name, source, tuple(_branches(batch, row, at, processor))))
    return examples


def row_figures(batch: Batch, row: int) -> RowFigures:
    """Counts of a row."""
    image_ids = np.zeros(0) if batch.image_ids is None else np.asarray(batch.image_ids[row])
    return RowFigures(
        positions=batch.tokens.shape[1],
        padding=int((np.asarray(batch.segment_ids[row]) == 0).sum()),
        pictures=int(image_ids.max(initial=0)),
        used=int((image_ids > 0).sum()),
        slots=len(image_ids),
        learned=int((np.asarray(batch.loss_weights[row]) > 0).sum()),
    )


def _branches(batch: Batch, row: int, at: np.ndarray, processor: Processor) -> Iterator[Branch]:
    numbers = np.asarray(batch.branch_ids[row])[at]
    tokens, weights = np.asarray(batch.tokens[row]), np.asarray(batch.loss_weights[row])
    image_ids = None if batch.image_ids is None else np.asarray(batch.image_ids[row])
    for number in np.unique(numbers):
        branch = []
        for i in at[numbers == number]:
            picture, title, piece = 0, "", processor.tokenizer.id_to_piece(int(tokens[i]))
            visual, sees = -1 if batch.visual_index is None else int(batch.visual_index[row, i]), ""
            if visual >= 0 and image_ids is not None:
                picture = int(image_ids[visual // processor.prompt_tokens])
                title = visual_title(batch, row, visual, processor)
                piece = f"{title}:{visual % processor.prompt_tokens}"
            elif batch.visible_images is not None:
                sees = seen_pictures(batch, row, int(i))
            first = i == at[0] or int(batch.branch_ids[row, i - 1]) != number
            weight = 0.0 if first else float(weights[i - 1])
            branch.append(Token(int(i), piece, weight > 0, weight, visual, picture, title, sees))
        label = -1.0
        if number and batch.labels is not None:
            label = float(batch.labels[row, int(batch.example_index[row, branch[0].position])])
        yield Branch(int(number), tuple(branch), label)


def describe_row(batch: Batch, row: int, info: BatchInfo, processor: Processor) -> str:
    """A row as rich markup for the terminal: every example, trunk and branch after branch, learned tokens highlighted.

    Args:
        batch: The batch.
        row: Which of its rows.
        info: What came with the batch.
        processor: The one that made it.

    Returns:
        Markup; print it with `rich.print`.
    """
    figures = row_figures(batch, row)
    examples = row_examples(batch, row, info, processor)
    lines = [
        f"[bold]Row {row}[/]  {figures.positions} positions, {len(examples)} examples, "
        f"{figures.used} of {figures.slots} image slots, {figures.learned} learned tokens, "
        f"{figures.padding_share:.1%} padding",
        "[dim]Learned tokens are [/][bold black on green3] marked [/][dim], control tokens[/] [cyan]<so>[/]",
    ]
    for number, example in enumerate(examples, 1):
        lines += [
            "",
            f"[bold]{number}  {escape(example.id)}[/]  [dim]{escape(example.source)}, {example.length} positions[/]",
        ]
        for branch in example.branches:
            colour = _cycle(_TERMINAL_COLOURS, branch.number) if branch.number else "grey62"
            lines.append(f"  [{colour}]▌ {branch.title:<10}[/][dim]{branch.span:>9}[/]  {_terminal_tokens(branch)}")
    return "\n".join(lines)


def _terminal_tokens(branch: Branch) -> str:
    words, seen = [], ""
    for title, tokens in picture_runs(branch.tokens):
        if title:
            words.append(f"[black on gold3] {title} × {len(tokens)} [/]")
            continue
        for token in tokens:
            if token.sees != seen:
                seen = token.sees
                words.append(f"[dim italic]sees {seen or 'nothing'}:[/]")
            style = "bold black on green3" if token.learned else "cyan" if token.control else "default"
            words.append(f"[{style}]{escape(token.piece)}[/]")
    return " ".join(words)


def draw_row(batch: Batch, row: int, info: BatchInfo, processor: Processor) -> str:
    """A row as one HTML page without outside requests: pictures, tokens by branch and loss, and the attention mask.

    Args: as for `describe_row`.

    Returns:
        The page's text.
    """
    figures = row_figures(batch, row)
    return page_template("row_page.html.j2").render(
        row=row,
        figures=figures,
        examples=row_examples(batch, row, info, processor),
        pictures=shown_pictures(batch, row),
        cross_attention=batch.visible_images is not None,
        height_width=processor.image_size,
        mask=data_uri(mask_picture(batch, row)),
        trunk_colour=_TRUNK_COLOUR,
        block_colour=_BLOCK_COLOUR,
        branch_colours=_BRANCH_COLOURS,
    )


def mask_picture(batch: Batch, row: int) -> UInt8[np.ndarray, "S S 3"]:
    """The attention mask, a pixel a pair, coloured by why the pair is visible: trunk, a branch by its colour, a block.

    What a branch sees of its trunk is drawn in a paler shade of the branch's colour.
    """
    mask = attention_mask(batch, row)
    branch, block = np.asarray(batch.branch_ids[row]), np.asarray(batch.block_ids[row])
    palette = np.array([_rgb(_TRUNK_COLOUR), *map(_rgb, _BRANCH_COLOURS)], np.float32)
    colours = palette[np.where(branch > 0, 1 + (branch - 1) % len(_BRANCH_COLOURS), 0)]
    picture = np.broadcast_to(colours[:, None], (*mask.shape, 3)).copy()
    to_trunk = (branch[:, None] > 0) & (branch[None, :] == 0)
    picture[to_trunk] = 0.45 * picture[to_trunk] + 0.55 * 255
    both_ways = (block[:, None] == block[None, :]) & (block[:, None] > 0)
    picture[both_ways] = _rgb(_BLOCK_COLOUR)
    picture[~mask] = 255
    return picture.astype(np.uint8)


def _cycle(colours: tuple[str, ...], number: int) -> str:
    return colours[(number - 1) % len(colours)]


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
