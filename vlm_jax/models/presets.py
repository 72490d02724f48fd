"""Named sizes. Each is a plain config that an experiment may take whole or `dataclasses.replace` in part."""

import dataclasses
import math
from collections.abc import Callable

from vlm_jax.models.adapters import AdapterConfig
from vlm_jax.models.adapters.cross_attention import CrossAttentionConfig
from vlm_jax.models.adapters.mlp import MLPAdapterConfig
from vlm_jax.models.adapters.pooling import AveragePoolingConfig
from vlm_jax.models.adapters.qformer import QFormerAdapterConfig
from vlm_jax.models.adapters.resampler import ResamplerConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.layers import Precision
from vlm_jax.models.qformer import QFormerConfig
from vlm_jax.models.vit import ConvStem, PatchStem, ViTConfig
from vlm_jax.models.vlm import VLMConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_BFLOAT16 = Precision(compute="bfloat16")


def vlm_mu(vocabulary_size: int = 384) -> VLMConfig:
    """A model for tests: every part is there, nothing is large."""
    return VLMConfig(
        decoder=DecoderConfig(
            vocabulary_size, width=32, layers=2, heads=4, key_value_heads=2, head_size=8, mlp_width=64
        ),
        encoder=ViTConfig((32, 32), ConvStem((8, 16), (2, 4)), width=24, layers=1, heads=2, mlp_width=48),
        adapter=MLPAdapterConfig(layers=2, pixel_shuffle=2),
    )


def vlm_200m(vocabulary_size: int = 49_152) -> VLMConfig:
    """0.2B: a ViT-S/14 at 224 pixels and a decoder of SmolLM2-135M's shape."""
    return VLMConfig(
        decoder=DecoderConfig(
            vocabulary_size,
            width=576,
            layers=30,
            heads=9,
            key_value_heads=3,
            head_size=64,
            mlp_width=1536,
            rope_base=1e5,
        ),
        encoder=ViTConfig((224, 224), PatchStem(14), width=384, layers=12, heads=6, mlp_width=1536),
        adapter=MLPAdapterConfig(layers=2, pixel_shuffle=2),
        precision=_BFLOAT16,
    )


def vlm_2b(vocabulary_size: int = 49_152) -> VLMConfig:
    """2B: SigLIP-So400m/14 at 224 pixels and a decoder of SmolLM2-1.7B's shape."""
    return VLMConfig(
        decoder=DecoderConfig(
            vocabulary_size,
            width=2048,
            layers=24,
            heads=32,
            key_value_heads=32,
            head_size=64,
            mlp_width=8192,
            rope_base=130_000.0,
            remat="save_weight_dots",
        ),
        encoder=ViTConfig((224, 224), PatchStem(14), width=1152, layers=27, heads=16, mlp_width=4304, remat="full"),
        adapter=MLPAdapterConfig(layers=2),
        precision=_BFLOAT16,
    )


def vlm_8b(vocabulary_size: int = 128_256) -> VLMConfig:
    """8B: SigLIP-So400m/14 at 224 pixels and a decoder of Llama-3.1-8B's shape."""
    return dataclasses.replace(vlm_2b(), decoder=llama3_8b(vocabulary_size))


def llama3_8b(vocabulary_size: int = 128_256) -> DecoderConfig:
    """The decoder Llama 3 8B (Llama Team 2024, table 3)."""
    return DecoderConfig(
        vocabulary_size,
        width=4096,
        layers=32,
        heads=32,
        key_value_heads=8,
        head_size=128,
        mlp_width=14_336,
        rope_base=500_000.0,
        tied_embeddings=False,
        remat="full",
    )


def llama3_70b(vocabulary_size: int = 128_256) -> DecoderConfig:
    """The decoder Llama 3 70B (Llama Team 2024, table 3)."""
    return dataclasses.replace(llama3_8b(vocabulary_size), width=8192, layers=80, heads=64, mlp_width=28_672)


def dinov2_small(image_size: tuple[int, int] = (224, 224)) -> ViTConfig:
    """The encoder DINOv2 ViT-S/14 (Oquab et al. 2024): trained, and its positions learned, at 518 x 518 pixels.

    Sizes are those of the published checkpoint `dinov2_vits14` (hubconf and config.json of facebook/dinov2-small);
    pictures are normalised with ImageNet's mean and standard deviation.
    """
    return ViTConfig(
        image_size,
        PatchStem(14),
        width=384,
        layers=12,
        heads=6,
        mlp_width=1536,
        norm_epsilon=1e-6,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        class_token=True,
        layer_scale=True,
        activation="gelu",
        position_grid=(37, 37),
        position_resampling="bicubic",
    )


