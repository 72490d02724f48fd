"""Which axes a collective goes along and how many bytes it sends, in every syntax for groups."""

from collections.abc import Mapping

import pytest

from vlm_jax.rehearsal.collectives import Collective, Grid, exchange_between_slices, parse_groups, read_collective
from vlm_jax.rehearsal.hlo import Computation, parse

MESH = {"data": 2, "fsdp": 4, "sequence": 1, "tensor": 2}
"""Device d = 8·data + 2·fsdp + tensor."""

ROWS = ((0, 1), (2, 3), (4, 5), (6, 7))
COLUMNS = ((0, 4), (1, 5), (2, 6), (3, 7))


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", ROWS),
        ("[4,2]<=[8]", ROWS),
        ("[4,2]<=[2,4]T(1,0)", COLUMNS),
        ("[2,4]<=[2,2,2]T(1,0,2)", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("mesh['a'=4,'b'=2] {'b'}", ROWS),
        ("mesh['a'=2,'b'=4] {'a'}", COLUMNS),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("mesh['a'=8] {'a':(4)2}", ROWS),
        ("mesh['a'=8] {'a':(1)2}", COLUMNS),
        ("mesh['a'=2,'b'=4], device_ids=([2,4]<=[4,2]T(1,0)) {'a'}", ROWS),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("mesh['a'=4,'b'=2], device_ids=(0,4,1,5,2,6,3,7) {'b'}", COLUMNS),
        ("{}", (tuple(range(8)),)),
    ],
)
def test_three_ways_to_write_groups(text: str, groups: tuple[tuple[int, ...], ...]) -> None:
    head = f", channel_id=1, replica_groups={text}, dimensions={{1}}, use_global_device_ids=true"
    assert parse_groups(head, 8) == groups
    assert parse_groups(head.partition(", dimensions")[0], 8) == groups


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("[8,2]<=[16]", "tensor"),
        ("[4,4]<=[2,4,2]T(0,2,1)", "fsdp"),
        ("[8,2]<=[2,8]T(1,0)", "data"),
        ("[2,8]<=[16]", "fsdp+tensor"),
        ("[2,8]<=[8,2]T(1,0)", "data+fsdp"),
        ("{}", "data+fsdp+tensor"),
        ("{{0,2},{4,6},{8,10},{12,14}}", "other"),  # half of an axis
        ("{{0,3},{1,2}}", "other"),
    ],
)
def test_groups_follow_axes(groups: str, axes: str) -> None:
    assert Grid(MESH).axes(parse_groups(f"replica_groups={groups}", 16)) == axes


def computation(line: str, name: str = "main") -> Computation:
    """One instruction on a bf16[64,128], 16384 bytes."""
    module = parse(
        f"HloModule jit_step, is_scheduled=true\n\nENTRY %{name} (a: bf16[64,128]) -> bf16[64,128] {{\n"
        f"  %a = bf16[64,128]{{1,0}} parameter(0)\n  ROOT %x = {line}\n}}\n"
    )
    return module.entry


def collective(line: str, mesh: Mapping[str, int] = MESH, slices: tuple[int, ...] = ()) -> Collective | None:
    found = computation(line)
    assert found.root is not None
    return read_collective(found, found.root, Grid(mesh, slices))


SIZE = 64 * 128 * 2
FSDP = "replica_groups=[4,4]<=[2,4,2]T(0,2,1)"


@pytest.mark.parametrize(
    ("line", "kind", "sent"),
    [
        (f"bf16[256,128] all-gather(%a), {FSDP}, dimensions={{0}}", "all-gather", 3 * SIZE),
        (f"(bf16[64,128], bf16[256,128]) all-gather-start(%a), {FSDP}", "all-gather", 3 * SIZE),
        (f"bf16[64,128] all-reduce(%a), {FSDP}, to_apply=%a", "all-reduce", 2 * 3 / 4 * SIZE),
        (f"bf16[16,128] reduce-scatter(%a), {FSDP}, to_apply=%a", "reduce-scatter", 3 / 4 * SIZE),
        (f"bf16[64,128] all-to-all(%a), {FSDP}, dimensions={{0}}", "all-to-all", 3 / 4 * SIZE),
    ],
)
def test_bytes_by_the_ring_algorithms(line: str, kind: str, sent: float) -> None:
    assert collective(line) == Collective(kind, "fsdp", "ici", 4, SIZE, sent)


