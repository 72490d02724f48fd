"""Adapters: how the encoder's features meet the decoder. One file each; this is the union that configs choose from."""

from vlm_jax.models.adapters.mlp import MLPAdapterConfig
from vlm_jax.models.adapters.pooling import AveragePoolingConfig
from vlm_jax.models.adapters.qformer import QFormerAdapterConfig
from vlm_jax.models.adapters.resampler import ResamplerConfig

AdapterConfig = MLPAdapterConfig | AveragePoolingConfig | QFormerAdapterConfig | ResamplerConfig
