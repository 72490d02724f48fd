"""Llama 3.2's image encoder: a ViT whose tiles of one picture attend to each other (Llama Team 2024, section 7.1).

A picture is T tiles (image slots), those it does not need black. Each tile has a class token and P - 1 patches, padded
with zeros to a multiple of 8; all tiles of a picture are one sequence. Local layers first, then gated global ones; the
features are the last layer's output, joined along the channels with what some local layers gave.

Every token sees every other, but padding does not see padding. Two tiles of 3 tokens and one of padding (.) each, the
second tile unused, so that all of it is padding:

              c a b .  . . . .
            c # # # #  # # # #
            a # # # #  # # # #
            b # # # #  # # # #
            . # # # .  . . . .

            . # # # .  . . . .
            . # # # .  . . . .
            . # # # .  . . . .
            . # # # .  . . . .

That real tokens see padding is how the published models were trained.
"""

import dataclasses
import itertools
import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.models.attention import attention
from vlm_jax.models.layers import MLP, Activation, LayerNorm, Precision, Projection, parameter
from vlm_jax.models.placement import constrain
from vlm_jax.models.rematerialisation import RematPolicy, named, remat
from vlm_jax.models.states import FeatureMap
from vlm_jax.pictures import Grid

_ALIGNMENT = 8
"""Tokens of a tile are padded to a multiple of this."""

_OUTER_EPSILON = 1e-5
"""Of the norms before and after the local layers."""


