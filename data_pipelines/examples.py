"""Example: the one form that every kind of data takes before it is tokenised and packed.

An example is a trunk, an ordered tuple of segments, and zero or more branches that continue the trunk and do not see
each other: many questions about one picture, a chosen and a rejected answer, a group of samples.

    A caption pair                 trunk = (Image, Text('A red circle.', loss=True))
    Two questions, one picture     trunk = (Image,), branches = ((user, assistant), (user, assistant))
    An interleaved document        trunk = (Text, Image, Text, Text, Image, …)
    Text only                      trunk = (Text,)
"""

import dataclasses
from typing import Literal

Role = Literal["system", "user", "assistant"]
"""Whose turn it is. Not every template has a place for a system message; those that have none refuse it."""


@dataclasses.dataclass(frozen=True)
class Text:
    """A stretch of text. `role` None is running text; else the text is one whole turn of a dialogue.

    `loss` says whether the model learns to produce it (for a turn, with the token that ends the turn).
    """

    text: str
    loss: bool = False
    role: Role | None = None


@dataclasses.dataclass(frozen=True)
class Image:
    """A picture by its encoded bytes (PNG, JPEG, …) or by the path of a file with them; decoded only after packing."""

    data: bytes | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if (self.data is None) == (self.path is None):
            raise ValueError("Image: give either data or path, and not both")


Segment = Text | Image


WhenLong = Literal["refuse", "cut", "split"]
"""What becomes of an example that no row can hold: it is put into quarantine; or its end is cut off, in text only, with
the pictures that no longer fit; or it goes on as further examples. The last two are for trunks without branches."""


@dataclasses.dataclass(frozen=True)
class Example:
    """Trunk, branches, and where it came from. Everything after `kinds/` is blind to the kind of data this was.

    Raises:
        ValueError: if an image stands in a branch (branches share the trunk's pictures), the trunk is empty, branches
            are to be cut or split, or there is not one label a branch.
    """

    trunk: tuple[Segment, ...]
    branches: tuple[tuple[Text, ...], ...] = ()
    source: str = ""
    id: str = ""
    labels: tuple[float, ...] = ()
    """Preference data: a label for each branch (1 = chosen or good, 0 = rejected or bad), which makes every branch an
    entry of its own in the batch; () = the example is one entry."""
    when_long: WhenLong = "refuse"

    def __post_init__(self) -> None:
        if self.labels and len(self.labels) != len(self.branches):
            raise ValueError(f"example {self.id or '?'}: {len(self.labels)} labels for {len(self.branches)} branches")
        if self.branches and self.when_long != "refuse":
            raise ValueError(f"example {self.id or '?'}: branches can be neither cut nor split")
        if not self.trunk and not self.branches:
            raise ValueError(f"example {self.id or '?'} of {self.source or '?'}: it is empty")
        for branch in self.branches:
            if not branch or not all(isinstance(segment, Text) for segment in branch):
                where = f"example {self.id or '?'} of {self.source or '?'}"
                raise ValueError(f"{where}: a branch must be text and not empty")

    @property
    def images(self) -> tuple[Image, ...]:
        """The pictures, in the order in which they stand."""
        return tuple(segment for segment in self.trunk if isinstance(segment, Image))
