import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.errors import UserError
from vlm_jax.generation import Sampler
from vlm_jax.generation.samplers import restrict, settings_of

# Sixteenths, so that ties come often and are exact.
logits_rows = st.lists(st.integers(-128, 128).map(lambda n: n / 16), min_size=6, max_size=6)
restricted = jax.jit(restrict)
shared = settings(max_examples=40, deadline=None)


def allowed(sampler, row):
    return np.isfinite(np.asarray(restricted(jnp.asarray([row], jnp.float32), settings_of([sampler])))[0])


@shared
@given(logits_rows, st.integers(1, 8))
def test_top_k_keeps_the_k_most_likely(row, k):
    kept = allowed(Sampler(1.0, top_k=k), row)
    assert kept.sum() == min(k, 6)
    assert set(np.flatnonzero(kept)) == set(sorted(range(6), key=lambda i: (-row[i], i))[:k])


@shared
@given(logits_rows, st.floats(0.05, 0.999), st.floats(0.3, 3))
def test_top_p_keeps_the_smallest_most_likely_set_with_that_mass(row, p, temperature):
    kept = allowed(Sampler(temperature, top_p=p), row)
    chances = np.exp(np.array(row, np.float64) / temperature)
    chances /= chances.sum()
    assert chances[kept].sum() > p - 1e-5
    assert min(chances[kept]) >= max(chances[~kept], default=0) - 1e-7
    # Without its least likely member the set has less.
    assert chances[kept].sum() - min(chances[kept]) < p + 1e-5


@shared
@given(logits_rows)
def test_without_limits_every_token_may_come_and_temperature_divides(row):
    found = np.asarray(restricted(jnp.asarray([row], jnp.float32), settings_of([Sampler(0.5)])))[0]
    np.testing.assert_allclose(found, (np.array(row) - max(row)) / 0.5, atol=1e-4)


def test_both_limits_hold_and_mass_is_that_of_the_k():
    row = np.log([0.4, 0.3, 0.2, 0.1])
    # Of the first three, renormalised, the first two have 0.7 / 0.9 = 0.78.
    assert allowed(Sampler(1.0, top_k=3, top_p=0.75), row).tolist() == [True, True, False, False]
    assert allowed(Sampler(1.0, top_k=3, top_p=0.8), row).tolist() == [True, True, True, False]
    assert allowed(Sampler(1.0, top_k=1, top_p=0.01), row).tolist() == [True, False, False, False]


def draws(sampler, row, count=2000):
    rows = jnp.broadcast_to(jnp.asarray(row, jnp.float32), (count, len(row)))
    return np.asarray(jax.jit(sampler)(rows, jax.random.split(jax.random.key(0), count)))


def test_greedy_takes_the_most_likely_and_low_temperatures_come_to_that():
    row = [0.0, 1.0, 1.3, -2.0]
    for sampler in (Sampler(), Sampler(0.01), Sampler(1e-30), Sampler(5.0, top_k=1)):
        assert set(draws(sampler, row, 200)) == {2}


def test_draws_follow_the_probabilities():
    chances = np.array([0.5, 0.3, 0.15, 0.05])
    shares = np.bincount(draws(Sampler(1.0), np.log(chances)), minlength=4) / 2000
    np.testing.assert_allclose(shares, chances, atol=0.04)
    shares = np.bincount(draws(Sampler(0.5, top_k=2), np.log(chances)), minlength=4) / 2000
    np.testing.assert_allclose(shares, [0.25 / 0.34, 0.09 / 0.34, 0, 0], atol=0.04)


@pytest.mark.parametrize(
    "fields", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_settings_that_mean_nothing_are_refused_by_name(fields):
    with pytest.raises(UserError, match=f"sampler {next(iter(fields))} "):
        Sampler(**fields)
