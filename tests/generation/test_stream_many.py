import collections
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from vlm_jax.errors import UserError
from vlm_jax.generation import Engine, Request, Sampler, decoding, question

NEW = 8


@pytest.fixture(scope="module")
def engine(mu):
    return Engine(mu.config, mu.params, mu.processor, rows=8)


def answers_of(pieces):
    """{(request, sample): (text, finish, tokens)}; checks that every answer ends once, with its last piece."""
    found = {}
    for piece in pieces:
        text, finish, tokens = found.get((piece.request, piece.sample), ("", None, 0))
        assert finish is None, "a piece after the last one"
        assert piece.tokens > tokens or piece.finish
        assert piece.text or piece.finish
        found[piece.request, piece.sample] = (text + piece.text, piece.finish, piece.tokens)
    return found


@pytest.fixture
def play(monkeypatch, engine):
    """Makes the model say given tokens, a list for each row."""

    def script(*rows):
        longest = max(map(len, rows))
        table = np.zeros((len(rows), longest), np.int32)
        for place, row in enumerate(rows):
            table[place, : len(row)] = row
        heard = SimpleNamespace(untils=[], dropped=[])

        def advance(config, unrolled, params, now, tokens, until, dropped, controls):
            heard.untils.append(int(until))
            heard.dropped.append(dropped.tolist())
            return None, table

        monkeypatch.setattr(decoding, "start", lambda *_: (None, table))
        monkeypatch.setattr(decoding, "advance", advance)
        return heard

    return script


def test_requests_of_all_sorts_together_get_what_each_gets_alone(engine, prompts):
    requests = [
        Request(prompts[0], NEW),
        Request(prompts[1], 3, Sampler(1.5), seed=5),
        Request(prompts[4], NEW, Sampler(0.8, top_k=20, top_p=0.9), seed=5),
        Request(prompts[2], 1),
        Request(prompts[6], NEW, Sampler(2.0), seed=2**40 + 3),
        Request(prompts[0], NEW, stop=(engine.generate([prompts[0]], max_new_tokens=NEW)[0][1:3],)),
    ]
    found = answers_of(engine.stream_many(requests))
    assert set(found) == {(number, 0) for number in range(6)}
    for number, request in enumerate(requests):
        alone = answers_of(engine.stream_many([request]))[0, 0]
        assert found[number, 0] == alone
        settings = dataclasses.asdict(request) | {"sampler": request.sampler}
        keywords = {name: settings[name] for name in ("max_new_tokens", "sampler", "seed", "stop")}
        assert engine.generate([request.prompt], **keywords) == [alone[0]]
        assert 1 <= alone[2] <= request.max_new_tokens
        assert (alone[1] == "length") <= (alone[2] == request.max_new_tokens)
    assert {finish for _, finish, _ in found.values()} == {"stop", "length"}


def test_samples_of_one_prompt_differ_and_the_first_is_the_only_one(engine, prompts):
    request = Request(prompts[0], NEW, Sampler(1.5), seed=1)
    three = answers_of(engine.stream_many([dataclasses.replace(request, samples=3), Request(prompts[1], 2)]))
    assert set(three) == {(0, 0), (0, 1), (0, 2), (1, 0)}
    assert len({three[0, sample][0] for sample in range(3)}) > 1
    assert answers_of(engine.stream_many([request]))[0, 0] == three[0, 0]
    (texts,) = engine.sample([dataclasses.replace(request, samples=3)])
    assert texts == [three[0, sample][0] for sample in range(3)]
    # Also where they do not fit into one batch together with others.
    few = dataclasses.replace(engine, rows=4)
    assert few.sample([dataclasses.replace(request, samples=3)] * 2)[0] == texts


def test_samples_share_the_prefill(engine, prompts, monkeypatch):
    shapes = []
    start = decoding.start
    monkeypatch.setattr(
        decoding,
        "start",
        lambda *a: shapes.append((a[5].tokens.shape[0], None if a[6] is None else len(a[6]))) or start(*a),
    )
    engine.sample([Request(prompts[1], 2, samples=4)])
    engine.generate([prompts[1]], max_new_tokens=2)
    assert shapes == [(1, 4), (1, None)]


def test_other_settings_compile_nothing(engine, prompts):
    def ask(*requests):
        list(engine.stream_many(requests))
        return decoding.start._cache_size(), decoding.advance._cache_size()

    before = ask(Request(prompts[1], 5), Request(prompts[1], 7, Sampler(1.0)))
    assert before == ask(Request(prompts[1], 6, Sampler(0.3, 9, 0.4), seed=9), Request(prompts[1], 8, stop=("x",)))


