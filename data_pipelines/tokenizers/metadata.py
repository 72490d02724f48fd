"""A tokenizer from the metadata of a GGUF file, built as one of the `tokenizers` library."""

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from data_pipelines.tokenizers.huggingface import HuggingFaceTokenizer
from data_pipelines.tokenizers.merges import merges_by_score
from data_pipelines.tokenizers.protocol import unique
from vlm_jax.errors import UserError

_PREFIX = "tokenizer.ggml."
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5

# How text is cut into words before merging: Llama 3 and Qwen 2 differ in how many digits stay together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WHOLE_NUMBERS = ("gpt-2", "default")
_SINGLE_DIGITS = ("smollm", "starcoder", "refact")
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_QWEN2 = ("qwen2", "deepseek-r1-qwen")


def tokenizer_from_gguf(metadata: Mapping[str, Any], where: str = "GGUF") -> HuggingFaceTokenizer:
    """Builds a tokenizer from the fields `tokenizer.ggml.*`.

    Args:
        metadata: the file's fields, lists as Python lists.
        where: the file, for errors.

    Returns:
        For model "gpt2", byte-level BPE whose words are cut as `tokenizer.ggml.pre` says; for "llama", BPE by scores
        with byte fallback, as sentencepiece does it.

    Raises:
        UserError: if a field is missing, or the kind of tokenizer or of pre-tokeniser is not known.
    """
    fields = _Fields(metadata, where)
    kind = fields.need("model")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece_like}
    if kind not in builders:
        raise UserError(f"{where}: tokenizer model '{kind}' is not known; known are {', '.join(builders)}")
    tokenizer = builders[kind](fields)
    tokens, types = fields.need("tokens"), fields.get("token_type", [])
    for token, number in zip(tokens, types, strict=False):
        if number in (_UNKNOWN, _CONTROL):
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif number == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    bos = fields.get("bos_token_id")
    adds_bos = bool(fields.get("add_bos_token", kind == "llama" or fields.get("pre") in _LLAMA3)) and bos is not None
    if adds_bos:
        opening = str(tokens[bos])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{opening}:0 $A:0", pair=f"{opening}:0 $A:0 $B:1", special_tokens=[(opening, bos)]
        )
    ends = unique([id for id in map(fields.get, ("eos_token_id", "eot_token_id", "eom_token_id")) if id is not None])
    if not ends:
        raise UserError(f"{where}: no field {_PREFIX}eos_token_id, so nothing ends a text; convert the file anew")
    return HuggingFaceTokenizer(
        tokenizer.to_str(),
        end_ids=ends,
        bos_id=bos,
        pad_id=fields.get("padding_token_id"),
        adds_bos=adds_bos,
    )


class _Fields:
    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self._metadata, self._where = metadata, where

    def get(self, name: str, default: Any = None) -> Any:
        return self._metadata.get(_PREFIX + name, default)

    def need(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise UserError(f"{self._where}: no field {_PREFIX}{name}, so no tokenizer; convert the file anew")
        return value

    def unknown_pre(self, name: str) -> UserError:
        known = ", ".join((*_WHOLE_NUMBERS, *_SINGLE_DIGITS, *_LLAMA3, *_QWEN2))
        return UserError(
            f"{self._where}: {_PREFIX}pre '{name}' is not known (known: {known}); "
            "load the tokenizer from the model's Hugging Face files"
        )


def _byte_level(fields: _Fields) -> tokenizers.Tokenizer:
    vocabulary = {token: id for id, token in enumerate(fields.need("tokens"))}
    merges = [_pair(merge) for merge in fields.need("merges")]
    pre = fields.get("pre") or "gpt-2"
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre in (*_WHOLE_NUMBERS, *_SINGLE_DIGITS))
    if pre in _WHOLE_NUMBERS:
        words: pre_tokenizers.PreTokenizer = byte_level
    elif pre in _SINGLE_DIGITS:
        words = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    elif pre in (*_LLAMA3, *_QWEN2):
        pattern = _WORDS.replace("DIGITS", r"\p{N}{1,3}" if pre in _LLAMA3 else r"\p{N}")
        words = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])
    else:
        raise fields.unknown_pre(pre)
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in _LLAMA3))
    if pre in _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_like(fields: _Fields) -> tokenizers.Tokenizer:
    tokens: Sequence[str] = fields.need("tokens")
    vocabulary = {token: id for id, token in enumerate(tokens)}
    types = fields.get("token_type", [1] * len(tokens))
    scores = {
        token: score
        for token, score, number in zip(tokens, fields.need("scores"), types, strict=True)
        if number in (1, _USER_DEFINED, _UNUSED)
    }
    dummy_prefix = bool(fields.get("add_space_prefix", True))
    model = models.BPE(
        vocab=vocabulary,
        merges=merges_by_score(scores),
        unk_token=tokens[fields.get("unknown_token_id", 0)],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = tokenizers.Tokenizer(model)
    prefix = [normalizers.Prepend("▁")] if dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = sentencepiece_decoder(dummy_prefix)
    return tokenizer


def sentencepiece_decoder(dummy_prefix: bool) -> decoders.Decoder:
    """▁ to spaces, byte pieces to characters, and the space in front taken away."""
    strip = [decoders.Strip(" ", 1, 0)] if dummy_prefix else []
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right
