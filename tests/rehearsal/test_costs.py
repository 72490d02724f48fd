"""Bytes of HBM at the edges of instructions, and asynchronous work as steps of a schedule."""

import pytest

from vlm_jax.rehearsal.collectives import Collective, Grid
from vlm_jax.rehearsal.costs import Cost, Costs
from vlm_jax.rehearsal.hlo import parse
from vlm_jax.rehearsal.steps import Await, Begin, Fetch, Planner, Step, Work

FUSED = """
%sliced (stack: bf16[4,128,128], i: s32[]) -> bf16[128,128] {
  %stack = bf16[4,128,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = bf16[1,128,128]{2,1,0} dynamic-slice(%stack, %i, %zero, %zero), dynamic_slice_sizes={1,128,128}
  ROOT %flat = bf16[128,128]{1,0} bitcast(%one)
}

%updated (stack: f32[4,128,128], new: bf16[128,128], i: s32[]) -> f32[4,128,128] {
  %stack = f32[4,128,128]{2,1,0} parameter(0)
  %new = bf16[128,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %wide = f32[128,128]{1,0} convert(%new)
  %one = f32[1,128,128]{2,1,0} bitcast(%wide)
  ROOT %stacked = f32[4,128,128]{2,1,0} dynamic-update-slice(%stack, %one, %i, %zero, %zero)
}

%passed (stack: bf16[4,128,128], i: s32[]) -> (bf16[4,128,128], bf16[128,128]) {
  %stack = bf16[4,128,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %inner = bf16[128,128]{1,0} fusion(%stack, %i), kind=kLoop, calls=%sliced
  %twice = bf16[128,128]{1,0} add(%inner, %inner)
  ROOT %both = (bf16[4,128,128]{2,1,0}, bf16[128,128]{1,0}) tuple(%stack, %twice)
}

%product (a: bf16[128,128], b: bf16[128,128]) -> bf16[128,128] {
  %a = bf16[128,128]{1,0} parameter(0)
  %b = bf16[128,128]{1,0} parameter(1)
  %ab = bf16[128,128]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
  ROOT %bent = bf16[128,128]{1,0} tanh(%ab)
}
"""

ENTRY = """
ENTRY %main (stack: bf16[4,128,128], wide: f32[4,128,128], x: bf16[128,128], i: s32[]) -> bf16[128,128] {{
  %stack = bf16[4,128,128]{{2,1,0}} parameter(0)
  %wide = f32[4,128,128]{{2,1,0}} parameter(1)
  %x = bf16[128,128]{{1,0}} parameter(2)
  %near = bf16[128,128]{{1,0:T(8,128)S(1)}} parameter(3)
  %far = bf16[128,128]{{1,0:T(8,128)S(5)}} parameter(4)
  %i = s32[]{{:S(6)}} parameter(5)
  ROOT %it = {line}
}}
"""

PLANE = 128 * 128 * 2
"""Bytes of a bf16[128,128]."""


def costs(line: str) -> Cost:
    module = parse("HloModule m, is_scheduled=true\n" + FUSED + ENTRY.format(line=line))
    assert module.entry.root is not None
    return Costs(module, 128).cost(module.entry, module.entry.root)


@pytest.mark.parametrize(
    ("line", "planes"),
    [
        ("bf16[128,128]{1,0} add(%x, %near)", 2),  # what lies in vector memory is free
        ("bf16[128,128]{1,0} copy(%x)", 2),
        ("bf16[128,128]{1,0} bitcast(%x)", 0),
        ("(bf16[128,128]{1,0}) tuple(%x)", 0),
        ("bf16[1,128,128]{2,1,0} dynamic-slice(%stack, %i, %i, %i), dynamic_slice_sizes={1,128,128}", 2),
        ("bf16[4,128,128]{2,1,0} dynamic-update-slice(%stack, %x, %i, %i, %i)", 2),
        ("bf16[128,128]{1,0} fusion(%stack, %i), kind=kLoop, calls=%sliced", 1 + 1),
        ("bf16[128,128]{1,0:S(1)} fusion(%stack, %i), kind=kLoop, calls=%sliced", 1),
        ("f32[4,128,128]{2,1,0} fusion(%wide, %x, %i), kind=kLoop, calls=%updated", 1 + 2),
        ("(bf16[4,128,128]{2,1,0}, bf16[128,128]{1,0}) fusion(%stack, %i), kind=kLoop, calls=%passed", 1 + 1),
        ("bf16[128,128]{1,0} fusion(%x, %near), kind=kOutput, calls=%product", 2),
        ("(bf16[128,128]{1,0:S(1)}, bf16[128,128]{1,0}, u32[]{:S(2)}) copy-start(%x)", 1),
        ("bf16[128,128]{1,0:S(1)} copy-done(%near)", 0),
        ('bf16[128,128]{1,0} custom-call(), custom_call_target="AllocateBuffer"', 0),
    ],
)
def test_bytes_of_hbm(line: str, planes: int) -> None:
    assert costs(line).hbm_bytes == planes * PLANE


