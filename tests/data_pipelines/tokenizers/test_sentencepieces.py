"""Every text comes back as it was, no text becomes a control token, and a bad vocabulary size says how to mend it."""

import pickle
import re

import pytest
from chat_texts import sentencepiece_model  # tests/parity/chat_texts.py
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipelines.tokenizers import (
    SentencePieceConfig,
    SentencePieceTokenizer,
    load_tokenizer,
    train_sentencepiece,
    with_image_token,
)
from vlm_jax.errors import UserError

SIZE = 320
TEXTS = [
    "Is there a red circle in the picture?",
    "Есть ли на картинке красный круг?",
    "  two  spaces,  и  ещё  два",
    "def f(x):\n\treturn x + 1  # 12345",
] * 10


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request):
    return train_sentencepiece(TEXTS, SentencePieceConfig(SIZE, request.param))


def control_ids(tokenizer):
    return {
        tokenizer.pad_id,
        tokenizer.bos_id,
        tokenizer.end_id,
        tokenizer.image_id,
        tokenizer.user_id,
        tokenizer.assistant_id,
    }


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@example("Есть ли здесь круг?  Нет.")
@example("   leading, trailing   ")
@example("😀👨‍👩‍👧 é e\u0301 ﬁ Ａ ё й")
@example("0123456789 3.14 1e-5")
@example("for i in range(3):\n\tprint(i)\r\n\n")
@example("▁ ▁▁a▁b")
@example("\x00\u2047\ufeff\ufffd")
def test_every_text_comes_back_as_it_was(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not control_ids(tokenizer) & set(ids)


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(
            [
                "<image>",
                "<user>",
                "<assistant>",
                "<end>",
                "<bos>",
                "<pad>",
                "<unk>",
                "<s>",
                "<0x41>",
                " ",
                "a",
                "круг",
                "▁",
            ]
        )
    )
)
def test_control_symbols_in_plain_text_stay_text(tokenizer, parts):
    text = "".join(parts)
    ids = tokenizer.encode(text)
    assert not control_ids(tokenizer) & set(ids)
    assert all(id > 6 for id in ids)
    assert tokenizer.decode(ids) == text


def test_control_tokens_are_distinct_named_and_dropped_from_text(tokenizer):
    assert len(control_ids(tokenizer)) == 6
    assert tokenizer.pad_id == 0
    names = [
        tokenizer.id_to_piece(id)
        for id in (tokenizer.bos_id, tokenizer.end_id, tokenizer.image_id, tokenizer.user_id, tokenizer.assistant_id)
    ]
    assert names == ["<bos>", "<end>", "<image>", "<user>", "<assistant>"]
    around = [tokenizer.bos_id, *tokenizer.encode(" круг "), tokenizer.end_id, 0, 1, *tokenizer.encode(" a")]
    assert tokenizer.decode(around) == " круг  a"


def test_what_a_model_may_generate_decodes_or_says_why_not(tokenizer):
    half_a_letter = tokenizer.encode("漢")[:1]
    assert tokenizer.decode(half_a_letter) == "�"
    with pytest.raises(ValueError, match=f"outside the vocabulary of {SIZE}"):
        tokenizer.decode([SIZE])
    with pytest.raises(ValueError, match="-1"):
        tokenizer.decode([-1])


def test_encoding_twice_gives_a_list_of_ones_own(tokenizer):
    first = tokenizer.encode("круг")
    first.append(99)
    assert tokenizer.encode("круг") == first[:-1]


def test_half_a_surrogate_pair_is_refused(tokenizer):
    with pytest.raises(UnicodeEncodeError):
        tokenizer.encode("a\ud83d")


def test_training_is_deterministic(tokenizer):
    again = [train_sentencepiece(iter(TEXTS), SentencePieceConfig(SIZE, kind)) for kind in ("unigram", "bpe")]
    assert sum(other == tokenizer for other in again) == 1


def test_training_learns_words_of_both_languages():
    tokenizer = train_sentencepiece(TEXTS, SentencePieceConfig(345, "bpe"))
    assert len(tokenizer.encode("Есть ли на картинке красный круг?")) < 26
    assert len(tokenizer.encode("Is there a red circle in the picture?")) < 26


def test_training_takes_long_lines_and_odd_characters():
    long = "красный круг " * 5000
    tokenizer = train_sentencepiece([long, "a\tb▁c\x00d\ud83d"], SentencePieceConfig(300, "bpe"))
    assert len(tokenizer.encode(long)) < 20000
    assert "b" in [tokenizer.id_to_piece(id) for id in tokenizer.encode("b")]


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize(("size", "word"), [(100, "small"), (280, "small"), (9000, "large")])
def test_a_vocabulary_size_that_does_not_fit_says_which_does(model_type, size, word):
    with pytest.raises(UserError, match=f"vocabulary_size {size} is too {word}") as caught:
        train_sentencepiece(TEXTS, SentencePieceConfig(size, model_type))
    assert "\n" not in str(caught.value)
    advice = int(re.findall(r"\d+", str(caught.value))[-1])
    if size > 263:
        assert train_sentencepiece(TEXTS, SentencePieceConfig(advice, model_type)).vocabulary_size == advice