def test_stop_strings_end_an_answer_and_are_not_shown(engine, play):
    encode = engine.processor.tokenizer.encode
    script = encode("no shape is a circle, no")
    heard = play(script, script)
    requests = [Request(question("q"), 64, stop=("a cir", "zzz")), Request(question("q"), len(script), stop=("cir!",))]
    found = answers_of(engine.stream_many(requests))
    at = next(n for n in range(len(script)) if "a cir" in engine.processor.tokenizer.decode(script[:n]))
    assert found[0, 0] == ("no shape is ", "stop", at)
    assert found[1, 0] == ("no shape is a circle, no", "length", len(script))
    # What is decoded ahead while the host looks is the only decoding after the end.
    assert heard.dropped[at + 1] == [True, False]
    assert heard.dropped[at - 1] == [False, False]


def test_stop_strings_are_the_same_for_answers_at_once(engine, prompts):
    prompt = next(p for p in prompts if len(engine.generate([p], max_new_tokens=24)[0].strip("\ufffd")) > 6)
    text = engine.generate([prompt], max_new_tokens=24)[0]
    stop = text[3:5]
    expected = text[: text.index(stop)]
    assert engine.generate([prompt], max_new_tokens=24, stop=(stop, text + "x")) == [expected]
    assert "".join(engine.stream(prompt, max_new_tokens=24, stop=[stop])) == expected


def test_every_end_token_ends(engine, play, monkeypatch):
    tokenizer = engine.processor.tokenizer
    other = tokenizer.user_id
    script = [*tokenizer.encode("no"), other, *tokenizer.encode("more")]
    play(script)
    assert answers_of(engine.stream_many([Request(question("q"), len(script))]))[0, 0][1] == "length"
    monkeypatch.setattr(type(tokenizer), "end_ids", property(lambda self: (self.end_id, self.user_id)), raising=False)
    assert answers_of(engine.stream_many([Request(question("q"), 64)]))[0, 0] == ("no", "stop", len(script) - 3)
    assert engine.text(script) == "no"


def test_the_device_stops_at_every_end_token(engine, prompts, monkeypatch):
    tokenizer = engine.processor.tokenizer
    rendered = engine.render(prompts[0])
    running = engine._running([0], [Request(prompts[0], NEW)], [rendered], engine._encode([rendered]))
    tokens = np.asarray(running.whole())[0].tolist()
    assert tokens[1] != tokens[0] != tokenizer.end_id
    ends = (tokenizer.end_id, tokens[1])
    monkeypatch.setattr(type(tokenizer), "end_ids", property(lambda self: ends), raising=False)
    assert np.asarray(running.whole())[0].tolist() == [*tokens[:2], *[tokenizer.pad_id] * (len(tokens) - 2)]


def test_a_cancelled_request_says_no_more_and_the_others_go_on(engine, prompts):
    requests = [Request(prompts[1], NEW, Sampler(1.0), seed=n, samples=2) for n in range(3)]
    whole = answers_of(engine.stream_many(requests))
    asked = collections.Counter()

    def cancelled(number):
        asked[number] += 1
        return number == 1 and asked[number] > 2

    pieces = list(engine.stream_many(requests, cancelled))
    assert all(piece.tokens <= 2 for piece in pieces if piece.request == 1)
    kept = answers_of(piece for piece in pieces if piece.request != 1)
    assert kept == {key: answer for key, answer in whole.items() if key[0] != 1}
    assert list(engine.stream_many(requests, lambda number: True)) == []


def test_decoding_ends_when_all_is_said(engine, play):
    tokenizer = engine.processor.tokenizer
    heard = play([*tokenizer.encode("no"), tokenizer.end_id])
    list(engine.stream_many([Request(question("q"), 64)]))
    assert heard.untils[-1] <= 2 + len(tokenizer.encode("no"))


def test_a_prompt_must_leave_room_in_the_context(mu, prompts):
    length = mu.processor.render(prompts[1], open_turn="assistant").length
    engine = Engine(mu.config, mu.params, mu.processor)
    assert engine.count_tokens(prompts[1]) == length

    def within(context):
        decoder = dataclasses.replace(mu.config.decoder, context=context)
        return Engine(dataclasses.replace(mu.config, decoder=decoder), mu.params, mu.processor)

    free = answers_of(engine.stream_many([Request(prompts[1], NEW)]))[0, 0]
    assert free[2] > 3
    short = answers_of(within(length + 3).stream_many([Request(prompts[1], NEW)]))[0, 0]
    assert short[1:] == ("length", 3)
    assert free[0].startswith(short[0].rstrip("\ufffd"))
    for call in (lambda e: e.check(Request(prompts[1])), lambda e: e.generate([prompts[1]])):
        with pytest.raises(UserError, match=f"the prompt has {length} tokens, but the model's context is {length},"):
            call(within(length))
    within(length + 1).check(Request(prompts[1]))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"samples": 0}, "samples is 0"),
        ({"stop": ("a", "")}, "is empty"),
    ],
)
def test_requests_that_mean_nothing_are_refused(prompts, fields, words):
    with pytest.raises(UserError, match=words):
        Request(prompts[0], **fields)


def test_check_finds_a_bad_picture(engine):
    from data_pipelines.images import BadImage

    with pytest.raises(BadImage):
        engine.check(Request(question("a", [b"not a picture"])))
