"""Every text comes back as it was, no text becomes a control token, and a bad vocabulary size says how to mend it."""

import pickle
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipelines.tokenizers import SentencePieceConfig, load_tokenizer, train_sentencepiece
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
