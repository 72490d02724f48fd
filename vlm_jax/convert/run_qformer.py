"""Q-Formers on inputs as transformers takes them: by themselves, and inside InstructBLIP with an instruction."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from vlm_jax.convert.run_text import Arrays
from vlm_jax.errors import UserError
from vlm_jax.models.adapters import QFormerAdapterConfig
from vlm_jax.models.layers import Precision, dense
from vlm_jax.models.qformer import Inputs, QFormer, QFormerConfig
from vlm_jax.models.vlm import VLM, VLMConfig

QFORMER_INPUTS = {
    "query_embeds",
    "query_length",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "input_ids",
    "attention_mask",
    "position_ids",
}

INSTRUCTION_INPUTS = {"qformer_input_ids", "qformer_attention_mask"}


def run_qformer(config: QFormerConfig, params: PyTree, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """last_hidden_state of queries and text, pooler_output (the first of them) and hidden_states.N, float32.

    Args:
        config, params: of a Q-Former by itself.
        inputs: query_embeds [N, Q, W] and encoder_hidden_states [N, P, D], with encoder_attention_mask [N, P] and
            attention_mask [N, all positions] (0 = padding); where it embeds text, input_ids [N, T] and position_ids;
            where text comes embedded behind the queries, query_length, how many positions are queries.

    Raises:
        UserError: if an input is missing or of another shape.
    """
    given = {name: np.asarray(value) for name, value in inputs.items()}
    text = given.get("input_ids")
    if text is not None and not config.text_vocabulary:
        raise UserError("inputs: input_ids are given, but this Q-Former embeds no text; leave them out")
    if "query_embeds" not in given and text is None:
        raise UserError(f"inputs: query_embeds is missing; there are {', '.join(inputs) or 'none'}")
    rows = len(given["query_embeds"] if text is None else text)
    embeddings = given.get("query_embeds", np.zeros((rows, 0, config.width)))
    _shaped("query_embeds", embeddings, (rows, None, config.width))
    queries = int(given["query_length"]) if "query_length" in given else embeddings.shape[1]
    if not 0 <= queries <= embeddings.shape[1]:
        raise UserError(f"inputs: query_length is {queries}, but query_embeds has {embeddings.shape[1]} positions")
    length = embeddings.shape[1] + (0 if text is None else text.shape[-1])
    if length > queries and not config.text:
        raise UserError("inputs: there is text behind the queries, but this Q-Former has no layers for it")
    if text is not None:
        _check_text(config, text, given.get("position_ids"))
    features = given.get("encoder_hidden_states")
    if queries and features is None:
        raise UserError("inputs: encoder_hidden_states is missing, which queries look at")
    if features is not None:
        _shaped("encoder_hidden_states", features, (rows, None, config.features_width))
    read = Inputs(
        jnp.asarray(embeddings, jnp.float32),
        queries,
        None if features is None else jnp.asarray(features, jnp.float32),
        None if text is None else jnp.asarray(text, jnp.int32),
        jnp.asarray(given["position_ids"]) if "position_ids" in given else None,
        _mask(given, "attention_mask", (rows, length)),
        None if features is None else _mask(given, "encoder_attention_mask", features.shape[:2]),
    )
    states = _states(QFormer(config, Precision()), params, read)
    found = {f"hidden_states.{number}": array for number, array in enumerate(states)}
    found |= {"last_hidden_state": states[-1], "pooler_output": states[-1][:, 0]}
    return {name: np.asarray(array, np.float32) for name, array in found.items()}


def instructed_tokens(
    config: VLMConfig, params: PyTree, pixels: Float[np.ndarray, "N H W 3"], inputs: Mapping[str, np.ndarray]
) -> Float[Array, "N T W"]:
    """Visual tokens of pictures, each read with its instruction.

    Args:
        config, params: of an InstructBLIP.
        pixels: normalised.
        inputs: qformer_input_ids [N, T], of any length, and qformer_attention_mask [N, T] (0 = padding).

    Raises:
        UserError: if there is no instruction, or not one for every picture.
    """
    adapter, encoder = config.adapter, config.encoder
    assert isinstance(adapter, QFormerAdapterConfig)
    assert encoder is not None
    if "qformer_input_ids" not in inputs:
        raise UserError("inputs: qformer_input_ids is missing, the instruction that queries read with a picture")
    text = np.asarray(inputs["qformer_input_ids"])
    if text.ndim != 2 or len(text) != len(pixels):
        raise UserError(f"inputs: qformer_input_ids is {list(text.shape)} for {len(pixels)} pictures; give a row each")
    fitted = dataclasses.replace(adapter.qformer, features_width=encoder.width)
    _check_text(fitted, text, None)
    mask = _mask(inputs, "qformer_attention_mask", text.shape)
    seen = jnp.ones(text.shape, bool) if mask is None else mask
    return _instructed(VLM(config), fitted, params, jnp.asarray(pixels), jnp.asarray(text, jnp.int32), seen)


@functools.partial(jax.jit, static_argnums=0)
def _states(qformer: QFormer, params: PyTree, inputs: Inputs) -> tuple[Array, ...]:
    result: Any = qformer.apply({"params": params}, inputs, method="states")
    return result


@functools.partial(jax.jit, static_argnums=(0, 1))
def _instructed(
    model: VLM, config: QFormerConfig, params: PyTree, pixels: Array, text: Int[Array, "N T"], seen: Bool[Array, "N T"]
) -> Array:
    precision, own = model.config.precision, params["adapter"]
    features: Any = model.apply({"params": params}, method=lambda vlm: vlm.encoder(pixels))
    count = own["queries"].shape[0]
    queries = jnp.broadcast_to(own["queries"], (len(text), *own["queries"].shape))
    sees = jnp.concatenate([jnp.ones((len(text), count), bool), seen], 1)
    inputs = Inputs(queries, count, features, text, sees=sees)
    y: Any = QFormer(config, precision).apply({"params": own["qformer"]}, inputs, method="states")
    width = model.config.decoder.width
    out: Any = dense(config.width, width, ("features", "embed"), precision, bias=True).apply(
        {"params": own["out"]}, y[-1][:, :count]
    )
    return out


def _check_text(config: QFormerConfig, text: np.ndarray, positions: np.ndarray | None) -> None:
    if text.ndim != 2 or not np.issubdtype(text.dtype, np.integer):
        raise UserError(f"inputs: ids of text are {text.dtype} {list(text.shape)}; give whole numbers [rows, length]")
    if text.size and not 0 <= text.min() <= text.max() < config.text_vocabulary:
        raise UserError(
            f"inputs: ids of text go from {text.min()} to {text.max()}; the Q-Former embeds 0 to "
            f"{config.text_vocabulary - 1}"
        )
    last = text.shape[1] - 1 if positions is None else int(np.max(positions, initial=0))
    if last >= config.text_length:
        raise UserError(
            f"inputs: a text goes to position {last}; the Q-Former has positions 0 to {config.text_length - 1}"
        )


def _shaped(name: str, array: np.ndarray, wanted: tuple[int | None, ...]) -> None:
    if array.ndim != len(wanted) or any(n not in (None, size) for n, size in zip(wanted, array.shape, strict=True)):
        sizes = ", ".join("any" if n is None else str(n) for n in wanted)
        raise UserError(f"inputs: {name} is {list(array.shape)}; give [{sizes}]")


def _mask(inputs: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> Bool[Array, "N S"] | None:
    if name not in inputs:
        return None
    mask = np.asarray(inputs[name])
    if mask.shape != shape:
        raise UserError(f"inputs: {name} is {list(mask.shape)}; give {list(shape)}")
    return jnp.asarray(mask != 0)
