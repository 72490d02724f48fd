"""Whose words are whose in what a chat template writes."""

import pytest
from chat_texts import CHATML, GEMMA, LLAMA2, LLAMA3, LLAVA, SMOLVLM  # tests/parity/chat_texts.py
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.conversation import ChatWriter, Turn, contents_of
from data_pipelines.quarantine import BadRecord
from vlm_jax.errors import UserError

NAMES = (("bos_token", "<s>"), ("eos_token", "</s>"))
PROGRAMS = {"chatml": CHATML, "llama2": LLAMA2, "llama3": LLAMA3, "gemma": GEMMA}


def writer(jinja, contents="string", placeholder="<image>"):
    return ChatWriter(jinja, contents, placeholder, NAMES, "2026-01-01")


@pytest.mark.parametrize("name", PROGRAMS)
@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(st.sampled_from("aя \n<image>|_end{}")), min_size=1, max_size=4),
    pictures=st.integers(0, 2),
    opened=st.booleans(),
)
def test_pieces_joined_are_what_the_template_writes(name, texts, pictures, opened):
    roles = ["user", "assistant"] * 2
    turns = [Turn(role, text) for role, text in zip(roles, texts, strict=False)]
    turns[0] = Turn("user", texts[0], before=pictures)
    chat = writer(PROGRAMS[name])
    pieces = chat.write(turns, opened)
    assert "".join(piece.text for piece in pieces) == chat.rendered(turns, opened)
    assert sum(piece.picture for piece in pieces) == pictures
    spoken = {piece.turn: piece.text for piece in pieces if piece.turn >= 0}
    assert sorted(spoken) == list(range(len(turns)))
    for number, text in spoken.items():
        assert text.strip() == texts[number].strip()


def test_templates_that_write_pictures_get_lists_and_others_text():
    names = dict(NAMES)
    assert contents_of(LLAVA, names, "<image>") == contents_of(SMOLVLM, names, "<image>") == "list"
    assert {contents_of(program, names, "<image>") for program in PROGRAMS.values()} == {"string"}
    assert contents_of(LLAVA, names, "") == "list"
    pieces = writer(LLAVA, "list").write([Turn("user", "q", before=2), Turn("assistant", "a")], True)
    shown = "".join("#" if piece.picture else f"[{piece.text}]" if piece.turn >= 0 else piece.text for piece in pieces)
    assert shown == "USER: #\n#\n[q] ASSISTANT: [a] ASSISTANT:"


def test_a_picture_may_stand_after_the_text():
    pieces = writer(CHATML).write([Turn("user", "q", after=1)], False)
    places = [(piece.turn, piece.picture) for piece in pieces if piece.turn >= 0 or piece.picture]
    assert places == [(0, False), (-1, True)]


@pytest.mark.parametrize(
    ("program", "error", "said"),
    [
        ("{% for m in messages %}{{ m.content | upper }};{% endfor %}", BadRecord, "changes a message"),
        ("{% for m in messages %}{{ m.content.replace('a', 'b') }}{% endfor %}", BadRecord, "changes a message"),
        ("{{ messages[0].content }}", UserError, "does not write the assistant's message once and in order"),
        (
            "{% for m in messages | reverse %}{{ m.content }};{% endfor %}",
            UserError,
            "does not write the assistant's message once and in order",
        ),
        (
            "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
            UserError,
            "does not write the user's message once",
        ),
    ],
)
def test_templates_that_cannot_be_followed_are_refused(program, error, said):
    with pytest.raises(error, match=said):
        writer(program).write([Turn("user", "abc"), Turn("assistant", "a")], False)


def test_placeholders_that_are_not_written_are_refused():
    with pytest.raises(UserError, match="writes 0 placeholders '<image>' for 1 pictures"):
        writer("{% for m in messages %}{{ m.content[-1].text }}{% endfor %}", "list").write(
            [Turn("user", "q", before=1)], False
        )
    with pytest.raises(UserError, match="does not write a user's message"):
        contents_of("nothing", {}, "<image>")
