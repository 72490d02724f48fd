import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax.models.insertion import Inserted, Run, runs, scan_with_inserted

PLACES = st.integers(1, 9).flatmap(
    lambda repeats: st.tuples(st.lists(st.integers(0, repeats), min_size=1).map(sorted), st.just(repeats))
)


def test_the_runs_that_the_docstring_shows():
    assert runs((3, 7, 11), 13) == (Run(-1, 0, 1, 3), Run(0, 3, 2, 4), Run(2, 11, 1, 2))
    # What has equal groups from 0 on is one run, so that nothing is cut out of the stacked arrays.
    assert runs((0, 4, 8), 12) == (Run(0, 0, 3, 4),)


@given(PLACES)
def test_runs_cover_every_repeat_and_block_once_and_in_order(case):
    places, repeats = case
    order = []
    for run in runs(tuple(places), repeats):
        for group in range(run.groups):
            order += [f"block {run.block + group}"] if run.block >= 0 else []
            order += [run.repeat + group * run.length + i for i in range(run.length)]
    expected = []
    for repeat in range(repeats + 1):
        expected += [f"block {i}" for i, place in enumerate(places) if place == repeat]
        expected += [repeat] if repeat < repeats else []
    assert order == expected


@pytest.mark.parametrize("places", [(0,), (0, 2, 4), (1, 3, 5), (0, 1, 4), (2, 2, 6), (6,)])
def test_the_scan_is_a_loop_over_layers_and_blocks(places):
    rng = np.random.default_rng(0)
    layers, blocks = rng.uniform(0.5, 1.5, (6, 3)), rng.uniform(-1, 1, (len(places), 3))
    x = rng.standard_normal((1, 2, 3))

    def layer(state, factor):
        x = jnp.tanh(state[0] * factor)
        return (x, state[1] + 1), x

    inserted = Inserted(places, lambda x, added: x + added, jnp.asarray(blocks))
    (found, count), each, given_out = scan_with_inserted(
        layer, (jnp.asarray(x), jnp.zeros((), jnp.int32)), jnp.asarray(layers), inserted, places, every=True
    )
    outputs, after_blocks = [], []
    for repeat in range(7):
        for i, place in enumerate(places):
            if place == repeat:
                x = x + blocks[i]
                after_blocks.append(x)
        if repeat < 6:
            x = np.tanh(x * layers[repeat])
            outputs.append(x)
    np.testing.assert_allclose(found, x, atol=1e-5)
    np.testing.assert_allclose(each, np.stack(outputs), atol=1e-5)
    np.testing.assert_allclose(given_out, np.stack(after_blocks), atol=1e-5)
    assert int(count) == 6
