import jax
import jax.numpy as jnp
import numpy as np
import numpy_model
import pytest

from vlm_jax.models.attention import attention


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
        capped = [numpy_model.attention(*x, 0.7, 1.3) for x in zip(queries, keys, values, used, strict=True)]
        np.testing.assert_allclose(attention(*arguments, given, scale=0.7, softcap=1.3), capped, atol=1e-5)
        assert np.abs(np.subtract(capped, expected)).max() > 0.1


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_a_query_that_sees_nothing_stays_finite_forward_and_backward(softcap):
    x = jnp.ones((1, 3, 2, 4))
    sees = jnp.zeros((1, 3, 3), bool).at[0, 0, 0].set(True)

    def total(x):
        return attention(x, x, x, sees, softcap=softcap)[:, :1].sum()

    assert np.isfinite(total(x))
    assert np.isfinite(jax.grad(total)(x)).all()
