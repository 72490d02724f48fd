"""The walk along a schedule: what runs beside what, and what is waited for."""

import dataclasses
import itertools
import math

import pytest

from vlm_jax.rehearsal.collectives import Collective
from vlm_jax.rehearsal.costs import Cost
from vlm_jax.rehearsal.hlo import Instruction
from vlm_jax.rehearsal.program import Machine, Ring
from vlm_jax.rehearsal.steps import Await, Begin, Fetch, Repeat, Step, Work
from vlm_jax.rehearsal.timeline import Timeline, wire_seconds

X, Y = Ring("x", 16, 2.0), Ring("y", 16, 2.0)

MACHINE = Machine(
    peak_flops=1.0,
    hbm_bandwidth=1.0,
    ici={"data": (X,), "fsdp": (X,), "tensor": (Y,), "fsdp+tensor": (X, Y)},
    ici_default=1.0,
    ici_hop_seconds=0.0,
    dcn_bandwidth=1.0,
    dcn_seconds=0.0,
)
"""One operation, or byte, a second; two bytes along an axis, one in each direction. Data and fsdp share one."""

ANY = Instruction("x", "f32[]", "add", "", "")


def work(flops: float, memory: float = 0.0) -> Work:
    return Work(ANY, Cost(mxu_flops=flops, hbm_bytes=memory))


def fetch(size: float, key: str) -> Fetch:
    return Fetch(ANY, Cost(hbm_bytes=size), key)


def begin(key: str, seconds: float, axes: str = "fsdp", direction: int = 0, network: str = "ici") -> Begin:
    """A collective that takes so long."""
    rate = 1.0 if network == "dcn" or direction else sum(ring.bandwidth for ring in MACHINE.ici[axes])
    kind = "collective-permute" if direction else "all-gather"
    return Begin(ANY, Collective(kind, axes, network, 4, 0.0, seconds * rate, direction), key)


def walk(*steps: Step, instant: bool = False) -> Timeline:
    timeline = Timeline(MACHINE, instant)
    timeline.run(steps)
    return timeline


@pytest.mark.parametrize(
    ("steps", "seconds", "exposed"),
    [
        ([work(3), work(1, 5)], 3 + 5, 0),
        # What is not waited for at once runs beside the work.
        ([begin("a", 4), Await("a"), work(3)], 7, 4),
        ([begin("a", 4), work(3), Await("a")], 4, 1),
        ([begin("a", 4), work(5), Await("a")], 5, 0),
        ([begin("a", 4), work(3)], 4, 1),  # the program ends when all of it has
        # One after the other on the same wires, together on others.
        ([begin("a", 4), begin("b", 4), Await("a"), Await("b")], 8, 8),
        ([begin("a", 4), begin("b", 4, "tensor"), Await("a"), Await("b")], 4, 4),
        ([begin("a", 4), begin("b", 4, "fsdp+tensor"), Await("b")], 8, 8),
        ([begin("a", 4), begin("b", 4, "data"), Await("a"), Await("b")], 8, 8),  # one torus axis, two of the mesh
        ([begin("a", 4, direction=1), begin("b", 4, "data", direction=-1), Await("a"), Await("b")], 4, 4),
        ([begin("a", 4, direction=1), begin("b", 4, direction=-1), Await("a"), Await("b")], 4, 4),
        ([begin("a", 4, direction=1), begin("b", 4, direction=1), Await("a"), Await("b")], 8, 8),
        ([begin("a", 4), begin("b", 4, network="dcn"), work(1), Await("a"), Await("b")], 4, 3),
        # Copies have what HBM has left, first come, first served.
        ([fetch(2, "a"), work(3), Await("a")], 3, 0),
        ([fetch(2, "a"), work(3, 3), Await("a")], 5, 0),
        ([fetch(2, "a"), work(3, 2), Await("a"), work(1)], 5, 0),
        ([fetch(2, "a"), fetch(2, "b"), Await("b")], 4, 0),
        ([fetch(2, "a"), begin("b", 2), Await("b"), Await("a")], 2, 2),
        ([Await("never begun"), work(1)], 1, 0),
    ],
)
def test_what_runs_beside_what(steps: list[Step], seconds: float, exposed: float) -> None:
    timeline = walk(*steps)
    assert timeline.now == pytest.approx(seconds)
    assert sum(timeline.exposed.values()) == pytest.approx(exposed)


def test_copies_to_the_host_hold_up_no_others() -> None:
    def copy(key: str, outwards: bool) -> Fetch:
        return Fetch(ANY, Cost(hbm_bytes=1, host_bytes=10), key, outwards)

    machine = dataclasses.replace(MACHINE, host_bandwidth=1.0)

    def seconds(*steps: Step) -> tuple[float, float]:
        timeline = Timeline(machine)
        return timeline.run(steps), sum(timeline.exposed.values())

    assert seconds(copy("out", True), fetch(2, "a"), Await("a"), work(3)) == (10, 0)
    assert seconds(copy("out", True), copy("in", False), Await("in")) == (10, 0)
    assert seconds(copy("out", True), copy("more", True), Await("out"), Await("more")) == (20, 0)


