import jax.numpy as jnp
import numpy as np
import numpy_model
import pytest

from vlm_jax.models.rope import DynamicRope, LinearRope, Llama3Rope, YarnRope, rope_frequencies, rope_turns, rotary

SCALINGS = {
    "none": None,
    "linear": LinearRope(2.5),
    "dynamic": DynamicRope(2.0, 400),
    "dynamic_within_its_context": DynamicRope(2.0, 4000),
    "llama3": Llama3Rope(8.0, 1.0, 4.0, 500),
    "yarn": YarnRope(4.0, 500),
    "yarn_narrow": YarnRope(4.0, 500, beta_fast=12.0, beta_slow=2.0, attention_factor=0.7, truncate=False),
}


def turned(x, positions, base, scaling=None):
    """[S, H, K] at [S] positions."""
    turns = rope_turns(jnp.asarray(positions)[None], x.shape[-1], base, scaling)
    return rotary(jnp.asarray(x)[None], turns)[0]


@pytest.mark.parametrize("name", SCALINGS)
def test_rotary_turns_complex_pairs(name):
    rng = np.random.default_rng(0)
    x, positions = rng.standard_normal((9, 3, 18)).astype(np.float32), rng.integers(0, 3000, 9)
    scaling = SCALINGS[name]
    ours = turned(x, positions, 10_000.0, scaling)
    np.testing.assert_allclose(ours, numpy_model.rotary(x, positions, 10_000.0, scaling), atol=1e-3)
    if name not in ("none", "dynamic_within_its_context"):
        assert np.abs(ours - numpy_model.rotary(x, positions, 10_000.0)).max() > 0.1


def test_bfloat16_stays_bfloat16():
    assert turned(jnp.ones((2, 1, 4), jnp.bfloat16), np.zeros(2, int), 1e4).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ["none", "llama3", "yarn"])
def test_scores_depend_on_distance_alone(name):
    rng = np.random.default_rng(1)
    query, key = rng.standard_normal((2, 1, 1, 16)).astype(np.float32)

    def score(i, j):
        return (turned(query, [i], 1e4, SCALINGS[name]) * turned(key, [j], 1e4, SCALINGS[name])).sum()

    np.testing.assert_allclose(score(3, 1), score(60, 58), atol=1e-4)
    assert abs(score(3, 1) - score(3, 2)) > 1e-3


def test_a_row_stretches_by_its_own_length_alone():
    scaling = DynamicRope(2.0, 16)
    short, long = np.arange(10), np.arange(10) + 30
    together = rope_turns(jnp.asarray([short, long]), 8, 1e4, scaling)
    for row, positions in enumerate((short, long)):
        np.testing.assert_array_equal(together.sine[row], rope_turns(jnp.asarray([positions]), 8, 1e4, scaling).sine[0])
    plain = rope_turns(jnp.asarray([short, long]), 8, 1e4)
    np.testing.assert_allclose(together.sine[0], plain.sine[0], atol=1e-6)
    assert np.abs(together.sine[1] - plain.sine[1]).max() > 0.1


@pytest.mark.parametrize("name", ["llama3", "yarn", "yarn_narrow"])
def test_fast_frequencies_stay_and_slow_ones_are_divided(name):
    scaling = SCALINGS[name]
    (plain, _), (scaled, _) = rope_frequencies(64, 1e4, None), rope_frequencies(64, 1e4, scaling)
    assert scaled[0] == plain[0]
    np.testing.assert_allclose(scaled[-1], plain[-1] / scaling.factor)
    ratio = plain / scaled
    assert (np.diff(ratio) >= -1e-12).all()
    assert ((ratio > 1.01) & (ratio < scaling.factor - 0.01)).any()


def test_a_blend_without_room_is_refused():
    with pytest.raises(ValueError, match="must be more than"):
        Llama3Rope(8.0, 4.0, 4.0, 500)
