"""What fills a chip's memory, out of the compiler's account of its buffers."""

from vlm_jax.rehearsal.memory import Tensor, largest_tensors

PROGRAM = """HloModule jit_train_step, is_scheduled=true

%body (x: f32[8]) -> f32[8] {
  %kept.1 = bf16[4,1024]{1,0} copy(%a), metadata={op_name="jvp(VLM)/while/layers/dynamic_update_slice"}
  %later.2 = f32[512]{0} fusion(%c), metadata={op_name="transpose(jvp(VLM))/while/layers/mlp/up/dot_general"}
}

ENTRY %main (p0: f32[64], p1: f32[64]) -> f32[64] {
  %p.1 = f32[64]{0} parameter(0), metadata={op_name="state.trained[\\'decoder\\'][\\'embedding\\']"}
  %p.2 = f32[64]{0} parameter(1), metadata={op_name="state.optimizer[1][0].mu[\\'decoder\\'][\\'embedding\\']"}
}
"""

BUFFERS = """BufferAssignment:
allocation 0: size 256, parameter 0, shape |f32[64]| at ShapeIndex {}, maybe-live-out:
 value: <1 p.1 @0> (size=256,offset=0): f32[64]{0}
allocation 1: size 250, parameter 1, shape |f32[64]| at ShapeIndex {}, maybe-live-out:
 value: <2 p.2 @0> (size=250,offset=0): f32[64]{0}
allocation 2: size 16384, preallocated-temp:
 value: <3 kept.1 @0> (size=8192,offset=0): bf16[4,1024]{1,0}
 value: <4 later.2 @0> (size=2048,offset=4096): f32[512]{0}
 value: <5 later.2{0} @0> (size=2048,offset=8192): f32[512]{0}
allocation 3: size 999999, color 1, preallocated-temp:
 value: <6 kept.1 @0> (size=999999,offset=0): bf16[4,1024]{1,0}
"""


def test_the_largest_buffers_are_named_by_what_they_are() -> None:
    assert largest_tensors(BUFFERS, PROGRAM) == (
        Tensor(8192, "bf16[4,1024]", "activations kept for the backward pass", "layers/dynamic_update_slice"),
        Tensor(2048, "f32[512]", "gradients or activations of the backward pass", "layers/mlp/up/dot_general"),
        Tensor(256, "f32[64]", "parameters", "decoder/embedding"),
        Tensor(250, "f32[64]", "optimiser state", "decoder/embedding"),
    )


def test_what_lies_in_the_same_place_as_something_larger_is_left_out_and_so_is_fast_memory() -> None:
    sizes = [tensor.size for tensor in largest_tensors(BUFFERS, PROGRAM)]
    assert sizes.count(2048) == 1, "the other one is where the kept activations were"
    assert 999999 not in sizes


def test_so_many_are_named_as_are_asked_for() -> None:
    assert len(largest_tensors(BUFFERS, PROGRAM, count=2)) == 2
