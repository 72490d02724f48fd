"""Tokenizers of the kinds that public models have; that ids are transformers' is shown in tests/parity."""

import json
import pickle

import pytest
from chat_texts import ENDS, KINDS, build_tokenizer, our_tokenizer  # tests/parity/chat_texts.py
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from data_pipelines.tokenizers import HuggingFaceTokenizer, load_tokenizer, with_image_token
from vlm_jax.errors import UserError

LOSSLESS = ("llama3", "smollm")
TOKENIZERS = {kind: our_tokenizer(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@example("Есть ли здесь круг?  Нет, ёж!")
@example("   leading, trailing   ")
@example("😀👨‍👩‍👧 é e\u0301 ﬁ Ａ")
@example("0123456789 3.14 ¾ ٣")
@example("for i in range(3):\n\tprint(i)\r\n\n")
@example("\x00\x7f\u2047\ufeff\ufffd▁<|im_end|>")
def test_every_text_comes_back_as_it_was(kind, text):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not tokenizer.control_ids & set(ids)


@pytest.mark.parametrize(("kind", "change"), [("qwen", "NFC"), ("metaspace", "space"), ("unigram", "bytes")])
@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("abz Яёж1?\n😀漢<>|/s_")))
def test_what_other_kinds_change_is_in_their_files(kind, change, text):
    """Qwen composes letters, Metaspace takes one leading space, Unigram reads byte pieces: none of it happens here."""
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text)
    expected = text.removeprefix(" ") if change == "space" and not text.startswith("  ") else text
    assert tokenizer.decode(ids) in (text, expected, text.removeprefix(" "))
    assert not tokenizer.control_ids & set(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_written_in_plain_text_stay_text(kind):
    tokenizer = TOKENIZERS[kind]
    for id in tokenizer.control_ids:
        piece = tokenizer.id_to_piece(id)
        ids = tokenizer.encode(f"a{piece}b{piece}")
        assert not tokenizer.control_ids & set(ids)
        assert tokenizer.decode(ids) == f"a{piece}b{piece}"
        assert [found.id for found in tokenizer.find_control(f"a{piece}b")] == [id]


def test_raw_bytes_that_are_no_text_decode_to_a_mark():
    tokenizer = TOKENIZERS["llama3"]
    half = tokenizer.encode("漢")[:1]
    assert tokenizer.decode(half) == "\ufffd"
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.decode([tokenizer.vocabulary_size])
    with pytest.raises(UnicodeEncodeError):
        tokenizer.encode("a\ud83d")


@pytest.mark.parametrize("kind", KINDS)
def test_saved_loaded_and_sent_is_equal(kind, tmp_path):
    tokenizer = with_image_token(TOKENIZERS[kind]).with_ids(end_ids=(TOKENIZERS[kind].end_id, 5))
    tokenizer.save(tmp_path / "deep")
    loaded = load_tokenizer(tmp_path / "deep")
    assert loaded == tokenizer == pickle.loads(pickle.dumps(tokenizer))
    assert loaded.end_ids == (tokenizer.end_id, 5)
    assert loaded.image_id == tokenizer.vocabulary_size - 1
    assert loaded.encode("круг <image>") == tokenizer.encode("круг <image>") == TOKENIZERS[kind].encode("круг <image>")
    assert loaded != TOKENIZERS[kind]


def test_tokens_that_swallow_spaces_and_whole_words_are_found_as_the_library_finds_them():
    built = build_tokenizer("qwen")
    built.add_special_tokens(
        [
            AddedToken("<|left|>", special=True, lstrip=True, normalized=False),
            AddedToken("<|right|>", special=True, rstrip=True, normalized=False),
            AddedToken("word", special=True, single_word=True, normalized=False),
        ]
    )
    tokenizer = HuggingFaceTokenizer(built.to_str(), end_ids=(built.token_to_id(ENDS["qwen"]),))
    text = "a  <|left|> b<|right|> \n c word sword words <|right|>  <|left|>x"
    ids, at = [], 0
    for start, end, id in tokenizer.find_control(text):
        ids += [*tokenizer.encode_run(text[at:start], first=False)[0], id]
        at = end
    ids += tokenizer.encode_run(text[at:], first=False)[0]
    assert ids == built.encode(text, add_special_tokens=False).ids


def test_a_space_is_put_in_front_of_the_first_run_only():
    tokenizer = TOKENIZERS["metaspace"]
    first, later = tokenizer.encode_run("красный")[0], tokenizer.encode_run("красный", first=False)[0]
    assert tokenizer.id_to_piece(first[0])[0] == "▁"
    assert tokenizer.id_to_piece(later[0])[0] != "▁"


@pytest.mark.parametrize("kind", KINDS)
def test_spans_cover_the_text(kind):
    text = "Есть 😀 circle\n"
    ids, spans = TOKENIZERS[kind].encode_run(text)
    assert len(ids) == len(spans)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert {i for start, end in spans for i in range(start, end)} == set(range(len(text)))


def test_what_is_no_tokenizer_or_names_no_token_is_refused():
    with pytest.raises(ValueError, match="not a file of the tokenizers library"):
        HuggingFaceTokenizer("{}", end_ids=(0,))
    with pytest.raises(ValueError, match="no token has the id 99999"):
        HuggingFaceTokenizer(build_tokenizer("qwen").to_str(), end_ids=(99999,))


def test_a_damaged_file_is_the_users_error(tmp_path):
    TOKENIZERS["qwen"].save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"a"', '"b"', 1))
    with pytest.raises(UserError, match=r"tokenizer\.json: damaged, its checksum"):
        load_tokenizer(tmp_path)
    path.write_text(json.dumps({"model": {"type": "BPE"}, "version": "1.0"}))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="not a file of the tokenizers library"):
        load_tokenizer(tmp_path)


def test_pieces_are_readable():
    tokenizer = TOKENIZERS["llama3"]
    shown = [tokenizer.id_to_piece(id) for id in tokenizer.encode(" circle\nЁ")]
    assert "".join(shown) == "▁circle<0x0A><0xD0><0x81>"
    assert tokenizer.id_to_piece(tokenizer.end_id) == "<|eot_id|>"
