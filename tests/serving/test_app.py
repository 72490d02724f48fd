"""The API as its clients see it: the real OpenAI client against a real server, answers against the engine's own."""

import concurrent.futures
import time

import openai
import pytest
from clients import asked, data_url, images, png, server

from data_pipelines.examples import Example, Text
from vlm_jax.generation import Request, Sampler, question

QUESTIONS = ["what color is it?", "какого цвета фигура?", "да", "is it a red circle or a blue square?", "1 2 3", "no"]


def complete(client, messages, **fields):
    return client.chat.completions.create(model="tiny", messages=messages, **{"max_tokens": 12, **fields})


def streamed(client, messages, **fields):
    """Chunks of a stream."""
    return list(complete(client, messages, stream=True, **fields))


def joined(chunks, index=0):
    parts = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(part.delta.content or "" for part in parts), [part.finish_reason for part in parts][-1]


@pytest.mark.parametrize("pictures", [(), (png(1),), (png(1), png(2, (50, 20)))], ids=len)
def test_answers_are_the_engines(client, engine, pictures):
    (expected,) = engine.generate([question("what is it?", images(*pictures))], max_new_tokens=12)
    answer = complete(client, asked("what is it?", *pictures))
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == expected
    prompt = engine.count_tokens(question("what is it?", images(*pictures)))
    assert answer.usage.prompt_tokens == prompt
    assert answer.usage.total_tokens == prompt + answer.usage.completion_tokens
    ended = answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens <= 12 if ended else answer.usage.completion_tokens == 12


def test_a_stream_joined_is_the_answer(client):
    for text in QUESTIONS:
        whole = complete(client, asked(text))
        chunks = streamed(client, asked(text))
        assert joined(chunks) == (whole.choices[0].message.content, whole.choices[0].finish_reason)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
        assert len({chunk.id for chunk in chunks}) == 1
        assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_comes_while_it_is_written(endless):
    """The first piece is there long before the last."""
    with server(endless, max_new_tokens=400) as (_, client):
        streamed(client, asked("да"), max_tokens=400)
        begun, times = time.monotonic(), []
        for _ in complete(client, asked("да"), max_tokens=400, stream=True):
            times.append(time.monotonic() - begun)
        assert len(times) > 100
        assert times[1] < times[-1] / 2


def test_a_stream_tells_its_usage_if_asked(client):
    whole = complete(client, asked("да"), n=2, seed=1, temperature=1)
    chunks = streamed(client, asked("да"), n=2, seed=1, temperature=1, stream_options={"include_usage": True})
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert [joined(chunks, index)[0] for index in range(2)] == [choice.message.content for choice in whole.choices]


def test_several_turns_and_pictures(client, engine):
    messages = [
        *asked("what is it?", png(1)),
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        # An answer may be sent back as the client holds it, with all its empty fields.
        complete(client, asked("да")).choices[0].message,
        *asked("and this?", png(2)),
    ]
    said = messages[3].content
    (first,), (second,) = images(png(1)), images(png(2))
    turns = [(first, "user", "what is it?"), (None, "assistant", "no"), (None, "user", "a\nb")]
    turns += [(None, "assistant", said), (second, "user", "and this?")]
    trunk = [s for image, role, text in turns for s in ((image,) if image else ()) + (Text(text, role=role),)]
    (expected,) = engine.generate([Example(trunk=tuple(trunk))], max_new_tokens=12)
    assert complete(client, messages).choices[0].message.content == expected


def test_draws_depend_on_the_seed_only(client, engine):
    (expected,) = engine.generate([question("да")], max_new_tokens=12, sampler=Sampler(1.5, top_p=0.9), seed=7)
    fields = {"temperature": 1.5, "top_p": 0.9, "seed": 7}
    with concurrent.futures.ThreadPoolExecutor(3) as pool:  # others beside it change nothing
        others = [pool.submit(complete, client, asked(text), temperature=2) for text in QUESTIONS]
        assert complete(client, asked("да"), **fields).choices[0].message.content == expected
    assert all(other.result().choices for other in others)
    drawn = {complete(client, asked("да"), temperature=1.5, seed=seed).choices[0].message.content for seed in range(5)}
    assert len(drawn) > 1
    unseeded = {complete(client, asked("да"), temperature=1.5).choices[0].message.content for _ in range(5)}
    assert len(unseeded) > 1


def test_several_answers(client, engine):
    answer = complete(client, asked("да"), n=3, temperature=1.5, seed=3)
    request = Request(question("да"), 12, Sampler(1.5), seed=3, samples=3)
    assert [[choice.message.content for choice in answer.choices]] == engine.sample([request])
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_an_answer_ends_before_a_stop_string(client, engine):
    (whole,) = engine.generate([question("1 2 3")], max_new_tokens=12)
    middle = len(whole) // 2
    stop = whole[middle : middle + 2]
    for form in (stop, ["never said", stop]):
        answer = complete(client, asked("1 2 3"), stop=form).choices[0]
        assert (answer.message.content, answer.finish_reason) == (whole[: whole.index(stop)], "stop")
        assert joined(streamed(client, asked("1 2 3"), stop=form)) == (answer.message.content, "stop")


def test_everyone_gets_their_own_answer(client, engine):
    prompts = [(text, (png(number),) if number % 3 else ()) for number, text in enumerate(QUESTIONS * 4)]
    expected = engine.generate([question(text, images(*shown)) for text, shown in prompts], max_new_tokens=12)
    assert len(set(expected)) > len(QUESTIONS), "answers must tell the clients apart"

    def ask(number):
        text, shown = prompts[number]
        if number % 2:
            return joined(streamed(client, asked(text, *shown)))[0]
        return complete(client, asked(text, *shown)).choices[0].message.content

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(len(prompts)))) == expected


def test_models_are_listed(client):
    (model,) = client.models.list().data
    assert (model.id, model.object) == ("tiny", "model")
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_figures(engine):
    with server(engine) as (_, client):
        complete(client, asked("да"), max_tokens=3)
        with pytest.raises(openai.BadRequestError):
            complete(client, [])
        text = client._client.get(str(client.base_url).replace("/v1/", "/metrics")).text
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['vlm_requests_total{path="/v1/chat/completions",status="200"}'] == "1.0"
    assert lines['vlm_requests_total{path="/v1/chat/completions",status="400"}'] == "1.0"
    assert lines['vlm_rejected_total{code="invalid"}'] == "1.0"
    assert float(lines["vlm_prompt_tokens_total"]) == engine.count_tokens(question("да"))
    assert 1 <= float(lines["vlm_generated_tokens_total"]) <= 3
    assert lines["vlm_queue_length"] == "0.0"
    assert float(lines["vlm_compilations"]) >= 0
    assert lines["vlm_answer_seconds_count"] == "1.0"


def test_a_picture_may_be_a_data_url_with_parameters(client):
    url = data_url(png(1)).replace("image/png;", "image/png;charset=utf-8;")
    part = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    assert complete(client, [{"role": "user", "content": [part]}]).choices