def test_bytes_of_the_host() -> None:
    offloaded = costs("(bf16[128,128]{1,0:S(5)}, bf16[128,128]{1,0}, u32[]{:S(2)}) copy-start(%x)")
    assert (offloaded.host_bytes, offloaded.hbm_bytes) == (PLANE, PLANE)
    assert costs("bf16[128,128]{1,0:S(1)} copy(%far)").host_bytes == PLANE


OFFLOADED = """HloModule m, is_scheduled=true

%out (stack: f32[4,128,128], new: f32[1,128,128], i: s32[]) -> f32[4,128,128] {
  %stack = f32[4,128,128]{2,1,0:S(5)} parameter(0)
  %new = f32[1,128,128]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %stacked = f32[4,128,128]{2,1,0:S(5)} dynamic-update-slice(%stack, %new, %i, %i, %i)
}

%back (stack: f32[4,128,128], i: s32[]) -> f32[1,128,128] {
  %stack = f32[4,128,128]{2,1,0:S(5)} parameter(0)
  %i = s32[] parameter(1)
  ROOT %one = f32[1,128,128]{2,1,0} dynamic-slice(%stack, %i, %i, %i), dynamic_slice_sizes={1,128,128}
}

ENTRY %main (stack: f32[4,128,128], new: f32[1,128,128], i: s32[]) -> f32[1,128,128] {
  %stack = f32[4,128,128]{2,1,0:S(5)} parameter(0)
  %new = f32[1,128,128]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  %go = ((f32[4,128,128]{:S(5)}, f32[1,128,128]), f32[4,128,128]{:S(5)}, u8[]) async-start(%stack, %new, %i), calls=%out
  %gone = f32[4,128,128]{2,1,0:S(5)} async-done(%go)
  %come = ((f32[4,128,128]{:S(5)}, s32[]), f32[1,128,128]{2,1,0}, u32[]) async-start(%gone, %i), calls=%back
  ROOT %came = f32[1,128,128]{2,1,0} async-done(%come)
}
"""


def test_offloading_moves_slices_in_both_directions() -> None:
    go, gone, come, came = plan(OFFLOADED, {})
    assert isinstance(go, Fetch)
    assert isinstance(come, Fetch)
    assert go.cost == come.cost == Cost(hbm_bytes=2 * PLANE, host_bytes=2 * PLANE)
    assert (go.outwards, come.outwards) == (True, False)
    assert [step.key for step in (gone, came) if isinstance(step, Await)] == [go.key, come.key]


def test_operations_within_fusions() -> None:
    found = costs("bf16[128,128]{1,0} fusion(%x, %near), kind=kOutput, calls=%product")
    assert (found.flops, found.elementwise_flops) == (2 * 128**3, 128**2)


def test_float32_products_take_several_passes() -> None:
    once = "bf16[4,128,128]{2,1,0} dot(%wide, %wide), lhs_batch_dims={0}, rhs_batch_dims={0}, "
    once += "lhs_contracting_dims={2}, rhs_contracting_dims={1}"
    assert costs(once).mxu_flops == costs(once).flops == 4 * 2 * 128**3
    assert costs(once + ", operand_precision={highest,highest}").mxu_flops == 6 * costs(once).flops


def test_an_unknown_call_is_named_with_its_bytes() -> None:
    line = 'bf16[128,128]{1,0} custom-call(%x, %near), custom_call_target="Mystery"'
    module = parse("HloModule m, is_scheduled=true\n" + FUSED + ENTRY.format(line=line))
    assert module.entry.root is not None
    known = Costs(module, 128)
    assert known.cost(module.entry, module.entry.root) == Cost(hbm_bytes=2 * PLANE)
    assert known.unknown_calls == {module.entry.root: 2 * PLANE}


GATHER = (
    "bf16[512,128]{{1,0:S(1)}} all-gather({operand}), channel_id=7, replica_groups=[1,4]<=[4], dimensions={{0}}, "
    'frontend_attributes={{chain_id="0"}}'
)
STATE = "(bf16[128,128]{1,0:S(1)}, bf16[512,128]{1,0:S(1)}, u32[]{:S(2)})"

