"""Gated blocks in packed rows: untrained they change no bit, trained they read their own pictures and nothing else."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.batch import Batch, concatenate
from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.adapters import CrossAttentionConfig
from vlm_jax.models.adapters.mlp import MLPAdapterConfig
from vlm_jax.models.adapters.resampler import ResamplerConfig
from vlm_jax.models.flops import decoder_flops, encoder_flops
from vlm_jax.models.presets import vlm_2b, vlm_8b, vlm_mu
from vlm_jax.models.vlm import VLM
from vlm_jax.parallel import abstract_params
from vlm_jax.pictures import Tiling

LENGTH, SLOTS, SIZE = 40, 4, (32, 32)
FLAMINGO = CrossAttentionConfig(every=2)
LLAMA = CrossAttentionConfig(form="llama", layers=(1, 1, 4))
RESAMPLED = CrossAttentionConfig(
    every=3,
    memory=ResamplerConfig(queries=3, layers=1, heads=2, head_size=8),
    memory_width=20,
    norm="layer",
    blind="feed_forward",
    visible="all",
)
FORMS = {"flamingo": FLAMINGO, "llama": LLAMA, "resampled": RESAMPLED}


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)


PICTURED = {"trunk": [2, 30, -1, 31], "branches": [[5, 31, 32, 3, 6], [5, 34, 3]], "images": [picture(1)]}
TWO = {"trunk": [2, -1, 40, 41, -2, 42, 43], "images": [picture(2), picture(3)]}
TEXT = {"trunk": [2, 50, 51, 52, 53, 54]}


def config_of(adapter, layers=4, **changes):
    mu = vlm_mu()
    return dataclasses.replace(mu, decoder=dataclasses.replace(mu.decoder, layers=layers, **changes), adapter=adapter)


def row_of(make, examples, visible="last", length=LENGTH):
    """A packed row; the place of a picture is one position."""
    row = make.pack(examples, length, 1, SIZE, SLOTS)
    ranges, first = np.zeros((1, length, 2), np.int32), 0
    for segment, example in enumerate(examples, 1):
        seen = -1
        for at in np.flatnonzero(row.segment_ids[0] == segment):
            seen = max(seen, int(row.visual_index[0, at]))
            if seen >= 0:
                ranges[0, at] = (first if visible == "all" else seen, seen + 1)
        first += len(example.get("images", []))
    ids = np.where(np.arange(SLOTS) < first, np.arange(SLOTS) + 1, 0)[None].astype(np.int32)
    tiles = np.array([[(0, 1, 1) if number else (0, 0, 0) for number in ids[0]]], np.int32)
    return dataclasses.replace(row, visual_index=None, visible_images=ranges, image_ids=ids, tile_index=tiles)


def without_pictures(batch):
    return dataclasses.replace(batch, images=None, visible_images=None, image_ids=None, tile_index=None)


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(config, params, batch, optimised=False):
    return VLM(config).apply({"params": params}, batch).logits


def forward_of(config, params, optimised=False):
    """The forward pass; always of two rows, so that it is compiled once."""

    def forward(batch):
        single = len(batch.tokens) == 1
        logits = np.asarray(run(config, params, concatenate([batch, batch]) if single else batch, optimised))
        return logits[:1] if single else logits

    return forward


def untrained(params):
    blocks = params["adapter"]["blocks"]
    gates = {name: jnp.zeros_like(blocks[name]) for name in ("attention_gate", "mlp_gate")}
    return params | {"adapter": params["adapter"] | {"blocks": blocks | gates}}


@pytest.fixture(scope="module")
def row(make):
    return row_of(make, [PICTURED, TWO, TEXT])


@pytest.fixture(scope="module", params=FORMS)
def model(request, make):
    """(config, params with open gates, its forward pass)."""
    config = config_of(FORMS[request.param])
    params = make.params(VLM(config), row_of(make, [PICTURED]))
    return config, params, forward_of(config, params)


def test_untrained_it_is_the_text_llm_bit_for_bit(model, make):
    jax.config.update("jax_disable_most_optimizations", False)
    config, params, trained = model
    rows = concatenate([row_of(make, [PICTURED, TWO]), row_of(make, [TEXT, TEXT])])
    llm = dataclasses.replace(config, encoder=None, adapter=None)
    expected = forward_of(llm, {"decoder": params["decoder"]}, True)(without_pictures(rows))
    forward = forward_of(config, untrained(params), True)
    np.testing.assert_array_equal(forward(without_pictures(rows)), expected)
    np.testing.assert_array_equal(forward(rows), expected)
    assert np.abs(trained(rows)[0] - expected[0]).max() > 0.1


def test_text_is_one_function_alone_and_beside_pictures_with_trained_gates_too(model, make):
    config, _, forward = model
    rows = concatenate([row_of(make, [PICTURED, TWO]), row_of(make, [TEXT, TEXT])])
    together = forward(rows)
    np.testing.assert_allclose(forward(without_pictures(rows))[1], together[1], atol=3e-5)
    in_a_row = row_of(make, [TWO, TEXT], config.adapter.seen)
    of_text = np.asarray(in_a_row.segment_ids)[0] == 2
    np.testing.assert_allclose(forward(in_a_row)[0][of_text], together[1][: len(TEXT["trunk"])], atol=3e-5)


def test_packed_examples_and_branches_are_what_they_are_alone(model, make):
    config, _, forward = model
    visible = config.adapter.seen
    row = row_of(make, [PICTURED, TWO, TEXT], visible)
    together, segments, branches = forward(row)[0], row.segment_ids[0], row.branch_ids[0]
    for segment, example in enumerate((PICTURED, TWO, TEXT), 1):
        alone = row_of(make, [example], visible)
        np.testing.assert_allclose(
            together[segments == segment], forward(alone)[0][alone.segment_ids[0] == 1], atol=2e-5
        )
    for branch, tokens in enumerate(PICTURED["branches"], 1):
        alone = row_of(make, [PICTURED | {"branches": [tokens]}], visible)
        of_it = (segments == 1) & (branches == branch)
        np.testing.assert_allclose(together[of_it], forward(alone)[0][alone.branch_ids[0] == 1], atol=2e-5)


def test_a_picture_reaches_those_who_may_see_it_and_nobody_else(model, make):
    config, _, forward = model
    row = row_of(make, [PICTURED, TWO, TEXT], config.adapter.seen)
    before = forward(row)[0]
    for slot in range(SLOTS):
        images = row.images.copy()
        images[0, slot] = picture(9)
        after = forward(dataclasses.replace(row, images=images))[0]
        segment = 1 if slot == 0 else 2
        in_example = (row.segment_ids[0] == segment) & (slot < 3)
        # What comes after a position that saw the picture sees that position; before it, only the whole example's rule.
        sees = (row.visible_images[0, :, 0] <= slot) & (slot < row.visible_images[0, :, 1])
        expected = in_example & np.maximum.accumulate(sees & in_example)
        if config.adapter.blind_rule == "whole_example":
            expected = in_example
        changed = (after != before).any(-1)
        assert not changed[~expected & (row.segment_ids[0] > 0)].any(), f"slot {slot}"
        assert (np.abs(after - before).max(-1) > 1e-4)[expected].all(), f"slot {slot}"


def test_gradients_reach_every_parameter_and_a_slot_that_nobody_sees_gives_none(model, make):
    config, params, _ = model
    row = row_of(make, [PICTURED, TWO, TEXT])

    def total(params, features):
        batch = dataclasses.replace(row, images=None, features=features)
        output = VLM(config).apply({"params": params}, batch).logits
        return jnp.sum(jnp.where(jnp.asarray(row.segment_ids)[..., None] != 0, output**2, 0))

    features = jnp.asarray(np.random.default_rng(0).standard_normal((1, SLOTS, 16, 24)), jnp.float32)
    of_params, of_features = jax.jit(jax.grad(total, (0, 1)))(params, features)
    for path, gradient in jax.tree_util.tree_leaves_with_path({k: of_params[k] for k in ("adapter", "decoder")}):
        assert float(jnp.abs(gradient).max()) > 0, path
    sizes = np.abs(np.asarray(of_features)).max((0, 2, 3))
    assert (sizes[:3] > 0).all()
    assert sizes[3] == 0


def test_recomputation_changes_nothing(make):
    row = row_of(make, [PICTURED])
    adapter = CrossAttentionConfig(every=1)
    params = make.params(VLM(config_of(adapter, 2)), row)

    def gradients(policy):
        model = VLM(config_of(adapter, 2, remat=policy))
        return jax.jit(jax.grad(lambda part: jnp.sum(model.apply({"params": params | part}, row).logits ** 2)))(
            {"adapter": params["adapter"]}
        )

    kept, recomputed = (jax.tree.leaves(gradients(policy)) for policy in ("none", "full"))
    for a, b in zip(kept, recomputed, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(a).max())))


def test_hidden_states_count_blocks_as_layers(model, row):
    config, params, forward = model
    vlm = VLM(config)
    states_of = jax.jit(lambda p: vlm.apply({"params": p}, row, method="hidden_states"))
    states = states_of(params)
    places = config.adapter.places(config.decoder)
    assert len(states) == 1 + 4 + len(places)
    logits = vlm.apply({"params": params}, states[-1], method="unembed")
    np.testing.assert_allclose(logits, forward(row), atol=1e-4)
    # With closed gates a block gives what it took; the last state is that after the final norm.
    closed = states_of(untrained(params))
    for at in (place + count for count, place in enumerate(places) if place + count + 2 < len(closed)):
        np.testing.assert_array_equal(closed[at], closed[at + 1])


def test_a_decoder_s_pattern_goes_between_blocks(make):
    two = vlm_mu().decoder.pattern * 2
    pattern = (two[0], dataclasses.replace(two[1], window=3))
    adapter = CrossAttentionConfig(layers=(2,))
    row = row_of(make, [PICTURED, TWO, TEXT])
    config = config_of(adapter, pattern=pattern)
    params = make.params(VLM(config), row)
    single = config_of(adapter)
    stacks = [params["decoder"]["layers"][f"block_{i}"] for i in (0, 1)]
    with_one = jax.tree.map(lambda a, b: jnp.stack([a, b], 1).reshape(-1, *a.shape[1:]), *stacks)
    flat = params | {"decoder": params["decoder"] | {"layers": {"block_0": with_one}}}
    wide = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, pattern=two))
    np.testing.assert_allclose(forward_of(wide, params)(row), forward_of(single, flat)(row), atol=1e-5)
    assert np.abs(forward_of(config, params)(row) - forward_of(wide, params)(row)).max() > 1e-3


def test_prefill_and_steps_equal_the_full_forward(model, make):
    config, params, _ = model
    continuation = np.random.default_rng(0).integers(10, 300, (3, 4))
    visible = config.adapter.seen
    prompts = [PICTURED | {"branches": []}, TWO, TEXT]
    whole = [p | {"trunk": p["trunk"] + list(map(int, c))} for p, c in zip(prompts, continuation, strict=True)]
    short = concatenate([row_of(make, [p], visible, 8) for p in prompts])
    full = concatenate([row_of(make, [p], visible, 12) for p in whole])
    model = VLM(config)
    expected = np.asarray(jax.jit(lambda b: model.apply({"params": params}, b, output="hidden").hidden)(full))
    hidden, cache = jax.jit(lambda b: model.apply({"params": params}, b, 12, method="prefill"))(short)
    real = short.segment_ids != 0
    np.testing.assert_allclose(np.asarray(hidden)[real], expected[:, :8][real], atol=3e-5)
    step = jax.jit(lambda *arguments: model.apply({"params": params}, *arguments, method="step"))
    order = np.array([2, 0, 1])
    cache = cache.take_rows(order)
    lengths = real.sum(1)[order]
    for offset, count in ((0, 1), (1, 2), (3, 1)):
        positions = lengths[:, None] + offset + np.arange(count)
        hidden, cache = step(continuation[order, offset : offset + count], positions, np.ones((3, count), bool), cache)
        there = np.take_along_axis(expected[order], positions[..., None], axis=1)
        np.testing.assert_allclose(hidden, there, atol=3e-5)


def test_visual_tokens_beside_memory(make):
    """NVLM-H: a cut picture's thumbnail stands in the sequence, its tiles are the memory."""
    prompt = MLPAdapterConfig(layers=1, pixel_shuffle=4)
    adapter = CrossAttentionConfig(prompt=prompt, prompt_slots="thumbnail")
    config = dataclasses.replace(config_of(adapter), tiling=Tiling(thumbnail="first"))
    assert (config.prompt_tokens, config.memory_tokens) == (1, 16)
    assert config.pictures.prompt_slots == "thumbnail"
    row = make.pack([{"trunk": [2, -1, 5, 6], "images": [picture(1), picture(2), picture(3)]}], 8, 1, SIZE, 3)
    seen = np.zeros((1, 8, 2), np.int32)
    seen[0, 1:4] = (0, 3)
    tiles = np.array([[(0, 1, 2), (1, 1, 2), (2, 1, 2)]], np.int32)
    row = dataclasses.replace(
        row, visible_images=seen, image_ids=np.ones((1, 3), np.int32), tile_index=tiles, visual_index=row.visual_index
    )
    params = make.params(VLM(config), row)
    assert set(params["adapter"]) == {"prompt", "blocks"}
    forward = forward_of(config, params)
    # The thumbnail is not read through the blocks: with what stands in the sequence hidden, it reaches nobody.
    hidden = dataclasses.replace(row, visual_index=np.full_like(row.visual_index, -1))
    for slot, reaches, read in ((0, True, False), (1, True, True)):
        images = row.images.copy()
        images[0, slot] = picture(9)
        differs = [
            bool((forward(dataclasses.replace(b, images=images)) != forward(b))[0, :4].any()) for b in (row, hidden)
        ]
        assert differs == [reaches or read, read]


