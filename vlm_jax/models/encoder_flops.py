"""Matrix products of the image encoders, for one image slot, written into a ledger."""

from vlm_jax.models.convnext import ConvNeXtConfig
from vlm_jax.models.encoders import EncoderConfig
from vlm_jax.models.ledger import Depends, Ledger
from vlm_jax.models.tile_vit import TileViTConfig
from vlm_jax.models.vit import ConvStem, ViTConfig


def count_encoder(ledger: Ledger, config: EncoderConfig) -> Depends:
    """Writes down an encoder that reads one image slot; gives what its features depend on."""
    if isinstance(config, ConvNeXtConfig):
        return _count_convnext(ledger, config)
    if isinstance(config, TileViTConfig):
        return _count_tile_vit(ledger, config)
    return _count_vit(ledger, config)


def _count_vit(ledger: Ledger, c: ViTConfig) -> Depends:
    tokens = c.patches + c.extra_tokens

    def layer(x: Depends) -> Depends:
        y = _count_attention(ledger, tokens, tokens, c.width, ledger.learned("attention_norm", x))
        x |= ledger.learned("attention_scale", y)
        y = ledger.mlp("mlp", tokens, c.width, c.mlp_width, ledger.learned("mlp_norm", x), gated=c.gated_mlp)
        return x | ledger.learned("mlp_scale", y)

    x = _count_stem(ledger, c)
    for name in ("positions", "class_token", "class_position", "registers", "stem_norm"):
        x = ledger.learned(name, x)
    with ledger.within("layers"):
        x = ledger.layers(c.layers, layer, x)
    return ledger.learned("norm", x)


def _count_stem(ledger: Ledger, c: ViTConfig) -> Depends:
    with ledger.within("stem"):
        if not isinstance(c.stem, ConvStem):
            return ledger.linear("patch", c.patches * c.stem.patch**2 * 3 * c.width, False)
        x, inputs, pixels = False, 3, c.image_size[0] * c.image_size[1]
        for i, (outputs, stride) in enumerate(zip(c.stem.channels, c.stem.strides, strict=True)):
            pixels //= stride**2
            x = ledger.linear(f"conv_{i}", pixels * 9 * inputs * outputs, x)
            inputs = outputs
        return ledger.linear("out", pixels * inputs * c.width, x)


def _count_attention(ledger: Ledger, tokens: int, seen: int, width: int, x: Depends) -> Depends:
    """Self-attention of `tokens`, each of which attends to `seen`."""
    queries, keys, values = (ledger.linear(name, tokens * width**2, x) for name in ("query", "key", "value"))
    y = ledger.attention(tokens * seen, width, queries, keys, values)
    return ledger.linear("out", tokens * width**2, y)


def _count_tile_vit(ledger: Ledger, c: TileViTConfig) -> Depends:
    """Padding counts, since real tokens see it; each token attends to those of all tiles of its picture."""
    tokens = c.tile_tokens

    def layer(x: Depends) -> Depends:
        y = _count_attention(ledger, tokens, c.tiles * tokens, c.hidden, ledger.learned("attention_norm", x))
        x |= ledger.learned("attention_gate", y)
        y = ledger.mlp("mlp", tokens, c.hidden, c.mlp_width, ledger.learned("mlp_norm", x))
        return x | ledger.learned("mlp_gate", y)

    def layers(name: str, count: int, x: Depends) -> Depends:
        with ledger.within(name):
            return ledger.layers(count, layer, x)

    x = ledger.linear("patch", c.patches * c.patch**2 * 3 * c.hidden, False)
    for name in ("inner_tile_embedding", "inner_tile_gate", "class_token", "positions", "positions_gate"):
        x = ledger.learned(name, x)
    x = ledger.learned("embedding_norm", ledger.learned("tile_positions", x))
    kept = False
    for number, length in enumerate(c.local_runs):
        x = layers(f"local_{number}", length, x)
        kept |= x
    for name in ("local_norm", "outer_tile_embedding", "outer_tile_gate"):
        x = ledger.learned(name, x)
    return kept | layers("global", c.global_layers, x)


def _count_convnext(ledger: Ledger, c: ConvNeXtConfig) -> Depends:
    """Stem and reductions are linear maps of squares; a block is 7 x 7 depthwise and two products with 4 * width²."""
    x, inputs, side = False, 3, c.patch
    for i, (depth, width) in enumerate(zip(c.depths, c.widths, strict=True)):
        points = (c.image_size[0] // (c.patch * 2**i)) * (c.image_size[1] // (c.patch * 2**i))

        def block(x: Depends, points: int = points, width: int = width) -> Depends:
            y = ledger.linear("depthwise/filters", points * 49 * width, x)
            y = ledger.learned("norm", ledger.learned("depthwise", y))
            return x | ledger.learned("scale", ledger.mlp("mlp", points, width, 4 * width, y))

        x = ledger.learned(f"reduce_{i}_norm", x)
        x = ledger.linear(f"reduce_{i}/patch" if i else "stem/patch", points * side**2 * inputs * width, x)
        x = ledger.learned("stem_norm", x) if not i else x
        with ledger.within(f"stage_{i}"):
            x = ledger.layers(depth, block, x)
        inputs, side = width, 2
    return x
