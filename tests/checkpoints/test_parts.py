"""Pre-trained parts fit the model's config, or the differences are listed; added tokens start as the old ones' mean."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_parts

from vlm_jax.checkpoints.handoff import abstract_params
from vlm_jax.checkpoints.parts import load_decoder, load_encoder
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import build_model

DECODER, ENCODER = tiny_parts.DECODER, tiny_parts.ENCODER


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Directory with decoder.gguf and encoder.onnx."""
    directory = tmp_path_factory.mktemp("parts")
    tiny_parts.write_gguf(directory / "decoder.gguf")
    tiny_parts.write_onnx(directory / "encoder.onnx")
    return directory


def decoder_of(reference, config, layout, dtype="float32"):
    return load_decoder(str(reference), config, dtype, abstract_params(build_model(config), layout), layout)


def encoder_of(reference, config, layout, dtype="float32"):
    return load_encoder(str(reference), config, dtype, abstract_params(build_model(config), layout), layout)


def test_parts_are_what_their_files_hold(parts, tiny):
    expected = tiny_parts.random_params(DECODER), tiny_parts.random_params(ENCODER)
    found = (
        decoder_of(parts / "decoder.gguf", DECODER, tiny.layout),
        encoder_of(parts / "encoder.onnx", ENCODER, tiny.layout),
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_they_come_in_the_dtype_and_sharding_of_the_model(parts, tiny):
    wanted = abstract_params(build_model(ENCODER), tiny.layout)
    found = encoder_of(parts / "encoder.onnx", ENCODER, tiny.layout, "bfloat16")
    for leaf, abstract in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert leaf.dtype == "bfloat16"
        assert leaf.sharding == abstract.sharding


@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_get_the_mean_of_the_old_rows(tiny, tmp_path, tied):
    config = dataclasses.replace(DECODER, tied_embeddings=tied)
    path = tiny_parts.write_directory(config, tmp_path / "hf")
    larger = dataclasses.replace(config, vocabulary_size=config.vocabulary_size + 3)
    found, old = decoder_of(path, larger, tiny.layout), tiny_parts.random_params(config)
    tables = [(found["embedding"], old["embedding"])] + ([] if tied else [(found["head"].T, old["head"].T)])
    for grown, before in tables:
        np.testing.assert_array_equal(grown[:-3], before)
        for row in grown[-3:]:
            np.testing.assert_allclose(row, np.mean(before, 0), atol=1e-6)


def test_tokens_that_are_only_read_are_added_too(tiny, tmp_path):
    config = dataclasses.replace(DECODER, tied_embeddings=False)
    path = tiny_parts.write_directory(config, tmp_path / "hf")
    found = decoder_of(path, dataclasses.replace(config, input_only_tokens=2), tiny.layout)
    old = tiny_parts.random_params(config)
    np.testing.assert_array_equal(found["head"], old["head"])
    np.testing.assert_array_equal(found["embedding"][:-2], old["embedding"])
    np.testing.assert_allclose(found["embedding"][-1], np.mean(old["embedding"], 0), atol=1e-6)


def test_pictures_of_another_size_and_other_ways_to_compute_are_no_difference(parts, tiny):
    larger = dataclasses.replace(ENCODER, image_size=(70, 56), remat="full")
    assert encoder_of(parts / "encoder.onnx", larger, tiny.layout)["positions"].shape == (3, 3, 24)
    decoder_of(parts / "decoder.gguf", dataclasses.replace(DECODER, remat="full", context=0), tiny.layout)


def test_every_difference_is_listed(parts, tiny):
    other = dataclasses.replace(ENCODER, layers=5, activation="gelu_tanh", mean=(0.5, 0.5, 0.5))
    with pytest.raises(UserError) as caught:
        encoder_of(parts / "encoder.onnx", other, tiny.layout)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("encoder.onnx", "layers is 2 there and 5 here", "activation is gelu there", "mean"):
        assert part in message
    with pytest.raises(UserError, match=r"rope_base is 10000\.0 there and 500\.0 here"):
        decoder_of(parts / "decoder.gguf", dataclasses.replace(DECODER, rope_base=500.0), tiny.layout)


def test_a_vocabulary_cannot_shrink(parts, tiny):
    with pytest.raises(UserError, match=r"embeds 264 tokens, .* only 200; raise model\.decoder\.vocabulary-size"):
        decoder_of(parts / "decoder.gguf", dataclasses.replace(DECODER, vocabulary_size=200), tiny.layout)


def test_the_wrong_kind_of_part_is_refused(parts, tiny, saved):
    with pytest.raises(UserError, match=r"parts\.decoder: .*encoder\.onnx is a ViTConfig, which has no decoder"):
        decoder_of(parts / "encoder.onnx", DECODER, tiny.layout)
    with pytest.raises(UserError, match=r"parts\.encoder: .* which has no encoder"):
        encoder_of(parts / "decoder.gguf", ENCODER, tiny.layout)


def test_a_part_may_be_taken_from_a_whole_model(saved, tiny):
    found = encoder_of(saved, tiny.model.config.encoder, tiny.layout)
    jax.tree.map(np.testing.assert_array_equal, found, dict(tiny.params["encoder"]))
