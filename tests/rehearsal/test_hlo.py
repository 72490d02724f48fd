"""The reader of HLO text: types as they lie in memory, instructions over several lines, loops and their trips."""

import pytest

from vlm_jax.errors import UserError
from vlm_jax.rehearsal.hlo import Array, parse, parse_type
from vlm_jax.rehearsal.loops import Loops, Trips

HEADER = "HloModule jit_step, is_scheduled=true, num_partitions=4\n\n"

KERNEL = (
    HEADER
    + """ENTRY %main (a: bf16[2,8]) -> (bf16[2,8], u32[]) {
  %a = bf16[2,8]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %kernel.1 = (bf16[2,8]{1,0}, /*index=1*/u32[]{:S(2)}) custom-call(%a, /*index=1*/%a), frontend_attributes={m={
 "xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(step)/attention" stack_frame_id=1}, backend_config={"op_name":"no"}
  ROOT %tuple = (bf16[2,8]{1,0:T(8,128)(2,1)}, u32[]) tuple(%kernel.1, %a)
}
"""
)


@pytest.mark.parametrize(
    ("text", "elements", "size", "stored", "space"),
    [
        ("bf16[64,128]{1,0:T(8,128)(2,1)}", 8192, 16384, 16384, 0),
        ("bf16[3,72]{1,0:T(8,128)(2,1)S(1)}", 216, 432, 8 * 128 * 2, 1),
        ("f32[128,3]{0,1:T(4,128)}", 384, 1536, 128 * 4 * 4, 0),
        ("s8[1,4,4]{2,1,0:T(4,128)(4,1)}", 16, 16, 4 * 128, 0),
        ("f32[100]{0:T(1024)S(5)}", 100, 400, 4096, 5),
        ("pred[]{:T(512)}", 1, 1, 1, 0),
        ("s4[6]", 6, 3, 3, 0),
        ("token[]", 1, 0, 0, 0),
    ],
)
def test_types(text: str, elements: int, size: float, stored: float, space: int) -> None:
    (array,) = parse_type(text)
    assert (array.elements, array.bytes, array.stored_bytes, array.space) == (elements, size, stored, space)


def test_tuples_are_flattened() -> None:
    leaves = parse_type("((f32[2]{0:T(128)}), bf16[3,4]{1,0:T(8,128)(2,1)S(1)}, /*index=2*/s32[]{:S(2)})")
    assert [(leaf.dtype, leaf.dims, leaf.space) for leaf in leaves] == [
        ("f32", (2,), 0),
        ("bf16", (3, 4), 1),
        ("s32", (), 2),
    ]


def test_an_instruction_may_go_on_for_lines() -> None:
    module = parse(KERNEL)
    call = module.entry.by_name["kernel.1"]
    assert (module.entry.name, module.partitions) == ("main", 4)
    assert call.opcode == "custom-call"
    assert call.operands == ("a", "a")
    assert call.arrays[1] == Array("u32", (), ":S(2)")
    assert call.source == "jit(step)/attention"
    assert "block_q" in call.attributes
    assert "op_name" not in call.head
    assert [user.name for user in module.entry.users["a"]] == ["kernel.1", "tuple"]
    assert module.entry.root is module.entry.by_name["tuple"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("HloModule jit_step\nENTRY %main () -> f32[] {\n}\n", "no scheduled HLO"),
        ("module @jit_step {}", "no scheduled HLO"),
        ("", "no scheduled HLO"),
        ("HloModule jit_step, is_scheduled=true\n%cut (a: f32[]) -> f32[] {\n", "cut short"),
    ],
)
def test_what_is_no_compiled_program(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse(text)


def loop(condition: str, step: str, start: str = "0", extra: str = "") -> str:
    """A module with one loop; `condition` compares %i with %limit, `step` makes %next of %i and %one."""
    limit, extra = ("n", "") if extra == "unknown" else ("end", extra)
    return (
        HEADER
        + f"""%body (p: (s32[], f32[8], s32[], s32[])) -> (s32[], f32[8], s32[], s32[]) {{
  %p = (s32[], f32[8], s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8] get-tuple-element(%p), index=1
  %one = s32[] get-tuple-element(%p), index=2
  %limit = s32[] get-tuple-element(%p), index=3
  %seen = s32[] copy(%i)
  {step}
  ROOT %out = (s32[], f32[8], s32[], s32[]) tuple(%next, %x, %one, %limit)
}}

%condition (q: (s32[], f32[8], s32[], s32[])) -> pred[] {{
  %q = (s32[], f32[8], s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%q), index=0
  %limit = s32[] get-tuple-element(%q), index=3
  %seven = s32[]{{:T(128)}} constant(7)
  ROOT %compare = pred[] {condition}
}}

ENTRY %main (x: f32[8], n: s32[]) -> f32[8] {{
  %x = f32[8] parameter(0)
  %n = s32[] parameter(1)
  %start = s32[] constant({start})
  %two = s32[] constant(2)
  %end = s32[] constant(10)
  %init = (s32[], f32[8], s32[], s32[]) tuple(%start, %x, %two, %{limit})
  %while = (s32[], f32[8], s32[], s32[]) while(%init), condition=%condition, body=%body{extra}
  ROOT %y = f32[8] get-tuple-element(%while), index=1
}}
"""
    )


ADD = "%next = s32[] add(%seen, %one)"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (loop("compare(%i, %limit), direction=LT", ADD), 5),
        (loop("compare(%i, %seven), direction=LT", ADD), 4),
        (loop("compare(%seven, %i), direction=GT", ADD), 4),
        (loop("compare(%i, %seven), direction=LE", ADD, "1"), 4),
        (loop("compare(%i, %seven), direction=LT", ADD, "3"), 2),
        (loop("compare(%i, %seven), direction=LT", ADD, "9"), 0),
        (loop("compare(%i, %limit), direction=NE", ADD), 5),
        (loop("compare(%i, %seven), direction=GT", "%next = s32[] subtract(%i, %one)", "12"), 3),
        (loop("compare(%i, %limit), direction=LT", ADD, "0", ', backend_config={"known_trip_count":{"n":"6"}}'), 6),
    ],
)
def test_trips_are_read_from_the_counter(text: str, count: int) -> None:
    module = parse(text)
    assert Loops(module).trips(module.entry.by_name["while"]) == Trips(count, True)


@pytest.mark.parametrize(
    "text",
    [
        loop("compare(%i, %limit), direction=LT", ADD, "0", "unknown"),
        loop("compare(%i, %limit), direction=LT", "%next = s32[] multiply(%i, %one)", "1"),
        loop("compare(%i, %limit), direction=EQ", ADD),
    ],
)
def test_trips_that_cannot_be_read_are_not_certain(text: str) -> None:
    module = parse(text)
    assert not Loops(module).trips(module.entry.by_name["while"]).certain
