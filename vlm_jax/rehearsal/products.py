"""Floating-point operations of matrix products and convolutions, and what they take of a matrix unit.

TPU programs hold few `dot`s: the compiler writes products as convolutions, whose spatial dimensions stand for batch
dimensions, further dimensions of an operand or contracted ones, with windows that slide mostly over padding. What
counts is therefore not the window's size but the taps that meet an element of the input: padding and the gaps of a
dilated input cost nothing.
"""

import functools
import math
import re
from dataclasses import dataclass

from vlm_jax.rehearsal.hlo import Array, Instruction

_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_SUBLANES = 8


@dataclass(frozen=True, slots=True)
class Product:
    """2·batch·rows·depth·columns operations: `batch` products of [rows, depth] and [depth, columns]."""

    batch: float
    rows: float
    depth: float
    columns: float

    @property
    def flops(self) -> float:
        return 2.0 * self.batch * self.rows * self.depth * self.columns

    def padded_flops(self, mxu: int) -> float:
        """Operations of a matrix unit of `mxu` x `mxu` cells: what it holds is padded to it, what streams to 8.

        It may hold either operand, so the cheaper way counts.
        """
        depth = _up(self.depth, mxu)
        return (
            2.0
            * self.batch
            * depth
            * min(
                _up(self.columns, mxu) * _up(self.rows, _SUBLANES),
                _up(self.rows, mxu) * _up(self.columns, _SUBLANES),
            )
        )


def _up(size: float, multiple: int) -> float:
    return math.ceil(size / multiple) * multiple


@dataclass(frozen=True, slots=True)
class Dimension:
    """One spatial dimension of a convolution's window, in XLA's words."""

    size: int = 1
    stride: int = 1
    low: int = 0
    input_dilation: int = 1
    kernel_dilation: int = 1


def dot(instruction: Instruction, left: Array, right: Array) -> Product:
    """The product of a `dot` of `left` and `right`."""
    head = instruction.head
    batch = _places(head, "lhs_batch_dims")
    depth = _places(head, "lhs_contracting_dims")
    taken = {*_places(head, "rhs_batch_dims"), *_places(head, "rhs_contracting_dims")}
    return Product(
        math.prod(left.dims[place] for place in batch),
        math.prod(size for place, size in enumerate(left.dims) if place not in {*batch, *depth}),
        math.prod(left.dims[place] for place in depth),
        math.prod(size for place, size in enumerate(right.dims) if place not in taken),
    )


def convolution(instruction: Instruction, left: Array, right: Array) -> Product:
    """The product that a `convolution` of `left` with the kernel `right` amounts to."""
    head, output = instruction.head, instruction.arrays[0]
    labels = _LABELS.search(head)
    assert labels is not None, f"a convolution without dim_labels: {instruction.name}"
    input_labels, kernel_labels, output_labels = labels.groups()
    groups = int(instruction.attribute("feature_group_count") or 1)
    groups *= int(instruction.attribute("batch_group_count") or 1)
    features = output.dims[output_labels.index("f")]
    batch, rows = float(groups), float(output.dims[output_labels.index("b")])
    depth, columns = float(right.dims[kernel_labels.index("i")]), features / groups
    spatial = sorted(label for label in output_labels if label.isdigit())
    for label, window in zip(spatial, _window(head, len(spatial)), strict=True):
        inputs = left.dims[input_labels.index(label)]
        outputs = output.dims[output_labels.index(label)]
        met = taps_met(inputs, outputs, window)
        if inputs == 1 and met == outputs == window.size:  # a free dimension of the kernel
            columns *= outputs
        elif met == inputs == outputs == window.size > 1:  # products side by side
            batch *= outputs
        else:  # a free dimension of the input, a contracted one, or a window that slides
            rows, depth = rows * outputs, depth * met / outputs
    return Product(batch, rows, depth, columns)


@functools.lru_cache(maxsize=4096)
def taps_met(inputs: int, outputs: int, window: Dimension) -> int:
    """How many pairs of an output and a tap of the window fall on an element of the input."""
    extent = (inputs - 1) * window.input_dilation + 1
    met = 0
    # Output o and tap k fall on o·stride + k·kernel_dilation - low; elements stand at multiples of the dilation.
    for tap in range(window.size):
        offset = tap * window.kernel_dilation - window.low
        first = max(0, -(offset // window.stride))
        last = min(outputs - 1, (extent - 1 - offset) // window.stride)
        if last < first:
            continue
        if window.input_dilation == 1:
            met += last - first + 1
            continue
        period = window.input_dilation // math.gcd(window.stride, window.input_dilation)
        for start in range(first, min(first + period, last + 1)):
            if (start * window.stride + offset) % window.input_dilation == 0:
                met += (last - start) // period + 1
                break
    return met


def _places(head: str, name: str) -> tuple[int, ...]:
    found = re.search(rf"{name}=\{{([\d,]*)\}}", head)
    return tuple(int(place) for place in found[1].split(",") if place) if found else ()


def _window(head: str, count: int) -> list[Dimension]:
    """The window's dimensions; those that the text leaves out are 1, without padding."""
    found = _WINDOW.search(head)
    fields = dict(part.split("=", 1) for part in found[1].split()) if found else {}

    def numbers(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * count

    dimensions = []
    for size, stride, padding, dilated, spread in zip(
        numbers("size", "1"),
        numbers("stride", "1"),
        numbers("pad", "0_0"),
        numbers("lhs_dilate", "1"),
        numbers("rhs_dilate", "1"),
        strict=True,
    ):
        low = int(padding.split("_")[0])
        dimensions.append(Dimension(int(size), int(stride), low, int(dilated), int(spread)))
    return dimensions
