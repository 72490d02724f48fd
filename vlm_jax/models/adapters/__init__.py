"""Adapters: how the encoder's features meet the decoder. One file each; this is the union that configs choose from.

Prompt-based ones stand in a union of their own (`prompt_based.py`), since they can make the memory of the others too.
"""

from vlm_jax.models.adapters.cross_attention import CrossAttentionConfig
from vlm_jax.models.adapters.prompt_based import (
    AveragePoolingConfig,
    MLPAdapterConfig,
    PromptAdapterConfig,
    QFormerAdapterConfig,
    ResamplerConfig,
)

AdapterConfig = PromptAdapterConfig | CrossAttentionConfig

__all__ = [
    "AdapterConfig",
    "AveragePoolingConfig",
    "CrossAttentionConfig",
    "MLPAdapterConfig",
    "PromptAdapterConfig",
    "QFormerAdapterConfig",
    "ResamplerConfig",
]