def test_a_table_of_what_trains_and_the_decoder_s_tree_stay_as_they_are(model):
    config, params, _ = model
    llm = dataclasses.replace(config, encoder=None, adapter=None)
    shapes = abstract_params(boxed_params(build_model(llm)))["decoder"]
    assert jax.tree.structure(shapes) == jax.tree.structure(params["decoder"])
    drawn = abstract_params(boxed_params(build_model(config)))
    assert jax.tree.structure(drawn) == jax.tree.structure(params)
    count = len(config.adapter.places(config.decoder))
    assert all(leaf.shape[0] == count for leaf in jax.tree.leaves(drawn["adapter"]["blocks"]))


@pytest.mark.parametrize("preset", [vlm_2b, vlm_8b])
def test_it_has_a_shape_at_full_size(preset):
    adapter = CrossAttentionConfig(memory=ResamplerConfig(queries=64), memory_width=1024)
    config = dataclasses.replace(preset(), adapter=adapter)
    params = abstract_params(boxed_params(build_model(config)))
    rows = Batch.spec(2, 512, images=3, image_size=config.image_size, in_sequence=False, pictures=config.pictures)
    forward = jax.eval_shape(lambda p, b: VLM(config).apply({"params": p}, b), params, rows)
    assert forward.logits.shape == (2, 512, config.decoder.vocabulary_size)
    _, cache = jax.eval_shape(lambda p, b: VLM(config).apply({"params": p}, b, 600, method="prefill"), params, rows)
    blocks, heads, size = config.decoder.layers // 4, config.decoder.key_value_heads, config.decoder.head_size
    assert cache.memory.kept[1].shape == (blocks, 2, heads, 3 * 64, size)