CHAIN = f"""HloModule m, is_scheduled=true

%begun (a: bf16[128,128]) -> {STATE} {{
  %a = bf16[128,128]{{1,0:S(1)}} parameter(0)
  %gather = {GATHER.format(operand="%a")}
  ROOT %state = {STATE} custom-call(%gather), custom_call_target="AsyncCollectiveStart"
}}

%async_collective_fusion.2 (a: bf16[128,128], x: bf16[128,128]) -> (bf16[128,128], bf16[512,128]) {{
  %a = bf16[128,128]{{1,0:S(1)}} parameter(0)
  %x = bf16[128,128]{{1,0}} parameter(1)
  %gather = {GATHER.format(operand="%a")}
  %ab = bf16[128,128]{{1,0:S(1)}} convolution(%x, %x), dim_labels=bf_io->bf
  ROOT %both = (bf16[128,128]{{1,0:S(1)}}, bf16[512,128]{{1,0:S(1)}}) tuple(%ab, %gather)
}}

%ended (a: bf16[128,128], flag: u32[]) -> bf16[512,128] {{
  %a = bf16[128,128]{{1,0:S(1)}} parameter(0)
  %flag = u32[]{{:S(2)}} parameter(1)
  %gather = {GATHER.format(operand="%a")}
  ROOT %whole = bf16[512,128]{{1,0:S(1)}} custom-call(%a, %gather), custom_call_target="AsyncCollectiveDone"
}}

ENTRY %main (a: bf16[128,128], x: bf16[128,128]) -> bf16[512,128] {{
  %a = bf16[128,128]{{1,0:S(1)}} parameter(0)
  %x = bf16[128,128]{{1,0}} parameter(1)
  %start = {STATE} fusion(%a), kind=kCustom, calls=%begun
  %flag = u32[]{{:S(2)}} get-tuple-element(%start), index=2
  %beside = (bf16[128,128]{{1,0:S(1)}}, bf16[512,128]{{1,0:S(1)}}) fusion(%a, %x), calls=%async_collective_fusion.2
  %fetch = (bf16[128,128]{{1,0:S(1)}}, bf16[128,128]{{1,0}}, u32[]{{:S(2)}}) copy-start(%x)
  %fetched = bf16[128,128]{{1,0:S(1)}} copy-done(%fetch)
  ROOT %done = bf16[512,128]{{1,0:S(1)}} fusion(%a, %flag), kind=kCustom, calls=%ended
}}
"""


def plan(text: str, mesh: dict[str, int]) -> list[Step]:
    module = parse(text)
    return Planner(module, Costs(module, 128), Grid(mesh)).plan(module.entry)


def test_a_chain_of_fusions_is_one_collective() -> None:
    begin, work, fetch, fetched, done = plan(CHAIN, {"fsdp": 4})
    assert isinstance(begin, Begin)
    assert begin.collective == Collective("all-gather", "fsdp", "ici", 4, PLANE, 3 * PLANE)
    assert isinstance(work, Work)
    assert work.cost == Cost(2 * 128**3, 2 * 128**3, hbm_bytes=PLANE)
    assert isinstance(fetch, Fetch)
    assert fetch.cost == Cost(hbm_bytes=PLANE)
    assert isinstance(fetched, Await)
    assert fetched.key == fetch.key
    assert isinstance(done, Await)
    assert done.key == begin.key


BETWEEN = """HloModule m, is_scheduled=true, num_partitions=2

ENTRY %main (x: f32[128,128]) -> f32[128,128] {
  %x = f32[128,128]{1,0} parameter(0)
  %after = token[] after-all()
  %send = (f32[128,128]{1,0}, u32[], token[]) send(%x, %after), is_host_transfer=true, ATTRIBUTES
  %recv = (f32[128,128]{1,0}, u32[], token[]) recv(%after), is_host_transfer=true, ATTRIBUTES
  %send-done = token[] send-done(%send), is_host_transfer=true
  %recv-done = (f32[128,128]{1,0}, token[]) recv-done(%recv), is_host_transfer=true
  ROOT %y = f32[128,128]{1,0} get-tuple-element(%recv-done), index=0
}
""".replace(
    "ATTRIBUTES",
    'frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.5_0",_xla_megascale_transfer_type="ALL_REDUCE"}',
)


def test_an_exchange_between_slices_is_counted_once() -> None:
    module = parse(BETWEEN)
    steps = Planner(module, Costs(module, 128), Grid({"data": 2, "fsdp": 2}, (0, 0, 1, 1), 2)).plan(module.entry)
    begun = [step for step in steps if isinstance(step, Begin)]
    assert [step.collective for step in begun] == [Collective("all-reduce", "data", "dcn", 2, 2 * PLANE, 2 * PLANE)]
    waited = [step.key for step in steps if isinstance(step, Await)]
    assert waited == [begun[0].key]
    assert sum(step.cost.hbm_bytes for step in steps if isinstance(step, Fetch)) == 2 * 2 * PLANE
