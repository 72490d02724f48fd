"""A vision-language model on inputs as transformers takes them, pictures already normalised."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from vlm_jax.convert.run_joined import cut_pictures
from vlm_jax.convert.run_padded import whole_pictures
from vlm_jax.convert.run_qformer import instructed_tokens
from vlm_jax.convert.run_text import Arrays, embed_tokens, read_text, run_decoder
from vlm_jax.errors import UserError
from vlm_jax.models.adapters import ResamplerConfig
from vlm_jax.models.decoder import Decoder
from vlm_jax.models.vlm import VLM, PromptLayout, VLMConfig


def run_vlm(config: VLMConfig, params: PyTree, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """logits, last_hidden_state, hidden_states.N and image_hidden_states (visual tokens), float32.

    Args:
        config: of an imported model: its `layout` says which token pictures replace.
        params: {"decoder", "encoder", "adapter"}.
        inputs: input_ids, and as they apply attention_mask, position_ids, token_type_ids [B, S] (0 = the prompt), and
            pixel_values [N, 3, H, W] or [B, I, 3, H, W], where pictures that are all zero count as absent. Of
            LLaVA-NeXT tiles [N, T, 3, H, W] and image_sizes [N, 2], each picture's own (height, width). Of Idefics 2
            and 3 pixel_attention_mask too (`run_padded`).

    Raises:
        UserError: if pictures and image tokens, or tiles and sizes, do not agree.
    """
    layout = config.layout
    if layout is None or config.encoder is None:
        text = read_text(inputs, config.decoder.vocabulary_size)
        if "pixel_values" in inputs:
            raise UserError("inputs: pixel_values is given, but the config has no layout that says where pictures go")
        return run_decoder(config.decoder, params["decoder"], text, precision=config.precision)
    tokens = np.asarray(inputs.get("input_ids", np.zeros((0, 0), np.int32)))
    visual = tokens == layout.image_token
    beyond = layout.image_token >= config.decoder.vocabulary_size
    known = {**inputs, "input_ids": np.where(visual & beyond, 0, tokens)} if "input_ids" in inputs else inputs
    text = read_text(known, config.decoder.vocabulary_size, layout.first_position)
    embeddings = embed_tokens(Decoder(config.decoder, config.precision), params["decoder"], text.tokens)
    together = _together(layout, visual, inputs.get("token_type_ids"))
    if "pixel_values" not in inputs:
        return run_decoder(config.decoder, params["decoder"], text, embeddings, together, config.precision)
    if config.separator:
        pictures, pixels, index = cut_pictures(config, inputs["pixel_values"], inputs.get("image_sizes"))
        features = _visual_tokens(VLM(config), params, pixels)
        features = flat = features.reshape(-1, features.shape[-1])[index]
    else:
        whole, shown = whole_pictures(config, inputs)
        instructed = config.pictures.instruction > 0
        plain = functools.partial(_visual_tokens, VLM(config), params, whole, shown)
        features = instructed_tokens(config, params, whole, inputs) if instructed else plain()
        pictures, flat = len(features), features.reshape(-1, features.shape[-1])
    if len(flat) != visual.sum():
        raise UserError(
            f"inputs: {pictures} pictures make {len(flat)} visual tokens, but input_ids holds {visual.sum()} "
            f"image tokens (id {layout.image_token}); repeat the image token for every one"
        )
    embeddings = embeddings.at[np.nonzero(visual)].set(flat.astype(embeddings.dtype))
    found = run_decoder(config.decoder, params["decoder"], text, embeddings, together, config.precision)
    return {**found, "image_hidden_states": np.asarray(features, np.float32)}


@functools.partial(jax.jit, static_argnums=0)
def _visual_tokens(model: VLM, params: PyTree, pixels: Array, shown: Array | None = None) -> Float[Array, "N T D"]:
    def tokens(vlm: VLM) -> Any:
        encoder: Any = vlm.encoder
        adapter: Any = vlm.adapter
        if shown is None:
            return adapter(encoder(pixels))
        features = encoder(pixels, shown)
        padding = (None, shown.reshape(len(shown), -1)) if isinstance(model.config.adapter, ResamplerConfig) else ()
        return adapter(features, *padding)

    result: Any = model.apply({"params": params}, method=tokens)
    return result


def _together(
    layout: PromptLayout, visual: Bool[np.ndarray, "B S"], types: np.ndarray | None
) -> Bool[np.ndarray, "B S S"] | None:
    """Pairs that see each other both ways: of the prompt, or of one unbroken stretch of visual tokens."""
    if layout.bidirectional == "none":
        return None
    if layout.bidirectional == "prompt":
        if types is None:
            return None
        prompt = np.asarray(types) == 0
        return prompt[:, :, None] & prompt[:, None, :]
    begins = visual & ~np.pad(visual, ((0, 0), (1, 0)))[:, :-1]
    number = np.where(visual, np.cumsum(begins, axis=1), 0)
    return (number[:, :, None] == number[:, None, :]) & (number != 0)[:, :, None]
