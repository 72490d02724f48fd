"""Text inputs as transformers takes them: ids, padding on either side, positions; and what each position may see."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from vlm_jax.errors import UserError
from vlm_jax.models.decoder import Decoder, DecoderConfig, Masks
from vlm_jax.models.layers import Precision

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TextInputs:
    """Rows of token ids."""

    tokens: Int[np.ndarray, "B S"]
    positions: Int[np.ndarray, "B S"]
    valid: Bool[np.ndarray, "B S"]
    """False = padding, which nobody sees."""

    def masks(self, config: DecoderConfig, together: Bool[np.ndarray, "B S S"] | None = None) -> Masks:
        """For each block of the pattern, True where query s may see key t.

        A window counts places of the row, as transformers does; positions are only for rotation.

        Args:
            config: its pattern has the windows.
            together: pairs that see each other whatever their order and distance.
        """
        place = np.arange(self.tokens.shape[1])
        back = place[:, None] - place[None, :]
        made = []
        for block in config.pattern:
            sees = (back >= 0) & ((back < block.window) | (block.window == 0))
            pairs = np.broadcast_to(sees, (len(self.tokens), *sees.shape))
            pairs = pairs if together is None else pairs | together
            made.append(jnp.asarray(pairs & self.valid[:, None, :]))
        return tuple(made)


def read_text(inputs: Mapping[str, np.ndarray], vocabulary_size: int, first_position: int = 0) -> TextInputs:
    """`input_ids`, and where they are given `attention_mask` and `position_ids`, else all real and 0, 1, 2, …

    As in transformers' forward pass, positions count padding too, unless they are given.

    Raises:
        UserError: if shapes do not agree or an id is not embedded.
    """
    if "input_ids" not in inputs:
        raise UserError(f"inputs: input_ids is missing; there are {', '.join(inputs) or 'none'}")
    tokens = np.asarray(inputs["input_ids"])
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise UserError(f"inputs: input_ids is {tokens.dtype} {list(tokens.shape)}; give whole numbers [rows, length]")
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocabulary_size:
        raise UserError(
            f"inputs: input_ids go from {tokens.min()} to {tokens.max()}; the model embeds 0 to {vocabulary_size - 1}"
        )
    valid = np.asarray(inputs.get("attention_mask", np.ones_like(tokens)))
    positions = np.asarray(inputs.get("position_ids", first_position + np.arange(tokens.shape[1])[None]))
    if valid.shape != tokens.shape:
        raise UserError(
            f"inputs: attention_mask is {list(valid.shape)}, input_ids {list(tokens.shape)}; make them equal"
        )
    if positions.ndim != 2 or positions.shape[1] != tokens.shape[1] or positions.shape[0] not in (1, len(tokens)):
        raise UserError(
            f"inputs: position_ids is {list(positions.shape)}, input_ids {list(tokens.shape)}; make them equal"
        )
    positions = np.broadcast_to(positions, tokens.shape)
    return TextInputs(tokens.astype(np.int32), positions.astype(np.int32), valid != 0)


def run_decoder(
    config: DecoderConfig,
    params: PyTree,
    text: TextInputs,
    embeddings: Float[Array, "B S D"] | None = None,
    together: Bool[np.ndarray, "B S S"] | None = None,
    precision: Precision | None = None,
) -> Arrays:
    """logits, last_hidden_state and hidden_states.0 … of a decoder, float32.

    Args:
        config, params: of the decoder.
        text: what it reads.
        embeddings: what enters the first layer in place of the tokens' own embeddings.
        together: see `TextInputs.masks`.
        precision: number formats; by default all in float32.
    """
    decoder = Decoder(config, precision or Precision())
    hidden, logits = _decode(decoder, params, text.tokens, embeddings, text.positions, text.masks(config, together))
    states = {f"hidden_states.{number}": array for number, array in enumerate(hidden)}
    found = {"logits": logits, "last_hidden_state": hidden[-1], **states}
    return {name: np.asarray(array, np.float32) for name, array in found.items()}


@functools.partial(jax.jit, static_argnums=0)
def _decode(
    decoder: Decoder, params: PyTree, tokens: Array, embeddings: Array | None, positions: Array, masks: Masks
) -> tuple[tuple[Array, ...], Array]:
    def forward(decoder: Decoder) -> tuple[tuple[Array, ...], Array]:
        x = decoder.embed(tokens) if embeddings is None else embeddings
        hidden = decoder.hidden_states(x, positions, masks)
        return hidden, decoder.unembed(hidden[-1])

    result: Any = decoder.apply({"params": params}, method=forward)
    return result


@functools.partial(jax.jit, static_argnums=0)
def embed_tokens(decoder: Decoder, params: PyTree, tokens: Array) -> Float[Array, "B S D"]:
    """Embeddings of token ids."""
    result: Any = decoder.apply({"params": params}, tokens, method="embed")
    return result