@pytest.mark.parametrize("trips", [0, 1, 2, 3, 4, 50])
@pytest.mark.parametrize(
    "body",
    [
        [begin("a", 4), work(3), Await("a")],
        [begin("a", 4), work(3)],
        [work(1), begin("a", 2, direction=1), begin("b", 3, direction=-1), work(1), Await("a"), work(2), Await("b")],
        [fetch(3, "a"), work(2), Await("a"), Repeat([begin("b", 2), work(3), Await("b")], 7)],
        # Begun in one trip, waited for in the next.
        [work(3), Await("a"), begin("a", 4), work(2)],
    ],
)
def test_a_loop_is_its_body_again_and_again(body: list[Step], trips: int) -> None:
    around = [begin("x", 60, "tensor"), work(1)], [Await("x"), work(1)]
    looped = walk(*around[0], Repeat(body, trips), *around[1])
    unrolled = walk(*around[0], *body * trips, *around[1])
    assert looped.now == pytest.approx(unrolled.now)
    assert looped.exposed == pytest.approx(unrolled.exposed)


def test_a_loop_carries_on_what_was_begun_before_it() -> None:
    body = [work(3), Await("inner"), begin("inner", 4)]
    carried = walk(begin("outer", 4), Repeat(body, 5, {"outer": "inner"}), Await("inner"))
    assert carried.now == pytest.approx(5 * 4 + 4)


def test_with_wires_that_take_no_time_the_rest_is_left() -> None:
    steps = [begin("a", 4), work(3), Await("a"), Repeat([begin("b", 4), Await("b"), work(2)], 10)]
    assert walk(*steps, instant=True).now == pytest.approx(3 + 20)


@pytest.mark.parametrize(
    ("kind", "axes", "members", "seconds"),
    [
        ("all-gather", "fsdp", 16, 100 / 2 + 8),  # one ring: half of it either way
        ("all-reduce", "fsdp", 16, 100 / 2 + 16),
        ("all-gather", "fsdp+tensor", 256, 100 / 4 + 16),  # two rings
        ("collective-permute", "fsdp", 2, 100 / 1 + 1),
        ("all-gather", "other", 2, 100 / 1 + 1),
    ],
)
def test_latency_of_hops(kind: str, axes: str, members: int, seconds: float) -> None:
    machine = Machine(1.0, 1.0, MACHINE.ici, ici_default=1.0, ici_hop_seconds=1.0)
    assert wire_seconds(Collective(kind, axes, "ici", members, 0.0, 100.0), machine) == pytest.approx(seconds)


def fullest_link(rings: list[tuple[int, bool]]) -> float:
    """Bytes over the fullest link, where each chip sends one to every chip: the shorter way, half each if both are.

    Chips are a grid of so many along each axis, closed to a ring or not; bytes go along one axis after the other.
    """
    loads: dict[tuple[tuple[int, ...], int, int], float] = {}
    everywhere = list(itertools.product(*(range(members) for members, _ in rings)))
    for start, end in itertools.product(everywhere, repeat=2):
        place = list(start)
        for axis, (members, closed) in enumerate(rings):
            ahead = (end[axis] - start[axis]) % members
            back = members - ahead
            right = 0.5 if closed and ahead == back else float(ahead < back if closed else end[axis] > start[axis])
            for direction, hops, share in ((1, ahead, right), (-1, back, 1 - right)):
                for hop in range(hops if share and ahead else 0):
                    place[axis] = (start[axis] + direction * hop) % members
                    link = (tuple(place), axis, direction)
                    loads[link] = loads.get(link, 0.0) + share
            place[axis] = end[axis]
    return max(loads.values())


@pytest.mark.parametrize(
    "rings",
    [[(16, True)], [(5, True)], [(8, False)], [(5, False)], [(2, False)], [(4, True), (8, True)], [(4, False)] * 2],
)
def test_an_all_to_all_takes_what_its_fullest_link_takes(rings: list[tuple[int, bool]]) -> None:
    members = math.prod(count for count, _ in rings)
    torus = [Ring(name, count, 2.0 if closed else 1.0) for name, (count, closed) in zip("xyz", rings, strict=False)]
    machine = Machine(1.0, 1.0, {"fsdp": torus}, ici_default=1.0, ici_hop_seconds=0.0)
    # A byte for each of the chips, of which one stays.
    collective = Collective("all-to-all", "fsdp", "ici", members, members, members - 1)
    assert wire_seconds(collective, machine) == pytest.approx(fullest_link(rings))
