"""Pre-trained parts for a model: parameters of an encoder or a decoder, checked against the model's config."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float, PyTree

from vlm_jax.checkpoints.converted import require_whole
from vlm_jax.checkpoints.reference import load_part, whole
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import ModelConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.encoders import EncoderConfig
from vlm_jax.models.qformer import QFormerConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.parallel import Layout
from vlm_jax.serialise import differences, to_plain

HOW_IT_IS_COMPUTED = ("remat", "attention_kernel", "context", "image_size")
"""Fields that may differ: they change how a part is run, or on what, and none of its parameters."""


def load_encoder(reference: str, config: EncoderConfig, dtype: str, abstract: PyTree, layout: Layout) -> dict[str, Any]:
    """The parameters of an image encoder.

    Args:
        reference: model REF of an encoder, or of a model that has one.
        config: what it must be.
        dtype: that parameters are kept in.
        abstract: the parameters' shapes and shardings.
        layout: where they go.

    Raises:
        UserError: if there is none, or it differs from the config; the differences are listed.
    """
    found, params = _part(reference, "encoder", dtype, layout)
    return _fitted_encoder(reference, found, params, config, dtype, abstract)


def load_decoder(reference: str, config: DecoderConfig, dtype: str, abstract: PyTree, layout: Layout) -> dict[str, Any]:
    """The parameters of a decoder; like `load_encoder`.

    Its vocabulary may be smaller than the config's: rows are added to the embedding table (and to the head), each the
    mean of the old ones, so that an added token is at first a middling one (Hewitt 2021, "Initializing new word
    embeddings for pretrained language models").
    """
    found, params = _part(reference, "decoder", dtype, layout)
    return _fitted_decoder(reference, found, params, config, dtype, abstract)


def load_whole(reference: str, config: VLMConfig, abstract: PyTree, layout: Layout) -> dict[str, Any]:
    """All parameters of a model from another format, checked part by part; like `load_encoder` and `load_decoder`."""
    dtype = config.precision.parameters
    loaded = load_part(reference, dtype=dtype, layout=layout, tokenizer=False)
    model, params = whole(loaded.config, loaded.params)
    found = require_whole(model, reference)
    if (found.encoder is None) != (config.encoder is None):
        raise UserError(f"{reference}: only one of it and the experiment's model has an image encoder; change model")
    decoder = params["decoder"], config.decoder, dtype, abstract["decoder"]
    placed = {"decoder": _fitted_decoder(reference, found.decoder, *decoder)}
    if found.encoder is not None and config.encoder is not None:
        _compare(reference, "adapter", to_plain(found.adapter), to_plain(config.adapter))
        placed["adapter"] = _placed(params["adapter"], dtype, abstract["adapter"])
        encoder = params["encoder"], config.encoder, dtype, abstract["encoder"]
        placed["encoder"] = _fitted_encoder(reference, found.encoder, *encoder)
    return placed


def _fitted_encoder(
    reference: str, found: ModelConfig, params: PyTree, config: EncoderConfig, dtype: str, abstract: PyTree
) -> dict[str, Any]:
    _compare(reference, "encoder", _as_computed(found), _as_computed(config))
    return _placed(params, dtype, abstract)


def _fitted_decoder(
    reference: str, found: ModelConfig, params: PyTree, config: DecoderConfig, dtype: str, abstract: PyTree
) -> dict[str, Any]:
    assert isinstance(found, DecoderConfig)
    if found.vocabulary_size > config.vocabulary_size:
        raise UserError(
            f"{reference}: it embeds {found.vocabulary_size} tokens, the experiment's decoder only "
            f"{config.vocabulary_size}; raise model.decoder.vocabulary-size"
        )
    same = found
    if not found.input_only_tokens:
        vocabulary, read = config.vocabulary_size, config.input_only_tokens
        same = dataclasses.replace(found, vocabulary_size=vocabulary, input_only_tokens=read)
    _compare(reference, "decoder", _as_computed(same), _as_computed(config))
    grow_to = jax.jit(grow, static_argnums=(1, 2))
    params = {**params, "embedding": grow_to(params["embedding"], config.embedded_tokens, 0)}
    if "head" in params:
        params["head"] = grow_to(params["head"], config.vocabulary_size, 1)
    return _placed(params, dtype, abstract)


def grow(table: Float[Array, "..."], size: int, axis: int) -> Float[Array, "..."]:
    """A table with entries added along an axis up to `size`, each the mean of the old ones."""
    missing = size - table.shape[axis]
    if not missing:
        return table
    mean = jnp.mean(table.astype(jnp.float32), axis, keepdims=True).astype(table.dtype)
    return jnp.concatenate([table, jnp.repeat(mean, missing, axis)], axis)


def _part(reference: str, name: str, dtype: str, layout: Layout) -> tuple[ModelConfig, dict[str, Any]]:
    """The named part of what a reference means: it itself, or the one that it has."""
    loaded = load_part(reference, dtype=dtype, layout=layout, tokenizer=False)
    config, params = loaded.config, loaded.params
    if isinstance(config, VLMConfig) and getattr(config, name) is not None:
        return getattr(config, name), params[name]
    other = isinstance(config, (VLMConfig, QFormerConfig))
    if other or isinstance(config, DecoderConfig) != (name == "decoder"):
        raise UserError(f"parts.{name}: {reference} is a {type(config).__name__}, which has no {name}; name another")
    return config, params


def _as_computed(config: ModelConfig) -> dict[str, Any]:
    """A config as plain fields, without those that change no parameter."""
    plain = to_plain(config)
    if isinstance(config, ViTConfig):
        plain["position_grid"] = list(config.position_grid or config.grid)
    return {name: value for name, value in plain.items() if name not in HOW_IT_IS_COMPUTED}


def _compare(reference: str, name: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    listed = "; ".join(f"{field} is {a} there and {b} here" for field, (a, b) in differences(found, wanted).items())
    if listed:
        raise UserError(f"{reference}: not the experiment's {name} ({listed}); change model.{name}, or the part")


def _placed(params: PyTree, dtype: str, abstract: PyTree) -> dict[str, Any]:
    """The parameters in the dtype and sharding of the model's; given up one by one where they change."""
    flat, wanted = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, abstract))
    for name, leaf in flat.items():
        if leaf.dtype != dtype or leaf.sharding != wanted[name].sharding:
            flat[name] = jax.device_put(leaf.astype(dtype), wanted[name].sharding)
    return traverse_util.unflatten_dict(flat, sep="/")