def test_a_ring_among_devices_that_stand_alone_is_nothing() -> None:
    assert collective("bf16[64,128] all-gather(%a), replica_groups=[16,1]<=[16], dimensions={0}") is None
    assert collective("bf16[64,128] add(%a, %a)") is None


def test_an_all_reduce_of_which_a_slice_is_kept() -> None:
    module = parse(
        f"""HloModule jit_step, is_scheduled=true

%all-reduce-scatter.3 (a: bf16[64,128]) -> bf16[16,128] {{
  %a = bf16[64,128]{{1,0}} parameter(0)
  %all-reduce.1 = bf16[64,128]{{1,0}} all-reduce(%a), {FSDP}, to_apply=%add
  %i = s32[] partition-id()
  ROOT %slice = bf16[16,128]{{1,0}} dynamic-slice(%all-reduce.1, %i, %i), dynamic_slice_sizes={{16,128}}
}}

ENTRY %main (a: bf16[64,128]) -> bf16[16,128] {{
  %a = bf16[64,128]{{1,0}} parameter(0)
  ROOT %fusion = bf16[16,128]{{1,0}} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.3
}}
"""
    )
    fused = module.computations["all-reduce-scatter.3"]
    found = read_collective(fused, fused.by_name["all-reduce.1"], Grid(MESH))
    assert found == Collective("reduce-scatter", "fsdp", "ici", 4, SIZE, 3 / 4 * SIZE)


@pytest.mark.parametrize(
    ("shift", "direction"),
    [(1, 1), (-1, -1), (2, 0)],
)
def test_permutations_along_a_ring(shift: int, direction: int) -> None:
    pairs = ",".join(f"{{{d},{8 * (d // 8) + (d + 2 * shift) % 8}}}" for d in range(16))
    found = collective(f"(bf16[64,128], bf16[64,128]) collective-permute-start(%a), source_target_pairs={{{pairs}}}")
    assert found is not None
    assert (found.kind, found.axes, found.bytes) == ("collective-permute", "fsdp", SIZE)
    assert found.direction == (direction or 1)  # halfway round, either direction


def test_groups_over_several_slices_use_their_network() -> None:
    slices = (0,) * 8 + (1,) * 8
    inside = collective(f"bf16[256,128] all-gather(%a), {FSDP}, dimensions={{0}}", slices=slices)
    between = collective("bf16[64,128] all-reduce(%a), replica_groups=[8,2]<=[2,8]T(1,0)", slices=slices)
    assert inside is not None
    assert between is not None
    assert (inside.network, between.network, between.axes) == ("ici", "dcn", "data")


SEND = (
    "(bf16[64,128]{1,0}, u32[], token[]) send(%a, %a), channel_id=2, is_host_transfer=true, frontend_attributes={"
    '_xla_host_transfer_rendezvous="all-reduce.5_0",_xla_megascale_target="{1,2}x{0:3}",'
    '_xla_megascale_transfer_type="KIND"}'
)


@pytest.mark.parametrize(("kind", "sent"), [("ALL_REDUCE", SIZE), ("ALL_GATHER", SIZE), ("REDUCE_SCATTER", SIZE / 2)])
def test_what_the_host_sends_to_other_slices(kind: str, sent: float) -> None:
    found = computation(SEND.replace("KIND", kind))
    assert found.root is not None
    grid = Grid({"fsdp": 4, "data": 2}, (0, 1) * 4, partitions=4)
    name = kind.lower().replace("_", "-")
    assert exchange_between_slices(found.root, grid) == Collective(name, "data", "dcn", 2, SIZE, sent)


def test_a_program_for_slices_numbers_the_devices_of_one() -> None:
    grid = Grid({"fsdp": 4, "data": 2}, (0, 1) * 4, partitions=4)
    assert grid.axes(((0, 1, 2, 3),)) == "fsdp"
    assert Grid({"data": 2, "fsdp": 2, "tensor": 2}, (0,) * 4 + (1,) * 4, 4).axes(((0, 2), (1, 3))) == "fsdp"