@dataclasses.dataclass(frozen=True)
class TileViTConfig:
    """Sizes of the encoder and how it wants its pictures; the defaults are those of Llama 3.2 Vision 11B and 90B."""

    image_size: tuple[int, int] = (560, 560)
    """(height, width) in pixels of a tile; positions are learned for it."""
    patch: int = 14
    """Side of a patch, in pixels."""
    grids: tuple[Grid, ...] = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))
    """(rows, columns) of tiles that a picture may be cut into. Each has embeddings of its own, in this order; those
    ahead of them are for grids that are not among these."""
    tiles: int = 4
    """T, tiles that every picture takes."""
    hidden: int = 1280
    """Width of the layers."""
    local_layers: int = 32
    global_layers: int = 8
    heads: int = 16
    mlp_width: int = 5120
    joined: tuple[int, ...] = (3, 7, 15, 23, 30)
    """Local layers, from 0, whose outputs are part of the features."""
    activation: Activation = "gelu"
    norm_epsilon: float = 1e-5
    """Of the layers' norms."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Mean of R, G, B in 0..1, taken off on the device."""
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    remat: RematPolicy = "none"

    def __post_init__(self) -> None:
        if any(side % self.patch for side in self.image_size):
            raise ValueError(f"TileViTConfig: image_size {self.image_size} is not a multiple of patch {self.patch}")
        if self.hidden % self.heads:
            raise ValueError(f"TileViTConfig: hidden {self.hidden} does not divide by {self.heads} heads")
        if not self.grids or min(min(grid) for grid in self.grids) < 1:
            raise ValueError("TileViTConfig: grids needs at least one (rows, columns), each at least 1")
        for rows, columns in self.grids:
            if rows * columns > self.tiles:
                raise ValueError(
                    f"TileViTConfig: a grid of {rows} x {columns} has more tiles than the {self.tiles} of a picture; "
                    "raise tiles or leave it out"
                )
        if wrong := [layer for layer in self.joined if not 0 <= layer < self.local_layers]:
            raise ValueError(
                f"TileViTConfig: joined names local layer {wrong[0]}, but they go from 0 to {self.local_layers - 1}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches of a tile."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @property
    def patches(self) -> int:
        """Patches of a tile."""
        return math.prod(self.grid)

    @property
    def width(self) -> int:
        """D, channels of a feature: the last layer's and the joined ones'."""
        return self.hidden * (1 + len(self.joined))

    @property
    def features(self) -> FeatureMap:
        """What it makes of a tile: the class token is a feature too."""
        return FeatureMap(*self.grid, self.width, ahead=1)

    @property
    def tile_tokens(self) -> int:
        """Tokens of a tile with its padding."""
        return -(-self.features.count // _ALIGNMENT) * _ALIGNMENT

    @property
    def local_runs(self) -> tuple[int, ...]:
        """Local layers in runs that end where a layer's output is kept: their lengths."""
        ends = sorted({*(layer + 1 for layer in self.joined), self.local_layers})
        return tuple(end - start for start, end in itertools.pairwise([0, *ends]) if end > start)


def grid_numbers(tile_index: Int[Array, "N T 3"], config: TileViTConfig) -> Int[Array, " N"]:
    """For each picture the place of its grid in `config.grids`, from 1; 0 = it is none of them (an unused slot)."""
    same = jnp.all(tile_index[:, :1, 1:] == jnp.asarray(config.grids)[None], axis=-1)
    return jnp.where(same.any(1), 1 + jnp.argmax(same, axis=1), 0)


def tiles_in_use(tile_index: Int[Array, "N T 3"]) -> Bool[Array, "N T"]:
    """True where a slot holds a tile of its picture's grid; the first slot counts in any case."""
    place = jnp.arange(tile_index.shape[1])
    return (place < tile_index[:, :1, 1] * tile_index[:, :1, 2]) | (place == 0)


def tile_mask(used: Bool[Array, "N T"], tokens: int, padded: int) -> Bool[Array, "N L L"]:
    """Who sees whom among the tokens of a picture: all but padding and padding, as the module's docstring draws it.

    Args:
        used: `tiles_in_use`.
        tokens: of a tile.
        padded: the same with padding; L = T * padded.
    """
    real = (used[:, :, None] & (jnp.arange(padded) < tokens)).reshape(len(used), -1)
    return real[:, :, None] | real[:, None, :]


class TileBlock(nn.Module):
    """x + gate * attention(norm(x)), then x + gate * mlp(norm(x)); gates are tanh of a learned number, or absent."""

    config: TileViTConfig
    precision: Precision
    gated: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N L D"], mask: Bool[Array, "N L L"]) -> tuple[Float[Array, "N L D"], None]:
        c, precision = self.config, self.precision
        head = c.hidden // c.heads
        shape, axes = (c.hidden, c.heads, head), ("vision_embed", "vision_heads", "head_size")
        y = LayerNorm(precision, c.norm_epsilon, name="attention_norm")(x)
        q, k, v = (
            Projection("nld,dhk->nlhk", shape, axes, c.hidden, precision, name=name)(y)
            for name in ("query", "key", "value")
        )
        q, k, v = (constrain(t, ("pictures", "patches", "act_vision_heads", "head_size")) for t in (q, k, v))
        y = attention(named("query", q), named("key", k), named("value", v), mask)
        shape, axes = (c.heads, head, c.hidden), ("vision_heads", "head_size", "vision_embed")
        y = Projection("nlhk,hkd->nld", shape, axes, c.hidden, precision, name="out")(y)
        x = x + self._gate("attention_gate", named("attention_out", y))
        y = LayerNorm(precision, c.norm_epsilon, name="mlp_norm")(x)
        x = x + self._gate("mlp_gate", MLP(c.hidden, c.mlp_width, precision, c.activation, name="mlp")(y))
        return constrain(x, ("pictures", "patches", "act_embed")), None

    def _gate(self, name: str, y: Float[Array, "N L D"]) -> Float[Array, "N L D"]:
        if not self.gated:
            return y
        gate = parameter(self, name, nn.initializers.zeros, (1,), (None,), self.precision)
        return jnp.tanh(gate.astype(y.dtype)) * y


class TileViT(nn.Module):
    """Normalised tiles -> features."""

    config: TileViTConfig
    precision: Precision = Precision()

    def __call__(self, pixels: Float[Array, "N H W 3"], tile_index: Int[Array, "N 3"]) -> Float[Array, "N P D"]:
        """Encodes image slots, T in a row being one picture; slots that its grid does not need become zero first.

        Args:
            pixels: tiles of `image_size`.
            tile_index: (tile, rows, columns) of each slot, as `Batch` has them.

        Returns:
            [N, P, D] features of each slot, the class token first, then patches row by row.
        """
        c = self.config
        slots, *size = pixels.shape[:3]
        if slots % c.tiles or tuple(size) != c.image_size:
            raise ValueError(
                f"TileViT: {slots} image slots of {size[0]} x {size[1]} pixels, but a picture takes {c.tiles} slots of "
                f"{c.image_size[0]} x {c.image_size[1]}; make data.images a multiple of {c.tiles}"
            )
        tiles = tile_index.reshape(-1, c.tiles, 3)
        used = tiles_in_use(tiles)
        pictures = pixels.reshape(-1, c.tiles, *pixels.shape[1:])
        pictures = jnp.where(used[:, :, None, None, None], pictures, 0)
        features = self.encode_tiles(pictures, grid_numbers(tiles, c), used)
        return features.reshape(slots, *features.shape[2:])

    @nn.compact
    def encode_tiles(
        self, pixels: Float[Array, "N T H W 3"], grids: Int[Array, " N"], used: Bool[Array, "N T"]
    ) -> Float[Array, "N T P D"]:
        """The same with grids and unused tiles named.

        Args:
            pixels: all tiles of each picture.
            grids: `grid_numbers`.
            used: `tiles_in_use`.
        """
        c, precision = self.config, self.precision
        count, tokens = len(pixels), c.features.count
        x = LayerNorm(precision, _OUTER_EPSILON, name="embedding_norm")(self._embed(pixels, grids))
        x = jnp.pad(x, ((0, 0), (0, 0), (0, c.tile_tokens - tokens), (0, 0))).reshape(count, -1, c.hidden)
        mask = tile_mask(used, tokens, c.tile_tokens)
        kept, layer = {}, 0
        for number, length in enumerate(c.local_runs):
            x = self._layers(f"local_{number}", length, gated=False)(x, mask)[0]
            layer += length
            kept[layer - 1] = x
        x = LayerNorm(precision, _OUTER_EPSILON, name="local_norm")(x)
        x = self._for_tiles("outer_tile", x.reshape(count, c.tiles, -1, c.hidden), grids).reshape(x.shape)
        if c.global_layers:
            x = self._layers("global", c.global_layers, gated=True)(x, mask)[0]
        # Channels of the joined layers alternate: the first of each, then the second of each, …
        joined = [jnp.stack([kept[i] for i in c.joined], -1).reshape(count, x.shape[1], -1)] if c.joined else []
        x = jnp.concatenate([x, *joined], -1).reshape(count, c.tiles, c.tile_tokens, c.width)
        return constrain(x[:, :, :tokens], ("pictures", None, "patches", "act_embed"))

    def _layers(self, name: str, length: int, *, gated: bool) -> nn.Module:
        scanned = nn.scan(
            remat(TileBlock, self.config.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=length,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        module: nn.Module = scanned(self.config, self.precision, gated, name=name)
        return module

    def _embed(self, pixels: Float[Array, "N T H W 3"], grids: Int[Array, " N"]) -> Float[Array, "N T P D"]:
        """Patches, with the class token ahead of them and positions on them."""
        c, precision = self.config, self.precision
        count, p, width = len(pixels), c.patch, c.hidden
        squares = pixels.reshape(count, c.tiles, c.grid[0], p, c.grid[1], p, 3)
        map_patch = Projection(
            "nthpwqc,pqcd->nthwd",
            (p, p, 3, width),
            (None, None, None, "vision_embed"),
            p * p * 3,
            precision,
            name="patch",
        )
        x = map_patch(squares).reshape(count, c.tiles, c.patches, width)
        x = self._for_tiles("inner_tile", x, grids)
        normal = nn.initializers.normal(width**-0.5)
        token = parameter(self, "class_token", normal, (width,), ("vision_embed",), precision).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (count, c.tiles, 1, width)), x], 2)
        positions = parameter(self, "positions", normal, x.shape[2:], (None, "vision_embed"), precision)
        gate = jnp.tanh(parameter(self, "positions_gate", nn.initializers.zeros, (1,), (None,), precision))
        shape, axes = (len(c.grids) + 1, *x.shape[1:]), (None, None, None, "vision_embed")
        of_grids = parameter(self, "tile_positions", nn.initializers.normal(0.02), shape, axes, precision)
        x = x + ((1 - gate) * positions).astype(x.dtype)
        whole = constrain(of_grids.astype(x.dtype), (None,) * 4)  # before it is indexed for each picture
        return x + gate.astype(x.dtype) * whole[grids]

    def _for_tiles(self, name: str, x: Float[Array, "N T P D"], grids: Int[Array, " N"]) -> Float[Array, "N T P D"]:
        """Adds to all tokens of a tile what is learned for its place in its grid, behind a gate."""
        c, precision = self.config, self.precision
        shape, axes = (len(c.grids) + 1, c.tiles, c.hidden), (None, None, "vision_embed")
        table = parameter(self, f"{name}_embedding", nn.initializers.normal(0.02), shape, axes, precision)
        gate = parameter(self, f"{name}_gate", nn.initializers.zeros, (1,), (None,), precision)
        whole = constrain((jnp.tanh(gate) * table).astype(x.dtype), (None,) * 3)
        return x + whole[grids][:, :, None]
