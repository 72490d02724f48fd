"""Pallas kernels, whose insides the compiler's text does not show: operations by formula.

Splash attention (jax.experimental.pallas.ops.tpu.splash_attention) works block by block, and skips the blocks that its
mask empties. With H query heads, S queries, T keys, head sizes D (queries, keys) and E (values), all blocks take

    forward                      2·H·S·T·(D + E)            scores, weighted values
    backward, queries            2·H·S·T·(2·D + E)          scores again, gradient of the weights, of the queries
    backward, keys and values    2·H·S·T·(2·D + 2·E)        scores again, of the weights, of the values, of the keys
    backward, fused              2·H·S·T·(3·D + 2·E)        all in one

and the mask leaves a share of those. Which blocks it leaves stands in constants that the text omits, so unless the
caller says how large the share is, a kernel with a table of blocks counts as causal, or, where the table is smaller
than that (a window), as all of the table.
"""

import re
from dataclasses import dataclass

from vlm_jax.rehearsal.hlo import Array, Instruction
from vlm_jax.rehearsal.products import Product

_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)")
_FREE = frozenset(
    {
        "AllocateBuffer",
        "AssumeGatherIndicesInBound",
        "AsyncCollectiveDone",
        "AsyncCollectiveStart",
        "ConcatBitcast",
        "MoveToDevice",
        "MoveToHost",
        "PrepareAsyncCallDone",
        "PrepareAsyncCallStart",
        "Sharding",
        "SliceId",
        "SPMDFullToShardShape",
        "SPMDShardToFullShape",
    }
)
"""Custom calls that move nothing."""
_MOVES = frozenset({"GatherScatterIndicesBitpacked", "ZeroCrop", "TopK", "X64Combine", "X64SplitHigh", "X64SplitLow"})
"""Custom calls that are no more than their operands and results."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a kernel multiplies: products, and how large a share of them its mask leaves.

    Where chips have parts of the queries, a causal mask leaves later parts more.
    """

    products: tuple[Product, ...]
    share: float
    """Of a chip on average."""
    largest_share: float
    """Of the chip with the last part: the others wait for it."""

    @property
    def flops(self) -> float:
        return self.share * sum(product.flops for product in self.products)

    def padded_flops(self, mxu: int) -> float:
        """Operations of a matrix unit of that size, on the chip with the largest share."""
        return self.largest_share * sum(product.padded_flops(mxu) for product in self.products)


def target(instruction: Instruction) -> str:
    """What a custom call calls: XLA's name, or a Pallas kernel's own."""
    called = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    name = called[1] if called else ""
    return re.sub(r"[.\d]+$", "", instruction.name) if name == "tpu_custom_call" else name


def is_free(instruction: Instruction) -> bool:
    """Whether a custom call moves nothing."""
    return target(instruction) in _FREE


def is_known(instruction: Instruction, kernel: Kernel | None) -> bool:
    """Whether the cost of a custom call is known."""
    return kernel is not None or target(instruction) in _FREE | _MOVES


def splash(instruction: Instruction, operands: list[Array], attended_share: float | None = None) -> Kernel | None:
    """The products of a splash attention kernel; None for any other custom call.

    Args:
        instruction: the custom call.
        operands: its operands' types.
        attended_share: share of queries x keys in the blocks that the mask leaves; None: from the table of blocks.
    """
    found = _SPLASH.search(target(instruction)) or _SPLASH.search(instruction.source)
    if found is None:
        return None
    # Queries, keys and values are the first operands of that size; the mask's blocks before them are small integers.
    large = [array for array in operands if array.dtype in ("bf16", "f32", "f16") and len(array.dims) >= 2]
    if len(large) < 3:
        return None
    queries, keys, values = large[:3]
    length, size = queries.dims[-2:]
    heads = queries.elements / (length * size)
    attended, value_size = keys.dims[-2], values.dims[-1]
    to_scores = Product(heads, length, size, attended)
    to_values = Product(heads, length, attended, value_size)
    to_weights = Product(heads, length, value_size, attended)
    for_keys = Product(heads, attended, length, size)
    for_values = Product(heads, attended, length, value_size)
    for_queries = Product(heads, length, attended, size)
    if found[1] == "fwd":
        products = [to_scores, to_values]
    elif found[1] == "dq":
        products = [to_scores, to_weights, for_queries]
    else:
        products = [to_scores, to_weights, for_keys, for_values]
        if _makes_queries(instruction, queries):
            products.append(for_queries)
    if attended_share is not None:
        return Kernel(tuple(products), attended_share, attended_share)
    shares = _shares(instruction, operands, length, attended)
    return Kernel(tuple(products), sum(shares) / len(shares), shares[-1])


def _shares(instruction: Instruction, operands: list[Array], queries: int, keys: int) -> list[float]:
    """Share of the blocks that a causal mask leaves, read off the shape of the first operand, its table of blocks.

    One for each part of the queries that chips have.
    """
    table = operands[0]
    if table.dtype not in ("s8", "s16", "s32") or len(table.dims) != 3:
        return [1.0]
    rows, columns = table.dims[1:]
    sides = [_block(instruction, side) for side in ("q", "kv")]
    if all(sides):
        everything = (queries // sides[0]) * (keys // sides[1])
        if rows * columns < everything:
            return [rows * columns / everything]
    shares = []
    for before in range(0, max(1, keys - queries + 1), queries):
        seen = sum(
            min(columns, -(-(before * rows + (row + 1) * queries) * columns // (rows * keys))) for row in range(rows)
        )
        shares.append(seen / (rows * columns))
    return shares


def _block(instruction: Instruction, side: str) -> int:
    """Queries or keys of a block; 0 where the kernel's metadata does not say."""
    found = _SPLASH.search(target(instruction))
    ending = "" if found is None or found[1] == "fwd" else f"_{found[1]}"
    size = re.search(rf'"block_{side}{ending}\\*": (\d+)', instruction.attributes)
    return int(size[1]) if size else 0


def _makes_queries(instruction: Instruction, queries: Array) -> bool:
    """Whether a backward kernel gives the queries' gradient, too: a summand for each block of keys, [rows,] blocks,
    heads, queries, size.
    """
    return any(
        len(array.dims) == len(queries.dims) + 1 and array.dims[-3:] == queries.dims[-3:]
        for array in instruction.arrays
    )
