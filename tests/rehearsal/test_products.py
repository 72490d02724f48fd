"""Operations of products and convolutions, against counting one by one; those of kernels, by their formula."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax.rehearsal.hlo import Array, Instruction
from vlm_jax.rehearsal.kernels import splash
from vlm_jax.rehearsal.products import Dimension, Product, convolution, dot, taps_met

sizes = st.integers(1, 9)


@given(sizes, sizes, st.integers(1, 4), st.integers(-2, 9), st.integers(1, 4), st.integers(1, 3), sizes)
def test_taps_that_meet_an_element(
    inputs: int, size: int, stride: int, low: int, dilated: int, spread: int, outputs: int
) -> None:
    window = Dimension(size, stride, low, dilated, spread)
    places = {element * dilated for element in range(inputs)}
    pairs = itertools.product(range(outputs), range(size))
    assert taps_met(inputs, outputs, window) == sum(
        output * stride + tap * spread - low in places for output, tap in pairs
    )


def instruction(kind: str, opcode: str, attributes: str) -> Instruction:
    return Instruction("x", kind, opcode, "", f", {attributes}, metadata={{}}")


def array(*dims: int, dtype: str = "bf16") -> Array:
    return Array(dtype, dims)


@pytest.mark.parametrize(
    ("attributes", "left", "right", "output", "product"),
    [
        ("dim_labels=bf_io->bf", (256, 512), (512, 64), "256,64", Product(1, 256, 512, 64)),
        ("dim_labels=fb_io->bf", (512, 256), (512, 64), "256,64", Product(1, 256, 512, 64)),
        # A batch dimension as the compiler writes it: one tap for each output.
        (
            "window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0oi->0bf",
            (8, 16, 72),
            (8, 24, 72),
            "8,16,24",
            Product(8, 16, 72, 24),
        ),
        # A kernel's heads as a window that slides over padding.
        (
            "window={size=1x8 pad=0_0x7_7 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f",
            (1, 16, 72, 1),
            (72, 8, 128, 1),
            "1,16,8,128",
            Product(1, 16, 72, 8 * 128),
        ),
        # Heads that are summed over.
        (
            "window={size=1x8}, dim_labels=0b1f_o1i0->0bf1",
            (1, 16, 8, 128),
            (72, 8, 128, 1),
            "1,16,72,1",
            Product(1, 16, 8 * 128, 72),
        ),
        # Groups: a filter of each channel by itself.
        (
            "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, feature_group_count=4",
            (2, 1, 1, 4),
            (3, 3, 1, 4),
            "2,1,1,4",
            Product(4, 2, 1, 1),
        ),
    ],
)
def test_convolutions(
    attributes: str, left: tuple[int, ...], right: tuple[int, ...], output: str, product: Product
) -> None:
    found = convolution(instruction(f"bf16[{output}]", "convolution", attributes), array(*left), array(*right))
    assert found == product


def test_dot_with_batch_dimensions() -> None:
    attributes = "lhs_batch_dims={0,2}, lhs_contracting_dims={3}, rhs_batch_dims={0,2}, rhs_contracting_dims={3}"
    found = dot(instruction("bf16[4,8,256,320]", "dot", attributes), array(4, 256, 8, 72), array(4, 320, 8, 72))
    assert found == Product(32, 256, 72, 320)
    assert found.flops == 2 * 32 * 256 * 72 * 320


@pytest.mark.parametrize(
    ("product", "padded"),
    [
        (Product(1, 256, 128, 512), 256 * 128 * 512),
        (Product(4, 729, 72, 729), 4 * 736 * 128 * 768),  # SigLIP's scores: 72 of 128 cells, 729 -> 736 and 768
        (Product(1, 1, 1, 1), 8 * 128 * 128),
    ],
)
def test_padding_to_the_matrix_unit(product: Product, padded: int) -> None:
    assert product.padded_flops(128) == 2 * padded
    assert product.padded_flops(128) >= product.flops


def kernel(name: str, results: str, blocks: int) -> Instruction:
    metadata = "".join(f'\\"block_{side}{end}\\": {blocks}, ' for side in ("q", "kv") for end in ("", "_dkv"))
    return Instruction(name, results, "custom-call", "", f', custom_call_target="tpu_custom_call", x={{{metadata}}}')


@pytest.mark.parametrize(
    ("name", "results", "products"),
    [
        ("splash_mha_fwd_residuals.1", "bf16[2,16,2048,128]", 2),
        ("splash_mha_dq_segmented.7", "bf16[2,16,2048,128]", 3),
        ("splash_mha_dkv.2", "(bf16[2,16,2048,128], bf16[2,16,2048,128])", 4),
        ("splash_mha_dkv.2", "(bf16[2,4,16,2048,128], bf16[2,16,2048,128], bf16[2,16,2048,128])", 5),
    ],
)
def test_splash_attention(name: str, results: str, products: int) -> None:
    heads = array(2, 16, 2048, 128)
    operands = [array(1, 4, 4, dtype="s8"), array(1, 4, 4, dtype="s8"), heads, array(2, 4, 2048, 128), heads]
    every_pair = 2 * 2 * 16 * 2048 * 2048 * 128 * products
    found = splash(kernel(name, results, 512), operands)
    assert found is not None
    assert found.flops == every_pair * (1 + 2 + 3 + 4) / 16  # the blocks at and under the diagonal
    half = splash(kernel(name, results, 512), operands, 0.5)
    assert half is not None
    assert half.flops == every_pair / 2


@pytest.mark.parametrize(
    ("table", "queries", "share", "largest"),
    [
        (array(1, 4, 2, dtype="s8"), 2048, 8 / 16, 8 / 16),  # a window: so many blocks of keys for each of queries
        (array(1, 4, 4, dtype="s8"), 2048, 10 / 16, 10 / 16),
        # Parts of the queries: later ones see more, and take longer; all together see as much as before.
        (array(1, 2, 4, dtype="s8"), 1024, 10 / 16, 7 / 8),
        (array(1, 1, 4, dtype="s8"), 512, 10 / 16, 1.0),
        (array(2048, 128, dtype="s32"), 2048, 1.0, 1.0),  # no table
    ],
)
def test_blocks_that_a_table_leaves(table: Array, queries: int, share: float, largest: float) -> None:
    operands = [table, array(16, queries, 128), array(16, 2048, 128), array(16, 2048, 128)]
    found = splash(kernel("splash_mha_fwd", f"bf16[16,{queries},128]", 512), operands)
    assert found is not None
    every_pair = 2 * 2 * 16 * queries * 2048 * 128
    assert found.flops == every_pair * share
    assert found.padded_flops(128) == every_pair * largest


def test_other_kernels_have_no_formula() -> None:
    assert splash(kernel("flash_forward", "bf16[2,2]", 512), [array(2, 2)] * 3) is None
