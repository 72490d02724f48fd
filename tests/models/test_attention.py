import jax
import jax.numpy as jnp
import numpy as np
import numpy_model
import pytest

from vlm_jax.models.attention import attention, rotary


@pytest.mark.parametrize("groups", [6, 2, 1])
def test_grouped_attention_is_that_of_plain_numpy(groups):
    rng = np.random.default_rng(groups)
    queries, keys, values = (
        rng.standard_normal((2, *shape)) for shape in ((5, 6, 10), (7, groups, 10), (7, groups, 10))
    )
    sees = rng.random((2, 5, 7)) < 0.5
    sees[:, :, 0] = True
    arguments = [jnp.asarray(x, jnp.float32) for x in (queries, keys, values)]
    for given, used in ((jnp.asarray(sees), sees), (None, [None, None])):
        expected = [numpy_model.attention(*x) for x in zip(queries, keys, values, used, strict=True)]
        np.testing.assert_allclose(attention(*arguments, given), expected, atol=1e-5)


def test_a_query_that_sees_nothing_stays_finite_forward_and_backward():
    x = jnp.ones((1, 3, 2, 4))
    sees = jnp.zeros((1, 3, 3), bool).at[0, 0, 0].set(True)

    def total(x):
        return attention(x, x, x, sees)[:, :1].sum()

    assert np.isfinite(total(x))
    assert np.isfinite(jax.grad(total)(x)).all()


def test_rotary_turns_complex_pairs_and_keeps_bfloat16():
    rng = np.random.default_rng(0)
    x, positions = rng.standard_normal((9, 3, 8)), rng.integers(0, 3000, 9)
    turned = rotary(jnp.asarray(x, jnp.float32)[None], jnp.asarray(positions)[None], 10_000.0)[0]
    np.testing.assert_allclose(turned, numpy_model.rotary(x, positions, 10_000.0), atol=1e-3)
    assert rotary(jnp.ones((1, 2, 1, 4), jnp.bfloat16), jnp.zeros((1, 2), int), 1e4).dtype == jnp.bfloat16


def test_rotary_makes_scores_depend_on_distance_alone():
    rng = np.random.default_rng(1)
    query, key = (jnp.asarray(rng.standard_normal((1, 1, 1, 16)), jnp.float32) for _ in range(2))

    def score(i, j):
        return (rotary(query, jnp.array([[i]]), 1e4) * rotary(key, jnp.array([[j]]), 1e4)).sum()

    np.testing.assert_allclose(score(3, 1), score(60, 58), atol=1e-4)
    assert abs(score(3, 1) - score(3, 2)) > 1e-3
