"""Average pooling: the encoder's grid, averaged to a coarser one, and an MLP for each of its cells."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vlm_jax.models.adapters.base import AdapterConfigBase, PromptAdapter
from vlm_jax.models.adapters.mlp import MLPAdapter, MLPAdapterConfig
from vlm_jax.models.layers import Precision
from vlm_jax.models.ledger import Depends, Ledger
from vlm_jax.models.states import FeatureMap
from vlm_jax.pictures import Grid


@dataclasses.dataclass(frozen=True)
class AveragePoolingConfig(AdapterConfigBase):
    """rows x columns averages of the features, each through an MLP; a class token goes through the MLP unpooled."""

    rows: int = 8
    columns: int = 8
    mlp: MLPAdapterConfig = MLPAdapterConfig()
    """What maps the averages to the decoder's width; it sees them as an encoder's grid of rows x columns."""

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ValueError(
                f"AveragePoolingConfig: {self.rows} rows x {self.columns} columns; each must be at least 1"
            )

    def pooled(self, features: FeatureMap) -> FeatureMap:
        """What the MLP sees."""
        if self.rows > features.rows or self.columns > features.columns:
            raise ValueError(
                f"AveragePoolingConfig: {self.rows} rows x {self.columns} columns cannot be averages of a grid of "
                f"{features.rows} x {features.columns} features; choose fewer"
            )
        return dataclasses.replace(features, rows=self.rows, columns=self.columns)

    def prompt_tokens(self, features: FeatureMap) -> int:
        """What the MLP makes of rows x columns averages."""
        return self.mlp.prompt_tokens(self.pooled(features))

    def token_grid(self, features: FeatureMap) -> Grid:
        """What the MLP makes of rows x columns averages."""
        return self.mlp.token_grid(self.pooled(features))

    def count(self, ledger: Ledger, features: FeatureMap, width: int, x: Depends) -> Depends:
        """Averages along the columns and then along the rows, as products, and the MLP."""
        cells = self.rows * features.rows + self.rows * self.columns
        x = ledger.product(cells * features.columns * features.width, x)
        with ledger.within("mlp"):
            return self.mlp.count(ledger, self.pooled(features), width, x)

    def build(self, features: FeatureMap, width: int, precision: Precision, separator: bool) -> "AveragePooling":
        """The module."""
        return AveragePooling(self, features, width, precision, separator)


def average_pool(features: Float[Array, "N h w D"], grid: Grid) -> Float[Array, "N H W D"]:
    """Averages over a grid of (rows, columns) cells; neighbours overlap where the sides do not divide.

    Cell i of n along a side of h features is of those from floor(i h / n) to ceil((i + 1) h / n) - 1, the usual rule
    of adaptive pooling. Five to three: 0 and 1, 1 to 3, 3 and 4.
    """
    rows, columns = (_shares(old, new) for old, new in zip(features.shape[1:3], grid, strict=True))
    return jnp.einsum("Hh,Ww,nhwd->nHWd", rows.astype(features.dtype), columns.astype(features.dtype), features)


def _shares(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """How much each old point counts in each new one."""
    cells, points = np.arange(new)[:, None], np.arange(old)[None, :]
    inside = (points >= cells * old // new) & (points < -(-(cells + 1) * old // new))
    return inside / inside.sum(1, keepdims=True)


class AveragePooling(PromptAdapter):
    """Averages of the grid's cells, then an MLP."""

    config: AveragePoolingConfig

    def tokens(self, features: Float[Array, "N P D"], instructions: Int[Array, "N Q"] | None) -> Float[Array, "N T W"]:
        """[N, P, D] features -> [N, prompt_tokens, W] visual tokens."""
        map_ = self.features
        pooled = self.config.pooled(map_)
        count, _, channels = features.shape
        ahead = features[:, : map_.ahead]
        grid = features[:, map_.ahead :].reshape(count, map_.rows, map_.columns, channels)
        cells = average_pool(grid, (pooled.rows, pooled.columns)).reshape(count, pooled.patches, channels)
        mlp = MLPAdapter(self.config.mlp, pooled, self.width, self.precision, name="mlp")
        return mlp(jnp.concatenate([ahead, cells], 1))
