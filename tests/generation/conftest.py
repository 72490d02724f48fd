"""A mu model with random parameters, a tokenizer for it, and prompts of many forms."""

import dataclasses
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.examples import Example, Text
from data_pipelines.images import ImagePreprocessing
from data_pipelines.template import Processor, TemplateConfig
from data_pipelines.tokenizers import SentencePieceConfig, train_sentencepiece
from vlm_jax.batch import Batch
from vlm_jax.generation import as_image, question
from vlm_jax.models.presets import vlm_mu
from vlm_jax.models.vlm import VLM

TEXTS = ["What shape is shown?", "Какого цвета круг?", "Is there a red circle in the picture?", "да", "no", "жёлтый"]


@pytest.fixture(autouse=True)
def quick_compilation():
    """Most of the time of these tests is XLA's; they do not measure how well it optimises."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def mu():
    """config, params, processor: the decoder alternates full attention and a window, and sometimes ends an answer."""
    config = vlm_mu()
    decoder = config.decoder
    pattern = (decoder.pattern[0], dataclasses.replace(decoder.pattern[0], window=9))
    decoder = dataclasses.replace(decoder, pattern=pattern, layers=4)
    config = dataclasses.replace(config, decoder=decoder)
    tokenizer = train_sentencepiece(TEXTS, SentencePieceConfig(vocabulary_size=300))
    rows = Batch.spec(1, 8, images=1, image_size=config.image_size)
    shapes = nn.meta.unbox(jax.eval_shape(lambda b: VLM(config).init(jax.random.key(0), b), rows))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), shapes)
    params["adapter"]["layer_1"]["kernel"] *= 5.0
    # Now and then the end wins; ids that the tokenizer lacks would win nearly always, if they might.
    embedding = params["decoder"]["embedding"]
    embedding = embedding.at[tokenizer.end_id].mul(2.5).at[tokenizer.vocabulary_size :].mul(20.0)
    params["decoder"]["embedding"] = embedding
    processor = Processor(tokenizer, TemplateConfig(), ImagePreprocessing(), config.image_size, config.prompt_tokens)
    return SimpleNamespace(config=config, params=params, processor=processor, tokenizer=tokenizer)


def picture(seed):
    return as_image(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8))


@pytest.fixture(scope="session")
def prompts():
    """No, one or two pictures, shared or not; one turn or three. Each engine call on them compiles, so they are few."""
    pictures = [picture(seed) for seed in range(3)]
    dialogue = (Text(TEXTS[0], role="user"), Text("no", role="assistant"), Text(TEXTS[1], role="user"))
    return [
        question(TEXTS[0], [pictures[0]]),
        question(TEXTS[2]),
        question("да", [pictures[1], pictures[0]]),
        question(TEXTS[1], [pictures[1]]),
        Example(trunk=(pictures[2], *dialogue)),
        question(TEXTS[1], [pictures[2], pictures[2]]),
        question(""),
    ]
