"""Any model by its config, and its parameters before they exist: names, shapes and logical axes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from vlm_jax.batch import Batch
from vlm_jax.models.decoder import Decoder, DecoderConfig
from vlm_jax.models.encoders import Encoder, EncoderConfig, build_encoder, run_encoder, slots_together
from vlm_jax.models.layers import Precision
from vlm_jax.models.qformer import QFormer, QFormerConfig
from vlm_jax.models.vlm import VLM, VLMConfig

ModelConfig = VLMConfig | DecoderConfig | EncoderConfig | QFormerConfig
"""A whole model, or a part of one by itself."""

Model = VLM | Decoder | Encoder | QFormer


def build_model(config: ModelConfig, precision: Precision | None = None) -> Model:
    """The module of a config.

    Args:
        config: of a whole model or of a part.
        precision: number formats of a part; a VLM's config has its own.
    """
    precision = precision or Precision()
    if isinstance(config, VLMConfig):
        return VLM(config)
    if isinstance(config, DecoderConfig):
        return Decoder(config, precision)
    if isinstance(config, QFormerConfig):
        if not config.features_width:
            raise ValueError("QFormerConfig: features_width is 0; a Q-Former by itself must say how wide they are")
        return QFormer(config, precision)
    return build_encoder(config, precision)


def initialise(model: Model, key: jax.Array) -> dict[str, Any]:
    """Draws all parameters, boxed with their logical axes; meant to be traced by `jax.jit` or `jax.eval_shape`."""
    if isinstance(model, VLM):
        config = model.config
        slots = 0 if config.encoder is None else slots_together(config.encoder)
        spec = Batch.spec(
            1,
            2 + config.prompt_tokens,
            images=slots,
            image_size=config.image_size,
            in_sequence=config.prompt_tokens > 0,
            pictures=config.pictures,
        )
        return model.init(key, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), spec))["params"]
    if isinstance(model, Decoder):
        return model.init(key, jnp.zeros((1, 2), jnp.int32), method=_decode)["params"]
    if isinstance(model, QFormer):
        return model.init(key, method="all_parts")["params"]
    slots = slots_together(model.config)
    pixels, index = jnp.zeros((slots, *model.config.image_size, 3)), jnp.zeros((slots, 3), jnp.int32)
    return model.init(key, pixels, index, method=run_encoder)["params"]


def _decode(decoder: Decoder, tokens: jax.Array) -> jax.Array:
    masks = (jnp.ones((1, 2, 2), bool),) * len(decoder.config.pattern)
    return decoder.unembed(decoder(decoder.embed(tokens), tokens, masks)[0])


@functools.lru_cache(maxsize=8)
def boxed_params(model: Model) -> PyTree:
    """Abstract parameters with their logical axes, without memory; traced once for a model, so change nothing in it."""
    return jax.eval_shape(lambda: initialise(model, jax.random.key(0)))
