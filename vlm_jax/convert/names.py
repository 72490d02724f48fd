"""Two-column name tables: their tensors on the left, our parameters on the right, and how one becomes the other.

A row says that their tensor `theirs` holds our parameter `ours` in another form:

    Row("model.layers.{layer}.mlp.up_proj.weight", "layers/block_{block}/mlp/up/kernel", Linear((width,), (hidden,)))

The same table is read in both directions, so what is imported can be exported. Forms only move elements, so the two
directions are exact inverses, bit for bit, in any dtype.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

Shape = tuple[int, ...]


class Form(Protocol):
    """How a tensor is laid out on the two sides. Arrays are NumPy's; results may be views."""

    def to_ours(self, array: Any) -> Any:
        """Their layout -> ours."""

    def to_theirs(self, array: Any) -> Any:
        """Our layout -> theirs."""

    def their_shape(self, ours: Shape) -> Shape:
        """The shape that their tensor must have where our parameter has the shape `ours`."""


@dataclasses.dataclass(frozen=True)
class Same:
    """Both sides have the same layout."""

    def to_ours(self, array: Any) -> Any:
        """As it is."""
        return array

    def to_theirs(self, array: Any) -> Any:
        """As it is."""
        return array

    def their_shape(self, ours: Shape) -> Shape:
        """The same."""
        return ours


@dataclasses.dataclass(frozen=True)
class Linear:
    """The weight of a linear map: theirs [prod(outputs), prod(inputs)], ours [*inputs, *outputs].

    torch keeps the transpose of the matrix that multiplies from the right, and flattens heads.
    """

    inputs: Shape
    outputs: Shape

    def to_ours(self, array: Any) -> Any:
        """[prod(outputs), prod(inputs)] -> [*inputs, *outputs]."""
        split = array.reshape(*self.outputs, *self.inputs)
        count = len(self.outputs)
        return split.transpose(*range(count, split.ndim), *range(count))

    def to_theirs(self, array: Any) -> Any:
        """[*inputs, *outputs] -> [prod(outputs), prod(inputs)]."""
        count = len(self.inputs)
        turned = array.transpose(*range(count, array.ndim), *range(count))
        return turned.reshape(self.their_shape(array.shape))

    def their_shape(self, ours: Shape) -> Shape:
        """(prod(outputs), prod(inputs))."""
        return math.prod(self.outputs), math.prod(self.inputs)


@dataclasses.dataclass(frozen=True)
class Reshape:
    """The same elements in the same order, under another shape."""

    theirs: Shape
    ours: Shape

    def to_ours(self, array: Any) -> Any:
        """[*theirs] -> [*ours]."""
        return array.reshape(self.ours)

    def to_theirs(self, array: Any) -> Any:
        """[*ours] -> [*theirs]."""
        return array.reshape(self.theirs)

    def their_shape(self, ours: Shape) -> Shape:
        """`theirs`."""
        return self.theirs


@dataclasses.dataclass(frozen=True)
class Transpose:
    """Axes in another order: axis i of ours is axis order[i] of theirs (a convolution's kernel: (2, 3, 1, 0))."""

    order: tuple[int, ...]

    def to_ours(self, array: Any) -> Any:
        """Axes as ours."""
        return array.transpose(self.order)

    def to_theirs(self, array: Any) -> Any:
        """Axes as theirs."""
        return array.transpose(self._inverse)

    def their_shape(self, ours: Shape) -> Shape:
        """Our sizes in their order."""
        return tuple(ours[i] for i in self._inverse)

    @property
    def _inverse(self) -> tuple[int, ...]:
        return tuple(self.order.index(i) for i in range(len(self.order)))


@dataclasses.dataclass(frozen=True)
class Part:
    """Elements start .. stop - 1 of one axis of their tensor, where several of our parameters share it."""

    axis: int
    start: int
    stop: int

    def of(self, array: Any) -> Any:
        """The part of their tensor, a view."""
        return array[(slice(None),) * self.axis + (slice(self.start, self.stop),)]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a name table. Without `{layer}` and `{block}` the names are those of tensors."""

    theirs: str
    """Name of the tensor; `{layer}` stands for the number of the layer."""
    ours: str
    """Path of the parameter; `{block}` stands for the layer's place in the pattern."""
    form: Form = Same()
    """From `part` of their tensor to our parameter (to one layer of it, if it is stacked)."""
    index: int | None = None
    """Place on the leading, stacked axis of our parameter; None = the whole parameter."""
    part: Part | None = None
    """Which part of their tensor this is; the parts of all rows with the same `theirs` must tile it."""


def per_layer(table: Iterable[Row], layers: int, pattern: int = 1) -> list[Row]:
    """Rows of every layer from rows of one: layer i is block i % pattern, at index i // pattern of the stack.

    Args:
        table: rows with `{layer}` in `theirs`, and `{block}` in `ours` where layers are stacked by a pattern.
        layers: how many layers there are, a multiple of `pattern`.
        pattern: how many blocks the pattern has.
    """
    rows = []
    for layer in range(layers):
        index, block = divmod(layer, pattern)
        for row in table:
            theirs, ours = row.theirs.format(layer=layer), row.ours.format(block=block)
            rows.append(dataclasses.replace(row, theirs=theirs, ours=ours, index=index))
    return rows


def prefixed(rows: Sequence[Row], theirs: str = "", ours: str = "") -> list[Row]:
    """The same rows with something before their names: the table of a part becomes a section of the whole's."""
    return [dataclasses.replace(row, theirs=f"{theirs}{row.theirs}", ours=f"{ours}{row.ours}") for row in rows]
