"""Tokenizers from GGUF metadata; the real one is compared with transformers' in tests/parity."""

import json

import pytest
import sentencepiece
from chat_texts import SAMPLES, build_tokenizer, sentencepiece_model  # tests/parity/chat_texts.py
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.tokenizers import SentencePieceTokenizer, tokenizer_from_gguf
from vlm_jax.errors import UserError


def byte_level(kind, pre, **more):
    """The metadata that a GGUF of a byte-level tokenizer has."""
    plain = json.loads(build_tokenizer(kind).to_str())
    added = {token["content"] for token in plain["added_tokens"]}
    table = plain["model"]["vocab"] | {token["content"]: token["id"] for token in plain["added_tokens"]}
    tokens = sorted(table, key=table.get)
    fields = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [3 if token in added else 1 for token in tokens],
        "merges": [" ".join(merge) for merge in plain["model"]["merges"]],
        "eos_token_id": tokens.index("<|im_end|>" if kind != "llama3" else "<|eot_id|>"),
        **more,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items() if value is not None}


@pytest.mark.parametrize(
    ("kind", "pre"), [("smollm", "smollm"), ("llama3", "llama-bpe"), ("qwen", "qwen2"), ("smollm", "starcoder")]
)
def test_ids_are_those_of_the_tokenizer_that_was_converted(kind, pre):
    ours, theirs = tokenizer_from_gguf(byte_level(kind, pre)), build_tokenizer(kind)
    for text in SAMPLES:
        theirs.encode_special_tokens = True
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text


def test_ids_that_open_and_end_a_text():
    tokenizer = tokenizer_from_gguf(byte_level("llama3", "llama-bpe", bos_token_id=422, eot_token_id=3))
    assert (tokenizer.bos_id, tokenizer.adds_bos) == (422, True)
    assert tokenizer.end_ids[1] == 3
    assert not tokenizer_from_gguf(byte_level("smollm", "smollm", bos_token_id=1)).adds_bos
    assert tokenizer_from_gguf(byte_level("smollm", None)).encode("a") == tokenizer_from_gguf(
        byte_level("smollm", "gpt-2")
    ).encode("a")


def sentencepiece_like():
    model = sentencepiece_model("bpe")
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(processor.vocab_size())
    kinds = [2 * processor.is_unknown(i) + 3 * processor.is_control(i) + 6 * processor.is_byte(i) or 1 for i in ids]
    fields = {
        "model": "llama",
        "tokens": [processor.id_to_piece(i) for i in ids],
        "scores": [processor.get_score(i) for i in ids],
        "token_type": kinds,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return SentencePieceTokenizer(model), {f"tokenizer.ggml.{name}": value for name, value in fields.items()}


MODEL, FIELDS = sentencepiece_like()
CONVERTED = tokenizer_from_gguf(FIELDS)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from(" abcdeilnorst круганетьёЁ1234.,?\n\t😀漢")))
def test_scores_give_the_ids_of_sentencepiece_itself(text):
    assert CONVERTED.encode(text) == MODEL.encode(text)
    assert CONVERTED.decode(CONVERTED.encode(text)) == text


def test_control_tokens_of_scores_are_no_text():
    assert CONVERTED.adds_bos
    assert CONVERTED.control_ids == {0, 1, 2}
    assert CONVERTED.control_ids.isdisjoint(CONVERTED.encode("a</s><s> <unk>"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pre": "chameleon"}, "pre 'chameleon' is not known .known: gpt-2"),
        ({"model": "bert"}, "tokenizer model 'bert' is not known; known are gpt2, llama"),
        ({"model": None}, r"no field tokenizer\.ggml\.model"),
        ({"merges": None}, r"no field tokenizer\.ggml\.merges"),
        ({"eos_token_id": None}, r"no field tokenizer\.ggml\.eos_token_id"),
    ],
)
def test_what_is_not_known_is_the_users_error(change, said):
    with pytest.raises(UserError, match=f"^some.gguf: .*{said}"):
        tokenizer_from_gguf(byte_level("smollm", **{"pre": "smollm", **change}), "some.gguf")
