"""Which dimensions of a parameter make the matrix that Muon orthogonalises (Jordan 2024), from its logical axes."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from optax.contrib import MuonDimensionNumbers

Axes = tuple[str | None, ...]


def matrix_dimensions(name: str, axes: Axes) -> MuonDimensionNumbers | None:
    """(inputs, outputs) of a kernel; None for what is no matrix product: embeddings, positions, norms, biases.

    ("layers", "embed", "heads", "head_size")  inputs 1, outputs 2 and 3; layers apart
    ("layers", "heads", "head_size", "embed")  inputs 1 and 2, output 3; layers apart
    (None, None, "conv_in", "conv_out")        inputs 0, 1 and 2, output 3

    Args:
        name: of the parameter, such as "encoder/stem/conv_0/kernel".
        axes: logical axis of each dimension.
    """
    if not name.endswith("/kernel"):
        return None
    first = 1 if axes[0] == "layers" else 0
    outputs = 2 if axes[-1] == "head_size" else 1
    dimensions = range(first, len(axes))
    return MuonDimensionNumbers(tuple(dimensions[:-outputs]), tuple(dimensions[-outputs:]))


def dimension_numbers(axes: Mapping[str, Axes]) -> Callable[[Any], Any]:
    """What optax.contrib.muon takes: parameters -> the same tree with `matrix_dimensions` for leaves."""

    def look_up(path: Any, _: Any) -> MuonDimensionNumbers | None:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return matrix_dimensions(name, axes[name])

    return lambda params: jax.tree_util.tree_map_with_path(look_up, params)
