"""Tokens that are read and never written: an embedding each, no logit, and no harm where one comes next."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.losses.next_token import next_token_objective, score_tokens
from vlm_jax.models.decoder import Decoder, DecoderConfig
from vlm_jax.models.vlm import VLM, VLMConfig

CONFIG = DecoderConfig(20, 16, 1, 2, 2, 8, 24, tied_embeddings=False, input_only_tokens=3)


def test_they_are_embedded_and_have_no_logit(make):
    batch = make.pack([{"trunk": [3, 20, 22, 4]}], 6)
    params = make.params(VLM(VLMConfig(CONFIG)), batch)
    assert params["decoder"]["embedding"].shape == (23, 16)
    assert params["decoder"]["head"].shape == (16, 20)
    logits = VLM(VLMConfig(CONFIG)).apply({"params": params}, batch).logits
    assert logits.shape == (1, 6, 20)
    other = make.pack([{"trunk": [3, 21, 22, 4]}], 6)
    assert np.abs(VLM(VLMConfig(CONFIG)).apply({"params": params}, other).logits - logits)[0, 1:4].min() > 0
    embedded = Decoder(CONFIG).apply({"params": params["decoder"]}, jnp.asarray([[22]]), method="embed")
    np.testing.assert_array_equal(embedded[0, 0], params["decoder"]["embedding"][22])


def test_one_that_comes_next_without_a_weight_changes_no_loss(make):
    batch = make.pack([{"trunk": [3, 20, 5, 4]}], 6)
    targets, weights = np.zeros((1, 6), np.int32), np.zeros((1, 6), np.float32)
    targets[0, :3], weights[0, 1:3] = [20, 5, 4], 1.0
    batch = dataclasses.replace(batch, targets=targets, loss_weights=weights)
    model = VLM(VLMConfig(CONFIG))
    params = make.params(model, batch)

    def loss(params, batch):
        return next_token_objective(model.apply, params, batch, 1)[0]

    found, gradients = jax.value_and_grad(loss)(params, batch)
    assert np.isfinite(found)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    targets[0, 0] = 0
    assert found == loss(params, dataclasses.replace(batch, targets=targets))
    scores = score_tokens(lambda x: x, jnp.ones((1, 2, 20)), jnp.asarray([[22, 3]]), 0)
    assert np.isfinite(scores.cross_entropy).all()


def test_tied_embeddings_would_give_them_logits():
    with pytest.raises(ValueError, match="set tied_embeddings False"):
        dataclasses.replace(CONFIG, tied_embeddings=True)
    with pytest.raises(ValueError, match="input_only_tokens is -1"):
        dataclasses.replace(CONFIG, input_only_tokens=-1)
