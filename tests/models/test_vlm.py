import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy_model
import pytest

from vlm_jax.batch import concatenate
from vlm_jax.models.adapters.mlp import MLPAdapterConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vlm import VLM, VLMConfig

SIZE, N = (32, 32), 4


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)


PICTURED = {"trunk": [2, -1, 30], "branches": [[5, 31, 32, 3, 6, 33, 3], [5, 34, 3, 6, 35, 3]], "images": [picture(1)]}
TWO_PICTURES = {"trunk": [2, -1, 40, 41, -2, 42, 43], "images": [picture(2), picture(3)]}
TEXT = {"trunk": [2, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59]}
LENGTH = 56


@pytest.fixture(scope="module")
def forward(mu):
    config, params = mu
    return jax.jit(lambda batch: VLM(config).apply({"params": params}, batch).logits)


@pytest.fixture(scope="module")
def row(make):
    return make.pack([PICTURED, TWO_PICTURES, TEXT], LENGTH, N, SIZE, 4)


def at(batch, segment, branch=None):
    chosen = np.asarray(batch.segment_ids)[0] == segment
    return chosen if branch is None else chosen & (np.asarray(batch.branch_ids)[0] == branch)


def test_whole_model_is_that_of_plain_numpy(mu, make, row, forward):
    config, params = mu
    real = np.asarray(row.segment_ids)[0] != 0
    expected = numpy_model.vlm(make.float64(params), config, row)
    np.testing.assert_allclose(forward(row)[0][real], expected[real], atol=2e-4)


def test_packed_examples_are_what_they_are_alone(make, row, forward):
    together = forward(row)[0]
    for segment, example in enumerate((PICTURED, TWO_PICTURES, TEXT), 1):
        alone = make.pack([example], LENGTH, N, SIZE, 4)
        np.testing.assert_allclose(together[at(row, segment)], forward(alone)[0][at(alone, 1)], atol=2e-5)


def test_a_branch_is_what_it_is_without_its_siblings(make, row, forward):
    together = forward(row)[0]
    for branch, tokens in enumerate(PICTURED["branches"], 1):
        alone = make.pack([PICTURED | {"branches": [tokens]}], LENGTH, N, SIZE, 4)
        np.testing.assert_allclose(together[at(row, 1, branch)], forward(alone)[0][at(alone, 1, 1)], atol=2e-5)


def test_no_example_or_branch_sees_another(make, row, forward):
    before = np.asarray(forward(row)[0])

    def changed(mask):
        return dataclasses.replace(row, tokens=np.where(mask[None], row.tokens + 100, row.tokens))

    for segment in (1, 2, 3):
        after = np.asarray(forward(changed(at(row, segment)))[0])
        others = (np.asarray(row.segment_ids)[0] != 0) & ~at(row, segment)
        np.testing.assert_array_equal(after[others], before[others])
        assert np.abs(after - before)[at(row, segment)].max() > 0.1
    after = np.asarray(forward(changed(at(row, 1, 1)))[0])
    others = (np.asarray(row.segment_ids)[0] != 0) & ~at(row, 1, 1)
    np.testing.assert_array_equal(after[others], before[others])
    assert np.abs(after - before)[at(row, 1, 1)].max() > 0.1


def test_a_picture_reaches_its_own_example_alone(row, forward):
    before = np.asarray(forward(row)[0])
    images = row.images.copy()
    images[0, 2] = picture(9)
    after = np.asarray(forward(dataclasses.replace(row, images=images))[0])
    changed = (np.abs(after - before).max(-1) > 1e-6) & ~at(row, 0)
    second = np.flatnonzero(at(row, 2))
    # Slot 2 is the second picture of the second example: only what stands in its block or after it can know.
    expected = np.isin(np.arange(LENGTH), second[second >= second[0] + 1 + N + 2])
    np.testing.assert_array_equal(changed, expected)


