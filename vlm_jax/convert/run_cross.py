"""A model with cross-attention to tiles (Llama 3.2 Vision) on inputs as transformers takes them."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from vlm_jax.convert.run_text import Arrays, read_text, run_decoder
from vlm_jax.convert.run_tiles import encode_tiles, read_tiles
from vlm_jax.errors import UserError
from vlm_jax.models.decoder import Masks
from vlm_jax.models.memory import Memory, Sight
from vlm_jax.models.tile_vit import TileViTConfig
from vlm_jax.models.vlm import VLM, VLMConfig


def run_cross_attention(config: VLMConfig, params: PyTree, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """logits, last_hidden_state and hidden_states.N, float32; gated blocks count as layers.

    Without pictures gated blocks are left out. With them they run for all rows: without cross_attention_mask every
    position sees all tiles; a position that the mask lets see none reads all tiles of its row, unused ones too, and
    the feed-forward part of the blocks leaves it alone.

    Args:
        config: of an imported model.
        params: {"decoder", "encoder", "adapter"}.
        inputs: input_ids, and as they apply attention_mask, position_ids [B, S], pixel_values [B, I, T, 3, H, W],
            aspect_ratio_ids [B, I], aspect_ratio_mask [B, I, T], cross_attention_mask [B, S, I, T].

    Raises:
        UserError: if shapes do not agree.
    """
    text = read_text(inputs, config.decoder.embedded_tokens)
    if "pixel_values" not in inputs:
        return run_decoder(config.decoder, params["decoder"], text, precision=config.precision)
    assert isinstance(config.encoder, TileViTConfig)
    tiles = read_tiles(config.encoder, inputs)
    rows, length = text.tokens.shape
    if len(tiles.grids) != rows:
        raise UserError(
            f"inputs: pixel_values has {len(tiles.grids)} rows, input_ids {rows}; give each row its pictures, and "
            "those with fewer of them aspect_ratio_ids 0"
        )
    seen = _seen(inputs.get("cross_attention_mask"), (rows, length, *tiles.used.shape[1:]))
    features = encode_tiles(config.encoder, params["encoder"], tiles, config.precision)
    own = {name: params[name] for name in ("decoder", "adapter")}
    states, logits = _forward(VLM(config), own, features, seen, text.tokens, text.positions, text.masks(config.decoder))
    found = {f"hidden_states.{number}": array for number, array in enumerate(states)}
    found |= {"logits": logits, "last_hidden_state": states[-1]}
    return {name: np.asarray(array, np.float32) for name, array in found.items()}


def _seen(mask: np.ndarray | None, shape: tuple[int, ...]) -> Bool[np.ndarray, "B S I*T"]:
    """Tiles that each position may see."""
    seen = np.ones(shape, bool) if mask is None else np.asarray(mask) == 1
    if seen.shape != shape:
        raise UserError(
            f"inputs: cross_attention_mask is {list(seen.shape)}; give [rows, length, pictures, tiles], {list(shape)}"
        )
    return seen.reshape(*shape[:2], -1)


@functools.partial(jax.jit, static_argnums=0)
def _forward(
    model: VLM,
    params: PyTree,
    features: Float[Array, "B I T P D"],
    seen: Bool[Array, "B S I*T"],
    tokens: Array,
    positions: Array,
    masks: Masks,
) -> tuple[tuple[Array, ...], Array]:
    def forward(vlm: VLM) -> tuple[tuple[Array, ...], Array]:
        rows = len(features)
        remembered = vlm.adapter.remember(features.reshape(-1, *features.shape[3:]))
        sees = seen.any(-1)
        memory = Memory(Sight(seen | ~sees[:, :, None], sees), remembered.reshape(rows, -1, remembered.shape[-1]))
        x = vlm.decoder.embed(tokens)
        states = vlm.decoder.hidden_states(x, positions, masks, vlm.adapter.inserted(memory))
        return states, vlm.decoder.unembed(states[-1])

    result: Any = model.apply({"params": params}, method=forward)
    return result
