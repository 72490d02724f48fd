import dataclasses

import jax
import numpy as np
import pytest

from data_pipelines.examples import Example, Text
from vlm_jax.batch import Batch
from vlm_jax.errors import UserError
from vlm_jax.generation import Engine
from vlm_jax.models.vlm import VLM

ANSWERS = ["no", "да", "a circle", "", "красный круг", "yes, it is"]


@pytest.fixture(scope="module")
def engine(mu):
    return Engine(mu.config, mu.params, mu.processor, rows=4)


def by_full_forward(mu, prompt, answer):
    """(log-likelihood, tokens, greedy), from the logits of prompt and answer as one linear dialogue."""
    example = Example((*prompt.trunk, Text(answer, loss=True, role="assistant")))
    rendered = mu.processor.render(example)
    length = 64
    images = np.zeros((1, 2, *mu.config.image_size, 3), np.uint8)
    for slot, image in enumerate(rendered.images):
        images[0, slot] = mu.processor.pixels(image)

    def plane(values, padding=0):
        row = np.full((1, length), padding, np.int32)
        row[0, : rendered.length] = values
        return row

    zeros = plane(0)
    batch = Batch(
        tokens=plane(rendered.tokens),
        targets=zeros,
        loss_weights=zeros.astype(np.float32),
        segment_ids=plane(1),
        branch_ids=zeros,
        block_ids=plane(rendered.block_ids),
        positions=plane(rendered.positions),
        example_index=zeros,
        source_ids=np.zeros((1, 1), np.int32),
        images=images,
        visual_index=plane(rendered.visual_index, -1),
    )
    logits = np.asarray(jax.jit(lambda p, b: VLM(mu.config).apply({"params": p}, b).logits)(mu.params, batch))[0]
    logits = logits[:, : mu.tokenizer.vocabulary_size].astype(np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    own = np.flatnonzero(rendered.loss)
    tokens = rendered.tokens[own]
    return logits[own - 1, tokens].sum(), len(own), bool((logits[own - 1].argmax(-1) == tokens).all())


def test_scores_are_those_of_the_linear_dialogue(mu, engine, prompts):
    asked = [prompts[0], prompts[2], prompts[4]]
    found = engine.score(asked, [ANSWERS, ANSWERS[1:3], ANSWERS[:1]])
    assert [len(row) for row in found] == [len(ANSWERS), 2, 1]
    for number, place in ((0, 0), (0, 2), (0, 3), (0, 4), (1, 1), (2, 0)):
        answer = ([ANSWERS, ANSWERS[1:3], ANSWERS[:1]])[number][place]
        likelihood, tokens, greedy = by_full_forward(mu, asked[number], answer)
        score = found[number][place]
        assert score.log_likelihood == pytest.approx(likelihood, abs=2e-3)
        assert (score.tokens, score.greedy) == (tokens, greedy)


def test_what_greedy_generation_says_is_what_is_called_greedy(engine, prompts):
    said = engine.generate(prompts, max_new_tokens=24)
    whole = [
        (prompt, text)
        for prompt, text in zip(prompts, said, strict=True)
        if "\ufffd" not in text and len(engine.processor.tokenizer.encode(text)) < 20
    ]
    assert whole, "no prompt of these gets an answer that ends by itself"
    scores = engine.score([prompt for prompt, _ in whole], [[text, text + "!"] for _, text in whole])
    ways = [len(engine.processor.tokenizer.encode(text)) for _, text in whole]
    for (own, other), count in zip(scores, ways, strict=True):
        # The same text may have been written in other tokens than the tokenizer's own choice.
        if own.tokens == count + 1 and own.greedy:
            assert own.log_likelihood > other.log_likelihood - 1e-3
        assert not other.greedy
    assert any(own.greedy for own, _ in scores)


def test_scores_depend_neither_on_other_answers_nor_on_rows(engine, prompts):
    whole = engine.score([prompts[1], prompts[3]], [ANSWERS, ANSWERS])
    (alone,) = engine.score([prompts[3]], [["a circle"]])[0]
    assert alone.log_likelihood == pytest.approx(whole[1][2].log_likelihood, abs=1e-3)
    # So many answers that they need several rows.
    many = engine.score([prompts[1]], [ANSWERS * 40])[0]
    assert len(many) == 6 * 40
    for place in (0, 100, 239):
        assert many[place].log_likelihood == pytest.approx(whole[0][place % 6].log_likelihood, abs=1e-3)


def test_nothing_asked_is_nothing_scored(engine, prompts):
    assert engine.score([], []) == []
    assert engine.score([prompts[1], prompts[1]], [[], ["no"]])[0] == []
    with pytest.raises(ValueError, match="2 prompts but 1 entries of answers"):
        engine.score([prompts[1]] * 2, [["no"]])


def test_prompt_and_answer_must_fit_into_the_context(mu, prompts):
    length = mu.processor.render(prompts[1], open_turn="assistant").length
    decoder = dataclasses.replace(mu.config.decoder, context=length + 2)
    engine = Engine(dataclasses.replace(mu.config, decoder=decoder), mu.params, mu.processor)
    with pytest.raises(UserError, match=f"tokens, but the model's context is {length + 2}; shorten"):
        engine.score([prompts[1]], [["a long answer"]])