def test_features_stand_in_for_pictures_and_several_positions_for_one_encode(mu, row, forward):
    config, params = mu
    features = VLM(config).apply({"params": params}, jnp.asarray(row.images[0]), method="encode")
    cached = dataclasses.replace(row, images=None, features=features[None])
    np.testing.assert_allclose(forward(cached), forward(row), atol=1e-5)
    # The second example's second picture shown from the first one's slot.
    index = np.where((row.visual_index >= 2 * N) & (row.visual_index < 3 * N), row.visual_index - N, row.visual_index)
    images = row.images.copy()
    images[0, 2] = images[0, 1]
    again = forward(dataclasses.replace(row, visual_index=index))
    np.testing.assert_allclose(again, forward(dataclasses.replace(row, images=images)), atol=1e-5)


def test_prefill_and_steps_equal_the_full_forward_for_mixed_lengths(mu, make):
    config, params = mu
    continuation = np.random.default_rng(0).integers(10, 300, (3, 9))
    prompts = [
        {"trunk": [2, -1, 5, 30, 31, 6], "images": [picture(4)]},
        {"trunk": [2, -1, 40, -2, 5, 41, 42, 43, 44, 6], "images": [picture(5), picture(6)]},
        {"trunk": [2, 5, 50, 6]},
    ]
    full = [p | {"trunk": p["trunk"] + list(map(int, c))} for p, c in zip(prompts, continuation, strict=True)]
    short = concatenate([make.pack([p], 20, N, SIZE, 2) for p in prompts])
    whole = concatenate([make.pack([p], 32, N, SIZE, 2) for p in full])
    model = VLM(config)
    expected = jax.jit(lambda b: model.apply({"params": params}, b, output="hidden").hidden)(whole)
    hidden, cache = jax.jit(lambda b: model.apply({"params": params}, b, 32, method="prefill"))(short)
    real = short.segment_ids != 0
    np.testing.assert_allclose(hidden[real], np.asarray(expected)[:, :20][real], atol=3e-5)
    step = jax.jit(lambda *arguments: model.apply({"params": params}, *arguments, method="step"))
    lengths = real.sum(1)
    # One token at a time, then two at once, then rows of which the middle one has ended.
    for offset, count in ((0, 1), (1, 1), (2, 2), (4, 2), (6, 1), (7, 2)):
        valid = np.ones((3, count), bool)
        valid[1] = offset < 6
        positions = lengths[:, None] + offset + np.arange(count)
        hidden, cache = step(continuation[:, offset : offset + count], positions, valid, cache)
        there = np.take_along_axis(np.asarray(expected), positions[..., None], axis=1)
        np.testing.assert_allclose(hidden[valid], there[valid], atol=3e-5)
    assert int(cache.used) == 29


def test_a_text_only_model_reads_text_and_refuses_pictures(make, row):
    config = VLMConfig(DecoderConfig(60, width=8, layers=1, heads=1, key_value_heads=1, head_size=8, mlp_width=8))
    batch = make.pack([TEXT], 12)
    params = make.params(VLM(config), batch)
    assert set(params) == {"decoder"}
    assert (config.prompt_tokens, config.image_size) == (0, (0, 0))
    with pytest.raises(ValueError, match="no image encoder"):
        VLM(config).apply({"params": params}, row)
    with pytest.raises(ValueError, match="both encoder and adapter"):
        VLMConfig(adapter=MLPAdapterConfig())


def test_hidden_states_end_with_what_logits_are_made_of(mu, row, forward):
    config, params = mu
    states = VLM(config).apply({"params": params}, row, method="hidden_states")
    assert len(states) == config.decoder.layers + 1
    embedded = VLM(config).apply({"params": params}, row, method="embed")
    np.testing.assert_array_equal(states[0], embedded)
    logits = VLM(config).apply({"params": params}, states[-1], method="unembed")
    np.testing.assert_allclose(logits, forward(row), atol=1e-5)


def test_a_class_token_among_the_features_is_one_more_visual_token(mu):
    config, _ = mu
    encoder = dataclasses.replace(config.encoder, class_token=True, keep_class_token=True)
    adapter = MLPAdapterConfig(layers=2)
    config = dataclasses.replace(config, encoder=encoder, adapter=adapter)
    assert config.prompt_tokens == encoder.patches + 1
    pixels = np.stack([picture(1), picture(2)]).astype(np.float32)
    visual, _ = VLM(config).init_with_output(jax.random.key(0), method=lambda vlm: vlm.adapter(vlm.encoder(pixels)))
    assert visual.shape == (2, encoder.patches + 1, config.decoder.width)
