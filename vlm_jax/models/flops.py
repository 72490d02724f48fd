"""Model FLOPs by formula: what a forward pass has to compute, whatever the compiler makes of it."""

from vlm_jax.models.convnext import ConvNeXtConfig
from vlm_jax.models.encoders import EncoderConfig
from vlm_jax.models.tile_vit import TileViTConfig
from vlm_jax.models.vit import ConvStem, ViTConfig
from vlm_jax.models.vlm import VLMConfig


def decoder_flops(config: VLMConfig, length: int, slots: int = 0) -> float:
    """Forward FLOPs of one token in a row of `length` positions and `slots` image slots, logits included.

    Two for each weight of a matrix product, and 4 * heads * head_size * length a layer for attention, as in Chowdhery
    et al. 2022 (PaLM), appendix B; a layer with a sliding window counts no more than its window. Embedding look-ups
    cost nothing, and biases and norms next to nothing. An adapter's blocks between the layers count too; their
    attention is to all of the row's image slots.
    """
    c = config.decoder
    attention = c.width * c.head_size * (2 * c.heads + 2 * c.key_value_heads)
    weights = c.layers * (attention + 3 * c.width * c.mlp_width) + c.width * c.vocabulary_size
    seen = c.repeats * sum(min(block.window or length, length) for block in c.pattern)
    own = 2.0 * weights + 4.0 * c.heads * c.head_size * seen
    if config.encoder is None or config.adapter is None:
        return own
    return own + config.adapter.token_flops(config.encoder.features, c, slots)


def encoder_flops(config: VLMConfig) -> float:
    """Forward FLOPs of one image slot: stem, blocks and adapter (the memory's keys and values too); 0 for text only."""
    if config.encoder is None or config.adapter is None:
        return 0.0
    c = config.encoder
    return _tower_flops(c) + config.adapter.slot_flops(c.features, config.decoder)


def _tower_flops(c: EncoderConfig) -> float:
    if isinstance(c, ConvNeXtConfig):
        return _convnext_flops(c)
    return _tile_vit_flops(c) if isinstance(c, TileViTConfig) else _vit_flops(c)


def _tile_vit_flops(c: TileViTConfig) -> float:
    """Padding counts, since it is computed; each token attends to those of all tiles of its picture."""
    attention = 4.0 * c.hidden * c.tiles * c.tile_tokens
    block = 2.0 * (4 * c.hidden**2 + 2 * c.hidden * c.mlp_width) + attention
    stem = 2.0 * c.patches * c.patch**2 * 3 * c.hidden
    return stem + c.tile_tokens * (c.local_layers + c.global_layers) * block


def _vit_flops(c: ViTConfig) -> float:
    tokens = c.patches + c.extra_tokens
    block = 2.0 * (4 * c.width**2 + (2 + c.gated_mlp) * c.width * c.mlp_width) + 4.0 * c.width * tokens
    return _stem_flops(c) + tokens * c.layers * block


def _convnext_flops(c: ConvNeXtConfig) -> float:
    """Stem and reductions are linear maps of squares; a block is 7 x 7 depthwise and two products with 4 * width²."""
    total, inputs, side = 0.0, 3, c.patch
    for i, (depth, width) in enumerate(zip(c.depths, c.widths, strict=True)):
        points = (c.image_size[0] // (c.patch * 2**i)) * (c.image_size[1] // (c.patch * 2**i))
        total += 2.0 * points * (side**2 * inputs * width + depth * (49 * width + 8 * width**2))
        inputs, side = width, 2
    return total


def _stem_flops(c: ViTConfig) -> float:
    if not isinstance(c.stem, ConvStem):
        return 2.0 * c.patches * c.stem.patch**2 * 3 * c.width
    total, inputs, pixels = 0.0, 3, c.image_size[0] * c.image_size[1]
    for outputs, stride in zip(c.stem.channels, c.stem.strides, strict=True):
        pixels //= stride**2
        total += 2.0 * pixels * 9 * inputs * outputs
        inputs = outputs
    return total + 2.0 * pixels * inputs * c.width


def training_flops(config: VLMConfig, rows: int, length: int, images: int) -> float:
    """FLOPs of one training step over all positions and image slots: three times the forward pass; all of it trains."""
    return 3.0 * rows * (length * decoder_flops(config, length, images) + images * encoder_flops(config))