def test_nothing_to_train_on_is_the_users_error():
    with pytest.raises(UserError, match="no text"):
        train_sentencepiece(["", "\n"], SentencePieceConfig())
    with pytest.raises(UserError, match="character_coverage"):
        train_sentencepiece(TEXTS, SentencePieceConfig(character_coverage=0.5))


def test_saved_and_loaded_is_equal(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "deep")
    loaded = load_tokenizer(tmp_path / "deep")
    assert loaded == tokenizer
    assert loaded.encode("красный  circle") == tokenizer.encode("красный  circle")
    assert pickle.loads(pickle.dumps(tokenizer)) == tokenizer


def test_a_missing_or_damaged_tokenizer_is_the_users_error(tokenizer, tmp_path):
    with pytest.raises(UserError, match="no tokenizer here"):
        load_tokenizer(tmp_path)
    tokenizer.save(tmp_path)
    model = tmp_path / "tokenizer.model"
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"tokenizer\.model: damaged"):
        load_tokenizer(tmp_path)
    model.write_bytes(whole)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json: damaged"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(UserError, match="not a tokenizer of a known type"):
        load_tokenizer(tmp_path)


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def imported(request):
    """As Llama 2's: a space in front of every text, no padding token, no pictures, no turns."""
    return SentencePieceTokenizer(sentencepiece_model(request.param))


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁\x00")))
@example("  leading and trailing  ")
@example("</s><s> <unk> <0x41>")
def test_an_imported_model_takes_away_the_space_that_it_puts_in_front(imported, text):
    ids = imported.encode(text)
    assert imported.decode(ids) == text
    assert not imported.control_ids & set(ids)


def test_an_imported_model_has_what_its_file_says(imported):
    assert (imported.bos_id, imported.end_id, imported.pad_id) == (1, 2, 2)
    assert imported.image_id is imported.user_id is imported.assistant_id is None
    assert imported.id_to_piece(imported.encode("red")[0]).startswith("▁")
    first, _ = imported.encode_run("red circle")
    later, spans = imported.encode_run("red circle", first=False)
    assert first == imported.encode("red circle")
    assert imported.decode(later) == "red circle"
    assert imported.id_to_piece(later[0])[0] != "▁"
    assert spans[-1][1] == len("red circle")


def test_symbols_that_are_named_control_tokens_are_no_text(imported):
    turns = ("<start_of_turn>", "<end_of_turn>")
    plain = SentencePieceTokenizer(sentencepiece_model("bpe", turns=turns))
    named = SentencePieceTokenizer(plain.model, control=turns)
    assert any(plain.id_to_piece(id) in turns for id in plain.encode("<end_of_turn>"))
    ids = named.encode("a<end_of_turn><start_of_turn> <end_of_turn>b")
    assert not named.control_ids & set(ids)
    assert named.decode(ids) == "a<end_of_turn><start_of_turn> <end_of_turn>b"
    assert [found.id for found in named.find_control("x<end_of_turn>y<s>")] == [
        named.find_control("<end_of_turn>")[0].id,
        named.bos_id,
    ]
    assert pickle.loads(pickle.dumps(named)) == named != plain


def test_a_picture_token_is_added_at_the_end(imported, tmp_path):
    seeing = with_image_token(imported)
    assert seeing.image_id == imported.vocabulary_size == seeing.vocabulary_size - 1
    assert seeing.encode("<image>") == imported.encode("<image>")
    assert with_image_token(seeing) is seeing
    seeing.save(tmp_path)
    assert load_tokenizer(tmp_path) == seeing
    again = seeing.with_ids(end_ids=(2, 5))
    assert (again.end_id, again.end_ids, again.image_id) == (2, (2, 5), seeing.image_id)


def test_spans_say_which_characters_a_token_covers(tokenizer):
    text = "Есть 😀▁ circle"
    ids, spans = tokenizer.encode_run(text)
    assert ids == tokenizer.encode(text)
    assert all(start < end for start, end in spans)
    assert [text[spans[i][0]] for i, id in enumerate(ids) if tokenizer.id_to_piece(id).startswith("<0x")][:4] == [
        *"😀😀😀😀"
    ]
    assert {i for start, end in spans for i in range(start, end)} == set(range(len(text)))
