"""Q-Former as an adapter (Li et al. 2023, BLIP-2, section 3.1): N learned queries become N visual tokens.

How many visual tokens an image slot costs does not depend on the encoder's grid. With an instruction the queries read
what is asked, too (Dai et al. 2023, InstructBLIP, section 2.3).
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax.models.adapters.base import AdapterConfigBase, PromptAdapter
from vlm_jax.models.layers import LayerNorm, Precision, dense, parameter
from vlm_jax.models.ledger import Depends, Ledger
from vlm_jax.models.qformer import QFormer, QFormerConfig
from vlm_jax.models.states import FeatureMap
from vlm_jax.pictures import Pictures


@dataclasses.dataclass(frozen=True)
class QFormerAdapterConfig(AdapterConfigBase):
    """A Q-Former with queries of its own, and a linear map to the decoder's width."""

    queries: int = 32
    """N, visual tokens of an image slot."""
    qformer: QFormerConfig = dataclasses.field(default_factory=QFormerConfig)
    """Its features_width is the encoder's and may stay 0."""
    instruction: int = 0
    """Tokens of the instruction that the queries read with a picture; 0 = none. Needs `qformer.text_vocabulary`."""
    feature_norm: bool = True
    """A norm of the encoder's features comes first, as where BLIP-2 is trained; imported models have it in the encoder.
    """

    def __post_init__(self) -> None:
        q = self.qformer
        if self.queries < 1:
            raise ValueError(f"QFormerAdapterConfig: queries is {self.queries}; it must be at least 1")
        if self.instruction < 0 or self.instruction > q.text_length:
            raise ValueError(
                f"QFormerAdapterConfig: instruction is {self.instruction}; it can be 0 to {q.text_length}, which is "
                "qformer.text_length"
            )
        if bool(self.instruction) != bool(q.text_vocabulary) or bool(self.instruction) != q.text:
            raise ValueError(
                f"QFormerAdapterConfig: instruction is {self.instruction}, but qformer.text {q.text} and "
                f"qformer.text_vocabulary {q.text_vocabulary}; set all three or none"
            )

    def prompt_tokens(self, features: FeatureMap) -> int:
        """As many as queries."""
        self._fitted(features)
        return self.queries

    def pictures(self, features: FeatureMap) -> Pictures:
        """It may read an instruction; its tokens form no grid."""
        return Pictures(instruction=self.instruction, instruction_vocabulary=self.qformer.text_vocabulary)

    def count(self, ledger: Ledger, features: FeatureMap, width: int, x: Depends) -> Depends:
        """The Q-Former's and the linear map's."""
        q = self._fitted(features)
        start, x = ledger.learned("queries"), ledger.learned("feature_norm", x)
        with ledger.within("qformer"):
            y = q.count(ledger, self.queries, features.count, self.instruction, start, x)
        return ledger.linear("out", self.queries * q.width * width, y)

    def build(self, features: FeatureMap, width: int, precision: Precision, separator: bool) -> "QFormerAdapter":
        """The module."""
        return QFormerAdapter(self, features, width, precision, separator)

    def _fitted(self, features: FeatureMap) -> QFormerConfig:
        """The Q-Former for these features."""
        q = self.qformer
        if q.features_width not in (0, features.width):
            raise ValueError(
                f"QFormerAdapterConfig: qformer.features_width is {q.features_width}, but the encoder's features have "
                f"{features.width}; leave it at 0"
            )
        return dataclasses.replace(q, features_width=features.width)


class QFormerAdapter(PromptAdapter):
    """Queries, the Q-Former, and a linear map.

    Queries are drawn apart from each other: equal ones would stay equal. Weights are drawn by their inputs' number,
    at BLIP-2's width about as BERT's are (0.02), and larger where the width is smaller, or attention would be flat.
    """

    config: QFormerAdapterConfig

    def tokens(self, features: Float[Array, "N P D"], instructions: Int[Array, "N Q"] | None) -> Float[Array, "N T W"]:
        """[N, P, D] features, and ids [N, instruction] where they are read -> [N, queries, W] visual tokens."""
        c = self.config
        q = c._fitted(self.features)
        if c.instruction and instructions is None:
            raise ValueError("QFormerAdapter: this adapter reads an instruction, but the batch has no instructions")
        if c.instruction and instructions is not None and instructions.shape[1] > q.text_length:
            raise ValueError(
                f"QFormerAdapter: an instruction of {instructions.shape[1]} tokens, but qformer.text_length is "
                f"{q.text_length}; raise it"
            )
        queries = parameter(
            self, "queries", nn.initializers.normal(0.02), (c.queries, q.width), (None, "vision_embed"), self.precision
        )
        x = LayerNorm(self.precision, name="feature_norm")(features) if c.feature_norm else features
        start = jnp.broadcast_to(queries, (len(features), *queries.shape))
        y = QFormer(q, self.precision, name="qformer")(start, x, instructions if c.instruction else None)
        return dense(q.width, self.width, ("features", "embed"), self.precision, bias=True, name="out")(y)