def test_flops_count_every_weight_of_the_blocks_and_the_attention_to_all_slots():
    config = config_of(CrossAttentionConfig(every=2), layers=6)
    llm = dataclasses.replace(config, encoder=None, adapter=None)
    blocks = abstract_params(boxed_params(build_model(config)))["adapter"]["blocks"]
    kernels = {jax.tree_util.keystr(p): x.size for p, x in jax.tree_util.tree_leaves_with_path(blocks) if x.ndim > 2}
    of_memory = sum(size for name, size in kernels.items() if "key" in name or "value" in name)
    c, slots = config.decoder, 3
    attention = 3 * 4 * c.heads * c.head_size * slots * 16
    added = decoder_flops(config, 50, slots) - decoder_flops(llm, 50)
    assert added == 2 * (sum(kernels.values()) - of_memory) + attention
    assert decoder_flops(config, 50) == decoder_flops(llm, 50)
    plain = dataclasses.replace(config, adapter=MLPAdapterConfig(layers=1))
    mlp = plain.adapter.flops(config.encoder.features, c.width)
    assert encoder_flops(config) - (encoder_flops(plain) - mlp) == 2 * 16 * of_memory


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": (0, 5)}, "before layer 5, but the decoder has 4 layers, 0 to 3"),
        ({"first": 7}, "before layer 7, but the decoder has 4 layers"),
        ({"layers": (2, 1)}, "ascending"),
        ({"layers": (-1, 1)}, "from 0 on"),
        ({"every": 0}, "every is 0"),
        ({"memory_width": 8}, "memory is None"),
        ({"prompt_slots": "thumbnail"}, "which makes them, is None"),
        ({"heads": 3}, "3 heads do not divide by 2 key_value_heads"),
        ({"memory": MLPAdapterConfig(pixel_shuffle=3)}, "does not divide by pixel_shuffle 3"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options, said):
    with pytest.raises(ValueError, match=said):
        config_of(CrossAttentionConfig(**options))


def test_a_block_inside_the_pattern_is_refused():
    pattern = vlm_mu().decoder.pattern * 2
    with pytest.raises(ValueError, match=r"layer 1, which is inside .* pattern of 2 layers; choose multiples of 2"):
        config_of(CrossAttentionConfig(layers=(1,)), pattern=pattern)