def smollm2_135m(vocabulary_size: int = 49_152) -> DecoderConfig:
    """The decoder of SmolLM2-135M (Allal et al. 2025).

    Args:
        vocabulary_size: rows of the embedding table; the published 49,152, or more for added tokens.
    """
    return DecoderConfig(
        vocabulary_size,
        width=576,
        layers=30,
        heads=9,
        key_value_heads=3,
        head_size=64,
        mlp_width=1536,
        context=8192,
        rope_base=1e5,
    )


PRESETS = {"mu": vlm_mu, "0.2b": vlm_200m, "2b": vlm_2b, "8b": vlm_8b}


def _mlp(model: VLMConfig, tokens: int) -> AdapterConfig:
    assert model.encoder is not None
    side = math.isqrt(max(1, model.encoder.features.patches // tokens))
    return MLPAdapterConfig(layers=2, pixel_shuffle=side)


def _average_pooling(model: VLMConfig, tokens: int) -> AdapterConfig:
    rows = max(rows for rows in range(1, math.isqrt(tokens) + 1) if tokens % rows == 0)
    return AveragePoolingConfig(rows, tokens // rows)


def _qformer(model: VLMConfig, tokens: int) -> AdapterConfig:
    decoder = model.decoder
    width = min(QFormerConfig().width, decoder.width)
    heads = math.gcd(width, max(1, width // decoder.head_size))
    layers = min(QFormerConfig().layers, decoder.layers)
    return QFormerAdapterConfig(tokens, QFormerConfig(width, layers, heads, mlp_width=4 * width))


def _resampler(model: VLMConfig, tokens: int) -> AdapterConfig:
    assert model.encoder is not None
    size = model.decoder.head_size
    heads = 2 * max(1, model.encoder.features.width // (2 * size))
    return ResamplerConfig(queries=tokens, layers=min(6, model.decoder.layers), heads=heads, head_size=size)


def _idefics2_resampler(model: VLMConfig, tokens: int) -> AdapterConfig:
    c = model.decoder
    layers = min(3, c.layers)
    return ResamplerConfig("idefics2", tokens, layers, c.heads, c.key_value_heads, c.head_size)


def _blocks(model: VLMConfig) -> int:
    """Layers from one block of cross-attention to the next: about an eighth of the decoder's, whole patterns."""
    pattern = len(model.decoder.pattern)
    return pattern * max(1, model.decoder.repeats // 8)


def _cross_attention(model: VLMConfig, tokens: int) -> AdapterConfig:
    return CrossAttentionConfig(every=_blocks(model))


def _resampled_cross_attention(model: VLMConfig, tokens: int) -> AdapterConfig:
    memory = _resampler(model, tokens)
    assert isinstance(memory, ResamplerConfig)
    return CrossAttentionConfig(every=_blocks(model), memory=memory)


def _llama_cross_attention(model: VLMConfig, tokens: int) -> AdapterConfig:
    return CrossAttentionConfig("llama", every=_blocks(model))


def _hybrid(model: VLMConfig, tokens: int) -> AdapterConfig:
    prompt = _mlp(model, tokens)
    assert isinstance(prompt, MLPAdapterConfig)
    return CrossAttentionConfig(every=_blocks(model), visible="all", prompt=prompt, prompt_slots="thumbnail")


ADAPTERS: dict[str, Callable[[VLMConfig, int], AdapterConfig]] = {
    "mlp": _mlp,
    "average_pooling": _average_pooling,
    "qformer": _qformer,
    "resampler": _resampler,
    "idefics2_resampler": _idefics2_resampler,
    "cross_attention": _cross_attention,
    "resampled_cross_attention": _resampled_cross_attention,
    "llama_cross_attention": _llama_cross_attention,
    "hybrid": _hybrid,
}
"""Adapters in the sizes of a model: (model, tokens) -> config, of which those that can choose give `tokens` visual
tokens an image slot."""


def with_adapter(model: VLMConfig, name: str, tokens: int = 0) -> VLMConfig:
    """The same encoder and decoder, joined by another adapter.

    Args:
        model: with an encoder.
        name: of `ADAPTERS`.
        tokens: visual tokens an image slot, for those that can choose; 0 = as many as `model` has.
    """
    return dataclasses.replace(model, adapter=ADAPTERS[name](model, tokens or model.prompt_tokens))
