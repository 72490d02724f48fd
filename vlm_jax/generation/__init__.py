"""Generation: prefill and decoding with a key-value cache, samplers, streaming, chat."""

from vlm_jax.generation.batches import Buckets
from vlm_jax.generation.chat import Chat, Picture, as_image, generate, question
from vlm_jax.generation.compilations import Compilations, compilations, keep_compiled
from vlm_jax.generation.engine import Engine
from vlm_jax.generation.requests import Piece, Request, Score
from vlm_jax.generation.samplers import Sampler

__all__ = [
    "Buckets",
    "Chat",
    "Compilations",
    "Engine",
    "Picture",
    "Piece",
    "Request",
    "Sampler",
    "Score",
    "as_image",
    "compilations",
    "generate",
    "keep_compiled",
    "question",
]
