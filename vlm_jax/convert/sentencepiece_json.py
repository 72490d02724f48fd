"""A sentencepiece model as a tokenizer.json: the same ids, by the `tokenizers` library, which transformers loads."""

from typing import Any, Literal

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from data_pipelines.tokenizers import SentencePieceTokenizer
from data_pipelines.tokenizers.merges import merges_by_score
from data_pipelines.tokenizers.metadata import sentencepiece_decoder
from vlm_jax.convert.sentencepiece_proto import BYTE, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, parse_model
from vlm_jax.errors import UserError

_MARK = "▁"
_LEARNED = (NORMAL, USER_DEFINED, UNUSED)
_UNIGRAM, _BPE = 1, 2

_BYTES = pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>)"), "isolated")
"""The library's Unigram would find the pieces that stand for bytes where somebody writes them out."""


def sentencepiece_json(tokenizer: SentencePieceTokenizer) -> str:
    """tokenizer.json of a sentencepiece model.

    Of models trained here, pieces are written with real spaces, so that the character that sentencepiece writes in
    their place (U+2581) comes back as it was, as it does here.

    Raises:
        UserError: if the model is neither Unigram nor BPE, or changes its text before it is cut into pieces.
    """
    proto = parse_model(tokenizer.model)
    normalizer = proto.normalizer_spec
    if normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces:
        raise UserError(
            "the sentencepiece model rewrites its text (characters or spaces), which has no equal in a tokenizer.json; "
            "take the tokenizer.json that the model's authors publish"
        )
    plain_spaces = not tokenizer.takes_mark_for_space
    pieces = [(piece.piece.replace(_MARK, " ") if plain_spaces else piece.piece) for piece in proto.pieces]
    kind = proto.trainer_spec.model_type
    if kind == _UNIGRAM:
        whole = _unigram(proto, pieces)
    elif kind == _BPE:
        whole = _bpe(proto, pieces)
    else:
        raise UserError("the sentencepiece model is neither Unigram nor BPE, so no tokenizer.json can be written of it")
    if plain_spaces:
        whole.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    else:
        scheme: Literal["first", "never"] = "first" if normalizer.add_dummy_prefix else "never"
        space = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        whole.pre_tokenizer = pre_tokenizers.Sequence([*([_BYTES] if kind == _UNIGRAM else []), space])
        whole.decoder = sentencepiece_decoder(normalizer.add_dummy_prefix)
    control = [pieces[id] for id in sorted(tokenizer.control_ids)]
    whole.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in control])
    return whole.to_str()


def _unigram(proto: Any, pieces: list[str]) -> tokenizers.Tokenizer:
    lowest = min(piece.score for piece in proto.pieces if piece.type == NORMAL)
    # The library's score of an unknown character goes by the lowest of all, sentencepiece's by that of learned pieces.
    scores = [piece.score if piece.type in _LEARNED else lowest for piece in proto.pieces]
    unknown = next(id for id, piece in enumerate(proto.pieces) if piece.type == UNKNOWN)
    vocabulary = list(zip(pieces, scores, strict=True))
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, unknown, byte_fallback=_has_bytes(proto)))
    tokenizer.pre_tokenizer = _BYTES
    return tokenizer


def _bpe(proto: Any, pieces: list[str]) -> tokenizers.Tokenizer:
    scores = {text: piece.score for text, piece in zip(pieces, proto.pieces, strict=True) if piece.type in _LEARNED}
    vocabulary = {text: id for id, text in enumerate(pieces)}
    unknown = next(text for text, piece in zip(pieces, proto.pieces, strict=True) if piece.type == UNKNOWN)
    model = models.BPE(vocabulary, merges_by_score(scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    return tokenizers.Tokenizer(model)


def _has_bytes(proto: Any) -> bool:
    return any(piece.type == BYTE for piece in proto.pieces)
