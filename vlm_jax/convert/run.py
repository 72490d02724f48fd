"""Any imported model on the inputs that transformers takes, with the outputs that it gives."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import PyTree

from vlm_jax.convert.run_cross import run_cross_attention
from vlm_jax.convert.run_images import run_encoder
from vlm_jax.convert.run_qformer import INSTRUCTION_INPUTS, QFORMER_INPUTS, run_qformer
from vlm_jax.convert.run_text import Arrays, read_text, run_decoder
from vlm_jax.convert.run_tiles import TILE_INPUTS, run_tile_encoder
from vlm_jax.convert.run_vlm import run_vlm
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import ModelConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.qformer import QFormerConfig
from vlm_jax.models.tile_vit import TileViTConfig
from vlm_jax.models.vlm import VLMConfig

_TEXT = {"input_ids", "attention_mask", "position_ids"}
_VISION = {"pixel_values"}
_WHOLE = _TEXT | _VISION | {"token_type_ids", "pixel_attention_mask", "image_sizes"} | INSTRUCTION_INPUTS


def run_hf_inputs(config: ModelConfig, params: PyTree, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """One forward pass with names, layouts and conventions of transformers.

    Args:
        config, params: as `load_hf` gives them.
        inputs: of a decoder input_ids [B, S], attention_mask [B, S] (0 = padding, on either side) and position_ids
            [B, S]; of an encoder pixel_values [N, 3, H, W]; of a VLM both, and token_type_ids; of a Q-Former and of
            InstructBLIP what `run_qformer` says.

    Returns:
        float32 arrays: logits [B, S, V] and last_hidden_state, or of an encoder last_hidden_state and pooler_output;
        and hidden_states.N. What stands at padded positions means nothing.

    Raises:
        UserError: if an input is missing, unknown or of another shape.
    """
    if isinstance(config, QFormerConfig):
        _check_names(inputs, QFORMER_INPUTS)
        return run_qformer(config, params, inputs)
    if isinstance(config, TileViTConfig):
        _check_names(inputs, TILE_INPUTS)
        return run_tile_encoder(config, params, inputs)
    if isinstance(config, VLMConfig) and isinstance(config.encoder, TileViTConfig):
        _check_names(inputs, _TEXT | TILE_INPUTS | {"cross_attention_mask"})
        return run_cross_attention(config, params, inputs)
    known = _WHOLE if isinstance(config, VLMConfig) else _TEXT if isinstance(config, DecoderConfig) else _VISION
    _check_names(inputs, known)
    if isinstance(config, VLMConfig):
        return run_vlm(config, params, inputs)
    if isinstance(config, DecoderConfig):
        return run_decoder(config, params, read_text(inputs, config.vocabulary_size))
    return run_encoder(config, params, inputs)


def _check_names(inputs: Mapping[str, np.ndarray], known: set[str]) -> None:
    if unknown := sorted(set(inputs) - known):
        raise UserError(f"inputs: {', '.join(unknown)} cannot be given; known are {', '.join(sorted(known))}")
