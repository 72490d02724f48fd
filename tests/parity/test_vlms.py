"""Every VLM family against transformers: numbers, greedy tokens, and the way out and back in."""

import dataclasses

import numpy as np
import pytest
import transformers
from cases_vlms import CASES
from harness import assert_same, greedy, run
from ours import greedy_cached, text_batch
from round_trip import assert_comes_back

from vlm_jax.convert import load_hf, run_hf_inputs
from vlm_jax.models.vlm import VLM

NEW_TOKENS = 64


@pytest.fixture(params=CASES)
def model(request, built):
    """(case, transformers' model, our config, our parameters)."""
    case = CASES[request.param]
    directory, theirs = built(request.param, case)
    return case, theirs, *load_hf(directory)


def pictures_of(inputs, config):
    """For each row its tokens without padding and its pictures."""
    pixels = inputs["pixel_values"]
    found = []
    for row, (tokens, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        count = int((tokens == config.layout.image_token).sum()) // config.prompt_tokens
        if pixels.ndim == 5:
            found.append((tokens[mask != 0], pixels[row, :count]))
        else:
            found.append((tokens[mask != 0], pixels[:count]))
            pixels = pixels[count:]
    return found


def vlm_batch(config, params, rows, padding):
    """Prompts with their pictures as a batch of ours, padded at the end."""
    tokens = [np.where(tokens >= config.decoder.vocabulary_size, 0, tokens) for tokens, _ in rows]
    visual = [tokens == config.layout.image_token for tokens, _ in rows]
    batch = text_batch(tokens, max(map(len, tokens)) + padding)
    slots = max(len(pixels) for _, pixels in rows)
    size = rows[0][1].shape[2:]
    pixels = np.zeros((len(rows), slots, *size, 3), np.float32)
    index, blocks = np.full(batch.tokens.shape, -1, np.int32), np.zeros_like(batch.tokens)
    for i, (_, pictures) in enumerate(rows):
        pixels[i, : len(pictures)] = np.moveaxis(pictures, 1, -1)
        index[i, np.flatnonzero(visual[i])] = np.arange(visual[i].sum())
        blocks[i, : len(tokens[i])] = config.layout.bidirectional == "prompt"
    flat = pixels.reshape(-1, *size, 3)
    features = VLM(config).apply({"params": params}, method=lambda vlm: vlm.encoder(flat))
    features = features.reshape(len(rows), slots, *features.shape[1:])
    return dataclasses.replace(batch, features=features, visual_index=index, block_ids=blocks)


def padded_left(rows, config, nested):
    """The same prompts as transformers' `generate` takes them."""
    length = max(len(tokens) for tokens, _ in rows)
    ids = np.stack([np.pad(tokens, (length - len(tokens), 0)) for tokens, _ in rows])
    found = {"input_ids": ids, "attention_mask": np.stack([np.arange(length) >= length - len(t) for t, _ in rows])}
    found["attention_mask"] = found["attention_mask"].astype(int)
    pictures = [pixels for _, pixels in rows]
    if nested:
        slots = max(map(len, pictures))
        fill = [np.pad(pixels, ((0, slots - len(pixels)), (0, 0), (0, 0), (0, 0))) for pixels in pictures]
        found["pixel_values"] = np.stack(fill)
    else:
        found["pixel_values"] = np.concatenate(pictures)
    if config.layout.bidirectional == "prompt":
        found["token_type_ids"] = np.zeros_like(ids)
    return found


def test_logits_and_hidden_states(model):
    case, theirs, config, params = model
    inputs = case.inputs()
    assert_same(run_hf_inputs(config, params, inputs), run(theirs, inputs), inputs)


def test_greedy_tokens(model):
    case, theirs, config, params = model
    inputs = case.inputs()
    rows = pictures_of(inputs, config)
    nested = inputs["pixel_values"].ndim == 5
    ours = greedy_cached(config, params, vlm_batch(config, params, rows, 2), NEW_TOKENS)
    np.testing.assert_array_equal(ours, greedy(theirs, padded_left(rows, config, nested), NEW_TOKENS))
    np.testing.assert_array_equal(ours[:1], greedy(theirs, padded_left(rows[:1], config, nested), NEW_TOKENS))
    assert len(np.unique(ours)) > 4
    assert not np.array_equal(*(ours[i] for i in (0, 2)))


def test_out_and_in_again(model, tmp_path):
    case, theirs, config, params = model
    assert_comes_back(config, params, theirs, case.inputs(), tmp_path, transformers.AutoModelForImageTextToText)
