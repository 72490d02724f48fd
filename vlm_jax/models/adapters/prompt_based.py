"""Prompt-based adapters: the union of those that put visual tokens into the sequence, or make cross-attention's memory.

A new one adds its line here.
"""

from vlm_jax.models.adapters.mlp import MLPAdapterConfig
from vlm_jax.models.adapters.pooling import AveragePoolingConfig
from vlm_jax.models.adapters.qformer import QFormerAdapterConfig
from vlm_jax.models.adapters.resampler import ResamplerConfig

PromptAdapterConfig = MLPAdapterConfig | AveragePoolingConfig | QFormerAdapterConfig | ResamplerConfig
