"""An adapter that reads the question: prompts bring it along."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.errors import UserError
from vlm_jax.generation import Engine, as_image, question
from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.adapters import QFormerAdapterConfig
from vlm_jax.models.qformer import QFormerConfig
from vlm_jax.models.vlm import VLM
from vlm_jax.parallel import abstract_params

LENGTH = 48


@pytest.fixture(scope="module")
def engine(mu):
    config, processor = mu.config, mu.processor
    size = processor.tokenizer.vocabulary_size
    qformer = QFormerConfig(12, 2, 2, 20, text=True, text_vocabulary=size, text_length=LENGTH)
    config = dataclasses.replace(config, adapter=QFormerAdapterConfig(4, qformer, LENGTH))
    rng = np.random.default_rng(0)
    shapes = abstract_params(boxed_params(build_model(config)))
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), shapes)
    processor = dataclasses.replace(processor, prompt_tokens=config.prompt_tokens, pictures=config.pictures)
    return Engine(config, params, processor)


@pytest.fixture(scope="module")
def picture():
    return as_image(np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8))


def test_visual_tokens_are_those_of_the_question(engine, picture):
    asked = question("Круг?", [picture])
    rendered = engine.render(asked)
    batch = engine._batch([rendered], engine._encode([rendered]))
    np.testing.assert_array_equal(batch.instructions[0, 0], rendered.instruction)
    assert (rendered.instruction != 0).sum() > 3

    def embedded(instructions):
        changed = dataclasses.replace(batch, instructions=instructions)
        return np.asarray(VLM(engine.config).apply({"params": engine.params}, changed, method="embed"))[0]

    visual = np.asarray(batch.visual_index[0]) >= 0
    there, other = embedded(batch.instructions), embedded(np.where(batch.instructions != 0, 5, 0))
    assert np.abs(there - other)[visual].max() > 1e-3
    np.testing.assert_array_equal(there[~visual], other[~visual])


def test_answers_do_not_depend_on_company(engine, picture):
    prompts = [question("Круг?", [picture]), question("да, no?", [picture])]
    together = engine.generate(prompts, max_new_tokens=6)
    assert together == [engine.generate([prompt], max_new_tokens=6)[0] for prompt in prompts]
    assert len(set(together)) > 1


def test_a_question_that_is_too_long_is_one_line(engine, picture):
    with pytest.raises(UserError, match=rf"its instruction has \d+ tokens, but the adapter reads {LENGTH}") as error:
        engine.count_tokens(question("Круг? " * LENGTH, [picture]))
    assert "\n" not in str(error.value)
    assert engine.count_tokens(question("Круг? " * LENGTH)) > LENGTH  # without a picture nobody reads it
