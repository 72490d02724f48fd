"""Tokenizers: text to ids and back, without a way for plain text to become a control token.

Two kinds behind one small interface: sentencepiece models (trained here, or imported as `tokenizer.model`), and what
the `tokenizers` library reads (`tokenizer.json`, or built from a GGUF's metadata).
"""

from data_pipelines.tokenizers.files import load_tokenizer, with_image_token
from data_pipelines.tokenizers.huggingface import HuggingFaceTokenizer
from data_pipelines.tokenizers.metadata import tokenizer_from_gguf
from data_pipelines.tokenizers.protocol import Found, Tokenizer
from data_pipelines.tokenizers.sentencepieces import SentencePieceTokenizer
from data_pipelines.tokenizers.training import SentencePieceConfig, train_sentencepiece

__all__ = [
    "Found",
    "HuggingFaceTokenizer",
    "SentencePieceConfig",
    "SentencePieceTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "tokenizer_from_gguf",
    "train_sentencepiece",
    "with_image_token",
]
