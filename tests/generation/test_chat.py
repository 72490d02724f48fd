import cv2
import numpy as np
import pytest

from data_pipelines.examples import Example, Image, Text
from data_pipelines.images import BadImage, ImagePreprocessing, decode
from data_pipelines.template import Processor, TemplateConfig
from vlm_jax.generation import Chat, Engine, Sampler, as_image, generate, question
from vlm_jax.models.vlm import VLMConfig

PIXELS = np.random.default_rng(7).integers(0, 256, (20, 30, 3), np.uint8)


def test_a_picture_in_any_form_has_the_same_pixels(tmp_path):
    data = cv2.imencode(".png", PIXELS[..., ::-1])[1].tobytes()
    path = tmp_path / "p.png"
    path.write_bytes(data)
    for form in (PIXELS, data, path, str(path), Image(data=data)):
        np.testing.assert_array_equal(decode(as_image(form)), PIXELS)
    for wrong in (PIXELS[..., 0], PIXELS / 255):
        with pytest.raises(ValueError, match="give RGB pixels as uint8"):
            as_image(wrong)


def test_generate_answers_questions_about_their_pictures(mu):
    texts = ["What shape is shown?", "no", "да"]
    images = [[PIXELS], None, [PIXELS, PIXELS[::-1].copy()]]
    answers = generate(mu.config, mu.params, mu.tokenizer, texts, images, max_new_tokens=5)
    engine = Engine(mu.config, mu.params, mu.processor)
    prompts = [question(text, shown or ()) for text, shown in zip(texts, images, strict=True)]
    assert answers == engine.generate(prompts, max_new_tokens=5)
    given = generate(mu.config, mu.params, None, texts, images, max_new_tokens=5, processor=mu.processor)
    assert given == answers
    assert generate(mu.config, mu.params, mu.tokenizer, texts[1:2], max_new_tokens=5) == answers[1:2]
    pictures = [[np.full_like(PIXELS, 80 * shade)] for shade in range(4)]
    seen = generate(mu.config, mu.params, mu.tokenizer, ["no"] * 4, pictures, max_new_tokens=5)
    assert len(set(seen)) > 1


def test_generate_takes_a_decoder_alone(mu):
    processor = Processor(mu.tokenizer, TemplateConfig(), ImagePreprocessing(), (0, 0), 0)
    engine = Engine(VLMConfig(mu.config.decoder), {"decoder": mu.params["decoder"]}, processor)
    text = engine.generate([question("no")], max_new_tokens=5)[0]
    config, params = mu.config.decoder, mu.params["decoder"]
    assert generate(config, params, mu.tokenizer, ["no"], max_new_tokens=5) == [text]
    assert len(text) > 1
    stopped = generate(config, params, mu.tokenizer, ["no"], max_new_tokens=5, stop=[text[1:2]])
    assert stopped == [text[: text.index(text[1])]]


def test_generate_refuses_what_does_not_fit(mu):
    with pytest.raises(ValueError, match="2 prompts but 1 entries of images"):
        generate(mu.config, mu.params, mu.tokenizer, ["a", "b"], [[PIXELS]])
    with pytest.raises(BadImage):
        generate(mu.config, mu.params, mu.tokenizer, ["a"], [[b"not a picture"]])


def test_a_chat_remembers_what_was_said(mu):
    engine = Engine(mu.config, mu.params, mu.processor)
    chat = Chat(engine, max_new_tokens=4)
    first = chat.ask("What shape is shown?", [PIXELS])
    half = chat.stream("no")
    next(half, None)
    half.close()
    assert len(chat.segments) == 3
    second = chat.ask("да")
    asked = (as_image(PIXELS), Text("What shape is shown?", role="user"), Text(first, role="assistant"))
    assert engine.generate([Example((*asked, Text("да", role="user")))], max_new_tokens=4) == [second]
    assert chat.segments == (*asked, Text("да", role="user"), Text(second, role="assistant"))


def test_samples_of_a_turn_leave_the_dialogue_as_it_is(mu):
    chat = Chat(Engine(mu.config, mu.params, mu.processor), max_new_tokens=4, sampler=Sampler(2.0))
    texts = ["", "", ""]
    for piece in chat.pieces("no", [PIXELS], samples=3):
        texts[piece.sample] += piece.text
    assert len(set(texts)) > 1
    assert chat.segments == ()
    assert chat.ask("no", [PIXELS]) == texts[0]
