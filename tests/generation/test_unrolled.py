import jax
import numpy as np

from vlm_jax.generation import Engine, Request, decoding
from vlm_jax.models.decoder import unrolled_params


def test_decoding_with_layers_of_their_own_is_the_same(mu, prompts, monkeypatch):
    requests = [Request(prompts[0], 6), Request(prompts[1], 6, samples=2)]
    engine = Engine(mu.config, mu.params, mu.processor)
    assert engine._unrolled is not None
    unrolled = engine.sample(requests)
    monkeypatch.setattr(decoding, "unrolled_params", lambda *_: None)
    scanned = Engine(mu.config, mu.params, mu.processor)
    assert scanned._unrolled is None
    assert scanned.sample(requests) == unrolled


def test_the_arrays_are_slices_in_the_order_of_the_layers(mu):
    config, params = mu.config.decoder, mu.params["decoder"]
    found = unrolled_params(config, params)
    assert set(found) == {*params, *(f"layers_{repeat}" for repeat in range(config.repeats))} - {"layers"}
    assert found["embedding"] is params["embedding"]
    for repeat in range(config.repeats):
        jax.tree.map(
            lambda stack, own, at=repeat: np.testing.assert_array_equal(stack[at], own),
            params["layers"],
            found[f"layers_{repeat}"],
        )


def test_on_a_cpu_they_share_the_memory_of_the_stacked_ones(mu):
    stacked = {"layers": {"kernel": jax.device_put(np.ones((mu.config.decoder.repeats, 32, 64), np.float32))}}
    found = unrolled_params(mu.config.decoder, stacked)
    begin = stacked["layers"]["kernel"].unsafe_buffer_pointer()
    for repeat in range(mu.config.decoder.repeats):
        assert found[f"layers_{repeat}"]["kernel"].unsafe_buffer_pointer() == begin + repeat * 32 * 64 * 4


def test_parameters_of_several_devices_stay_as_they_are(mu):
    host = jax.tree.map(np.asarray, mu.params)
    assert decoding.unrolled_params(mu.config, host) is None
