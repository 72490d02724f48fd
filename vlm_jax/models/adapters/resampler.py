"""Perceiver resampler: learned latents read a picture of any number of features, and are its N tokens.

Two forms have the same attention and differ in what is round it: Flamingo's (Alayrac et al. 2022, section 3.1 and
figure 5) and Idefics 2's (Laurençon et al. 2024, "What matters when building vision-language models?", section 3.3).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.models.adapters.base import AdapterConfigBase, PromptAdapter
from vlm_jax.models.attention import attention
from vlm_jax.models.layers import (
    MLP,
    VISION_MLP,
    Activation,
    GatedMLP,
    LayerNorm,
    Precision,
    Projection,
    RMSNorm,
    dense,
    parameter,
)
from vlm_jax.models.ledger import Depends, Ledger
from vlm_jax.models.placement import constrain
from vlm_jax.models.states import FeatureMap


@dataclasses.dataclass(frozen=True)
class ResamplerConfig(AdapterConfigBase):
    """N latents of width W through `layers` of perceiver layers, whatever the encoder's grid.

    What the forms have round the attention (D is the encoder's width, E the decoder's):

                    flamingo                          idefics2
        features    as they are, W = D                gated MLP D -> projection_width -> W, W = E
        norms       layer norm                        RMS norm
        MLP         activation(x W_1) W_2             (activation(x W_gate) * (x W_up)) W_down
        at the end  norm, linear map W -> E           norm

    With a `width` other than those, features of flamingo go through a linear map D -> W first, and latents of idefics2
    through one W -> E at the end; the map at the end is there only where W is not E.
    """

    form: Literal["flamingo", "idefics2"] = "flamingo"
    queries: int = 64
    """N, the latents and so the visual tokens of an image slot."""
    layers: int = 3
    heads: int = 16
    key_value_heads: int = 0
    """Fewer than `heads` in grouped-query attention; 0 = as many."""
    head_size: int = 64
    width: int = 0
    """W, of the latents; 0 = the encoder's (flamingo), or the decoder's (idefics2)."""
    mlp_width: int = 0
    """Inside a layer's MLP; 0 = four times the width of the latents."""
    projection_width: int = 0
    """Inside the gated MLP that features of idefics2 go through; 0 = four times the width of the latents."""
    activation: Activation | None = None
    """None = that of the form: squared_relu (flamingo; Idefics 1 has relu) or silu (idefics2)."""
    projection_activation: Activation = "silu"
    """Of the gated MLP that features of idefics2 go through."""
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("queries", "layers", "heads", "head_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"ResamplerConfig: {name} is {getattr(self, name)}; it must be at least 1")
        if self.key_value_heads and self.heads % self.key_value_heads:
            raise ValueError(
                f"ResamplerConfig: {self.heads} heads do not divide by {self.key_value_heads} key_value_heads"
            )
        if self.projection_width and self.form == "flamingo":
            raise ValueError(
                "ResamplerConfig: projection_width is of the idefics2 form, but form is flamingo; leave it at 0"
            )

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.key_value_heads or self.heads

    def latent_width(self, features: FeatureMap, width: int) -> int:
        """W, where the encoder's features are these and the decoder has this width."""
        return self.width or (features.width if self.form == "flamingo" else width)

    def prompt_tokens(self, features: FeatureMap) -> int:
        """As many as there are latents; they form no grid."""
        return self.queries

    def count(self, ledger: Ledger, features: FeatureMap, width: int, x: Depends) -> Depends:
        """The features' map, the layers, and the latents' map."""
        inner, n = self.latent_width(features, width), self.queries
        context, heads = features.count + n, self.heads * self.head_size
        gated = self.form == "idefics2"
        if gated:
            hidden = self.projection_width or 4 * inner
            x = ledger.mlp("projection", features.count, features.width, hidden, x, gated=True, outputs=inner)
        elif inner != features.width:
            x = ledger.linear("projection", features.count * features.width * inner, x)

        def layer(latents: Depends) -> Depends:
            y = ledger.learned("latents_norm", latents)
            seen = y | ledger.learned("features_norm", x)
            queries = ledger.linear("query", n * inner * heads, y)
            size = context * inner * self.groups * self.head_size
            keys, values = (ledger.linear(name, size, seen) for name in ("key", "value"))
            y = ledger.attention(n * context, heads, queries, keys, values)
            latents |= ledger.linear("out", n * heads * inner, y)
            y = ledger.learned("mlp_norm", latents)
            return latents | ledger.mlp("mlp", n, inner, self.mlp_width or 4 * inner, y, gated=gated)

        latents = ledger.learned("latents")
        with ledger.within("layers"):
            latents = ledger.layers(self.layers, layer, latents)
        latents = ledger.learned("norm", latents)
        return ledger.linear("out", n * inner * width, latents) if inner != width else latents

    def build(self, features: FeatureMap, width: int, precision: Precision, separator: bool) -> "Resampler":
        """The module."""
        return Resampler(self, features, width, precision, separator)


class PerceiverLayer(nn.Module):
    """latents + attention(norm(latents) -> [norm(features); norm(latents)]), then latents + mlp(norm(latents)).

    Which latent (rows) sees what; # is seen, and p a feature of padding:

                 f f f p | a b
              a  # # # . | # #
              b  # # # . | # #
    """

    config: ResamplerConfig
    width: int
    precision: Precision

    @nn.compact
    def __call__(
        self, latents: Float[Array, "N Q W"], features: Float[Array, "N P W"], mask: Bool[Array, "N Q P+Q"] | None
    ) -> tuple[Float[Array, "N Q W"], None]:
        c, precision, width = self.config, self.precision, self.width
        norm = _norm(c, precision)

        def project(name: str, heads: int, x: Array) -> Array:
            axes = ("vision_embed", "vision_heads", "head_size")
            shape = (width, heads, c.head_size)
            y = Projection("npd,dhk->nphk", shape, axes, width, precision, name=name)(x)
            return constrain(y, ("pictures", "patches", "act_vision_heads", "head_size"))

        y = norm(name="latents_norm")(latents)
        context = jnp.concatenate([norm(name="features_norm")(features), y], 1)
        keys, values = project("key", c.groups, context), project("value", c.groups, context)
        y = attention(project("query", c.heads, y), keys, values, mask)
        shape, axes = (c.heads, c.head_size, width), ("vision_heads", "head_size", "vision_embed")
        out = Projection("nphk,hkd->npd", shape, axes, c.heads * c.head_size, precision, name="out")
        latents = latents + out(y)
        latents = latents + self._mlp()(norm(name="mlp_norm")(latents))
        return constrain(latents, ("pictures", "patches", "act_embed")), None

    def _mlp(self) -> nn.Module:
        c, hidden = self.config, self.config.mlp_width or 4 * self.width
        if c.form == "flamingo":
            return MLP(self.width, hidden, self.precision, c.activation or "squared_relu", bias=False, name="mlp")
        activation = c.activation or "silu"
        return GatedMLP(self.width, hidden, self.precision, activation=activation, axes=VISION_MLP, name="mlp")


def _norm(config: ResamplerConfig, precision: Precision) -> Callable[..., nn.Module]:
    kind: Any = LayerNorm if config.form == "flamingo" else RMSNorm

    def named(name: str) -> nn.Module:
        module: nn.Module = kind(precision, config.norm_epsilon, name=name)
        return module

    return named


class Resampler(PromptAdapter):
    """[N, P, D] features -> [N, queries, E] visual tokens.

    Latents are drawn from a normal distribution of variance 1: they are normed before they ask, and are what tells
    their outputs apart as long as the attention is even. They form no rows, so there is no separator of rows.
    """

    config: ResamplerConfig

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "N P D"],
        instructions: Int[Array, "N Q"] | None = None,
        shown: Bool[Array, "N P"] | None = None,
    ) -> Float[Array, "N T E"]:
        """Visual tokens of image slots.

        Args:
            features: the encoder's.
            instructions: not read.
            shown: False where a feature is of padding, which nothing may see; None = there is no padding.
        """
        c, precision = self.config, self.precision
        width = c.latent_width(self.features, self.width)
        x = self._inwards(features.astype(jnp.dtype(precision.compute)), width)
        init = nn.initializers.normal(1.0)
        latents = parameter(self, "latents", init, (c.queries, width), (None, "vision_embed"), precision).astype(
            x.dtype
        )
        latents = jnp.broadcast_to(latents, (len(x), c.queries, width))
        mask = None
        if shown is not None:
            mask = jnp.pad(shown, ((0, 0), (0, c.queries)), constant_values=True)
            mask = jnp.broadcast_to(mask[:, None], (len(x), c.queries, mask.shape[1]))
        scanned: Any = nn.scan(
            PerceiverLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=c.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        latents, _ = scanned(c, width, precision, name="layers")(latents, x, mask)
        latents = _norm(c, precision)(name="norm")(latents)
        if width != self.width:
            latents = dense(width, self.width, ("features", "embed"), precision, name="out")(latents)
        return latents

    def _inwards(self, features: Float[Array, "N P D"], width: int) -> Float[Array, "N P W"]:
        c, own = self.config, self.features.width
        if c.form == "idefics2":
            hidden, activation = c.projection_width or 4 * width, c.projection_activation
            project = GatedMLP(
                own,
                hidden,
                self.precision,
                activation=activation,
                outputs=width,
                axes=VISION_MLP,
                name="projection",
            )
            return project(features)
        if own != width:
            return dense(own, width, ("features", "vision_embed"), self.precision, name="projection")(features)
        return features
