import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.kinds import Captions, Instruct, TextOnly
from data_pipelines.mixture import DataConfig, KindShare, MixtureEntry
from data_pipelines.sources import EasyVQA
from data_pipelines.weights import Weights

KINDS = (Captions(), Instruct(), TextOnly())


def weights(entries, sizes=None, **fields):
    """Entries are (kind's number, weight or schedule)."""
    mixture = tuple(
        MixtureEntry(
            EasyVQA(name=f"s{i}"),
            KINDS[kind],
            **({"schedule": weight} if isinstance(weight, tuple) else {"weight": weight}),
        )
        for i, (kind, weight) in enumerate(entries)
    )
    data = DataConfig(mixture, rows=1, length=64, images=1, **fields)
    return Weights(data, sizes or [100] * len(mixture))


def test_shares_are_in_proportion_to_weights():
    assert weights([(0, 3.0), (1, 1.0)]).shares(0) == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize(
    ("temperature", "shares"), [(0.0, [0.5, 0.5]), (1.0, [0.9, 0.1]), (2.0, [0.75, 0.25]), (1e9, [0.5, 0.5])]
)
def test_temperature(temperature, shares):
    """At 1 every record comes alike often; the square root halves the spread; far above, sizes do not matter."""
    assert weights([(0, 1.0)] * 2, [900, 100], temperature=temperature).shares(0) == pytest.approx(shares)


def test_at_the_smallest_temperature_nothing_overflows_or_is_lost():
    large, small = weights([(0, 1.0)] * 2, [10**12, 10], temperature=0.1).shares(0)
    assert large == pytest.approx(1.0)
    assert small > 0


def test_a_schedule_changes_the_shares_step_by_step():
    moving = weights([(0, ((0, 1.0), (10, 0.0))), (0, ((0, 0.0), (10, 1.0)))])
    assert [moving.shares(step) for step in (0, 5, 10, 50)] == [[1, 0], [0.5, 0.5], [0, 1], [0, 1]]


def test_kinds_have_their_shares_whatever_their_entries_weigh():
    kinds = (KindShare("captions", 0.5), KindShare("text_only", 0.1))
    shares = weights([(0, 1.0), (0, 3.0), (2, 50.0), (1, 0.1), (1, 0.1)], kinds=kinds).shares(0)
    assert shares == pytest.approx([0.125, 0.375, 0.1, 0.2, 0.2])


def test_what_is_used_up_goes_to_its_kind_and_then_to_the_others():
    mixture = weights([(0, 1.0), (0, 3.0), (1, 1.0), (2, 1.0)], kinds=(KindShare("captions", 0.5),))
    assert mixture.shares(0, {0}) == pytest.approx([0, 0.5, 0.25, 0.25])
    assert mixture.shares(0, {0, 1}) == pytest.approx([0, 0, 0.5, 0.5])
    assert mixture.shares(0, {2, 3}) == pytest.approx([0.25, 0.75, 0, 0])
    assert mixture.shares(0, {0, 1, 2, 3}) == [0, 0, 0, 0]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(1e-3, 1e3)), min_size=1, max_size=8),
    st.one_of(st.just(0.0), st.floats(0.1, 5)),
    st.lists(st.integers(1, 10**9), min_size=8, max_size=8),
    st.sets(st.integers(0, 7)),
    st.booleans(),
)
@settings(max_examples=100)
def test_shares_sum_to_one_and_nothing_used_up_is_drawn(entries, temperature, sizes, used_up, by_kind):
    present = sorted({kind for kind, _ in entries})
    kinds = tuple(KindShare(KINDS[kind].kind, 1 / len(present)) for kind in present) if by_kind else ()
    mixture = weights(entries, sizes[: len(entries)], temperature=temperature, kinds=kinds)
    shares = mixture.shares(0, used_up)
    left = set(range(len(entries))) - used_up
    assert sum(shares) == pytest.approx(1 if left else 0)
    assert all(share == 0 for i, share in enumerate(shares) if i not in left)
    if by_kind and left == set(range(len(entries))):
        for kind in present:
            own = sum(share for share, entry in zip(shares, entries, strict=True) if entry[0] == kind)
            assert own == pytest.approx(1 / len(present))
