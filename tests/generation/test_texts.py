import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.tokenizers import SentencePieceConfig, train_sentencepiece
from vlm_jax.generation.texts import AnswerText


def spell(ids):
    """A tokenizer of letters: one token is one character."""
    return "".join(chr(id) for id in ids)


def spell_bytes(ids):
    return bytes(ids).decode("utf-8", "replace")


def told(decode, ids, stop=()):
    """(pieces, text, tokens read)."""
    text, pieces = AnswerText(decode, stop), []
    read = 0
    for id in ids:
        text.add(id)
        read += 1
        pieces.append(text.take())
        if text.stopped:
            break
    text.finish()
    pieces.append(text.take(everything=True))
    return pieces, "".join(pieces), read


def test_characters_come_whole_and_a_stray_byte_at_the_end():
    data = "да €!".encode() + "€".encode()[:2]
    pieces, text, _ = told(spell_bytes, data)
    assert text == data.decode("utf-8", "replace")
    assert all("\ufffd" not in piece for piece in pieces[:-1])
    assert {"д", "€", "!"} <= set(pieces)


@pytest.mark.parametrize("stop", [("END",), ("zzz", "END"), ("N", "END"), ("D",)])
def test_nothing_of_a_stop_string_is_shown(stop):
    pieces, text, read = told(spell, map(ord, "the ENtry, then ENEND of it"), stop)
    whole = "the ENtry, then ENEND of it"
    end = min(whole.index(s) for s in stop if s in whole)
    assert text == whole[:end]
    assert read < len(whole)
    # A false beginning is held back and then shown.
    if stop == ("END",):
        assert "ENt" in pieces
        assert pieces[:6] == ["t", "h", "e", " ", "", ""]


def test_what_was_held_back_is_shown_when_no_stop_string_comes_of_it():
    assert told(spell, map(ord, "an EN"), ["END"])[0][-1] == "EN"


def test_a_stop_string_may_span_bytes_of_characters():
    pieces, text, read = told(spell_bytes, "вот и всё, конец и ещё".encode(), ["конец"])
    assert text == "вот и всё, "
    assert read == len("вот и всё, конец".encode())
    assert all("к" not in piece for piece in pieces)


def test_of_several_stop_strings_in_one_token_the_first_place_counts():
    words = {0: "a ", 1: "b stop end", 2: "!"}
    assert told(lambda ids: "".join(words[id] for id in ids), [0, 1, 2], ["end", "stop"])[1] == "a b "


texts = st.text(st.sampled_from("abc da€😀\ufffd"), max_size=150)


@settings(max_examples=150, deadline=None)
@given(texts, st.lists(st.text(st.sampled_from("abc da"), min_size=1, max_size=4), max_size=3))
def test_text_is_what_stands_before_the_first_stop_string(text, stop):
    ends = [text.index(s) + len(s) for s in stop if s in text]
    expected = text
    if ends:
        # Characters come one by one, so the stop string that is complete first counts; of two, the longer begins first.
        done = text[: min(ends)]
        expected = text[: min(done.index(s) for s in stop if done.endswith(s))]
    assert told(spell_bytes, text.encode(), stop)[1] == expected


TOKENIZER = train_sentencepiece(["one two three, раз два три", "a picture of a cat"], SentencePieceConfig(286))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 285), max_size=200))
def test_any_tokens_give_what_decoding_them_at_once_gives(ids):
    assert told(TOKENIZER.decode, ids)[1] == TOKENIZER.decode(ids)
