"""What the rest of the code needs of a tokenizer."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from etils import epath

IMAGE_TOKEN = "<image>"
"""How the token that holds a picture's place is written, unless a model's own files name another."""

Span = tuple[int, int]
"""[start, end) in characters."""


class Found(NamedTuple):
    """A control token written out in a text: text[start:end] stands for `id`."""

    start: int
    end: int
    id: int


class Tokenizer(Protocol):
    """Ids of text and back.

    Every tokenizer has an `end_id`. What an imported one may lack is None: `bos_id` (Qwen), `image_id` (any text-only
    LLM; `with_image_token` adds it), `user_id` and `assistant_id`. The last two belong to templates made of control
    tokens (`TemplateConfig`) and stand only in tokenizers that are trained here; chat templates write their turns in
    tokens of their own, which `find_control` finds.
    """

    @property
    def vocabulary_size(self) -> int:
        """Number of ids: the largest id + 1."""

    @property
    def pad_id(self) -> int:
        """Fills unused positions."""

    @property
    def bos_id(self) -> int | None:
        """Opens an example."""

    @property
    def adds_bos(self) -> bool:
        """Whether plain text, as in pre-training, opens with bos_id."""

    @property
    def end_id(self) -> int:
        """Ends a turn or a document."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """All ids that end what a model writes; `end_id` is the first."""

    @property
    def image_id(self) -> int | None:
        """Holds the place of a visual token."""

    @property
    def user_id(self) -> int | None:
        """Opens the user's turn."""

    @property
    def assistant_id(self) -> int | None:
        """Opens the assistant's turn."""

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that plain text never becomes and `decode` drops."""

    def __hash__(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; never a control token, whatever the text says."""

    def encode_run(self, text: str, first: bool = True) -> tuple[list[int], list[Span]]:
        """Ids of a stretch of plain text between control tokens, and the characters that each id covers.

        Args:
            text: the stretch.
            first: whether the sequence opens with it (some models put a space in front of the first stretch only).

        Returns:
            ids, and for each a span that is never empty; the bytes of one character share it.
        """

    def find_control(self, text: str) -> list[Found]:
        """The control tokens that are written out in a text that a template made, from left to right."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; control tokens are dropped."""

    def id_to_piece(self, id: int) -> str:
        """How one id is written, for people."""

    def with_ids(self, *, end_ids: tuple[int, ...] | None = None, image_id: int | None = None) -> "Tokenizer":
        """The same tokenizer, where other ids end what a model writes or hold the place of a picture."""

    def save(self, directory: epath.PathLike) -> None:
        """Writes files that `load_tokenizer` reads."""


def filled(spans: Sequence[Span]) -> list[Span]:
    """Gives spans without a character (bytes of one, a space put in front) the character that follows them."""
    return [(start, max(end, start + 1)) for start, end in spans]


def unique(ids: Sequence[int]) -> tuple[int, ...]:
    """Without repetitions, in order."""
    return tuple(dict.fromkeys(ids))
