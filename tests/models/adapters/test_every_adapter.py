"""What every adapter has to do, in the smallest experiment whose packed rows hold several pictures: each of
`presets.ADAPTERS`, and with its defaults each of the union that has no entry there.
"""

import dataclasses
import itertools
import shutil
import typing
from types import SimpleNamespace

import few_steps
import jax
import numpy as np
import pytest
from flax import traverse_util

from data_pipelines.images import ImagePreprocessing
from data_pipelines.kinds import Captions, Interleaved
from data_pipelines.loader import make_loader
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.prepare.shards import write_set
from data_pipelines.sources import ArrayRecords, EasyVQA, open_source
from data_pipelines.template import Processor, TemplateConfig
from data_pipelines.tokenizers import SentencePieceConfig, train_sentencepiece
from vlm_jax.config import Checkpoints, Experiment, Stage
from vlm_jax.generation import Engine, question
from vlm_jax.generation.batches import prompt_batch
from vlm_jax.models.adapters import AdapterConfig
from vlm_jax.models.presets import ADAPTERS, vlm_mu, with_adapter
from vlm_jax.models.vlm import VLM
from vlm_jax.optim import OptimizerConfig, Rule, Schedule
from vlm_jax.parallel import MeshConfig
from vlm_jax.training.recipe import train

STEPS, NEW = 10, 5
RESUMED = ("hybrid",)
VARIANTS = {"idefics2_resampler", "resampled_cross_attention", "llama_cross_attention"}
"""Their parts generate among the others, and their originals' answers are compared elsewhere."""
MODELS = {name: with_adapter(vlm_mu(), name) for name in ADAPTERS}
MODELS |= {
    kind.__name__: dataclasses.replace(vlm_mu(), adapter=kind())
    for kind in typing.get_args(AdapterConfig)
    if kind not in {type(model.adapter) for model in MODELS.values()}
}


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled():
    """For the fixtures of this module, which are made before the ones of single tests."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Pages of two pictures and captions of one, several a row; the encoder is frozen."""
    pictures = EasyVQA("validation", ("en",), validation_images=24, pictures="described", name="captions")
    source = open_source(pictures)
    records = [source[index] for index in range(len(source))]
    pages = [
        {"id": f"page/{n}", "language": "en", "segments": [part for r in records[n : n + 2] for part in segments(r)]}
        for n in range(0, 24, 2)
    ]
    directory = tmp_path_factory.mktemp("pages")
    write_set(directory / "pages", pages, config={})
    mixture = (
        MixtureEntry(ArrayRecords(str(directory / "pages"), name="pages"), Interleaved()),
        MixtureEntry(pictures, Captions()),
    )
    data = DataConfig(mixture, rows=4, length=176, images=5)
    table = (Rule("^encoder/", rate=0.0), Rule(".*"))
    return Stage("mixed", data, STEPS, OptimizerConfig(schedule=Schedule(peak=5e-3, shape="constant"), table=table))


def segments(record):
    return [{"image": record["image"]}, {"text": record["captions"][0]["text"]}]


@pytest.fixture(scope="module")
def tokenizer(stage):
    """Of the captions."""
    source = open_source(stage.data.mixture[1].source)
    texts = [caption["text"] for n in range(len(source)) for caption in source[n]["captions"]]
    return train_sentencepiece(texts, SentencePieceConfig(vocabulary_size=300))


@pytest.fixture(scope="module", params=MODELS)
def trained(request, stage, tokenizer):
    """A model after a few steps on packed rows: what went in and what came out."""
    config = MODELS[request.param]
    processor = Processor(
        tokenizer, TemplateConfig(), ImagePreprocessing(), config.image_size, config.prompt_tokens, config.pictures
    )
    loader = make_loader(stage, processor, seed=0)
    batches = [batch for batch, _ in itertools.islice(loader, STEPS)]
    loader.close()
    losses, before, state = few_steps.train(config, MeshConfig(), batches, stage.optimizer)
    return SimpleNamespace(
        config=config,
        processor=processor,
        batch=batches[0],
        losses=losses,
        before=before,
        state=state,
        params=state.params,
    )


def leaves(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def test_the_loss_falls_and_every_parameter_of_the_adapter_moves_but_none_of_the_frozen_encoder(trained):
    assert np.mean(trained.losses[-3:]) < trained.losses[0] - 0.5
    before, after = leaves(trained.before), leaves(trained.params)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    own = {name for name in before if name.startswith("adapter/")}
    assert own
    assert own <= moved
    assert set(leaves(trained.state.frozen)) == {name for name in before if name.startswith("encoder/")}
    assert not [name for name in moved if name.startswith("encoder/")]
    moments = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(trained.state.optimizer)]
    assert any("adapter" in name for name in moments)
    assert not any("encoder" in name for name in moments)


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_ends_at_the_same_bits(name, stage, tmp_path):
    stage = dataclasses.replace(stage, steps=4)
    tokens, often = SentencePieceConfig(vocabulary_size=300), Checkpoints(every=2)
    experiment = Experiment(name, MODELS[name], (stage,), tokenizer=tokens, checkpoints=often)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(experiment, straight)
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "checkpoints" / "mixed" / "4")
    train(experiment, resumed)
    for file in ("checksums.json", "data.json"):
        at = f"checkpoints/mixed/4/files/{file}"
        assert (resumed / at).read_bytes() == (straight / at).read_bytes()


def owners(config, batch):
    """{(row, image slot): the example whose positions it fills or may be seen from}, by the batch's own fields."""
    found: dict[tuple[int, int], set[int]] = {}
    rows, slots = batch.images.shape[:2]
    for row in range(rows):
        for slot in range(slots):
            reached = np.zeros(batch.tokens.shape[1], bool)
            if batch.visual_index is not None:
                reached |= (batch.visual_index[row] >= 0) & (batch.visual_index[row] // config.prompt_tokens == slot)
            if batch.visible_images is not None:
                first, end = batch.visible_images[row].T
                reached |= (first <= slot) & (slot < end)
            found[row, slot] = set(batch.segment_ids[row][reached].tolist())
    return found


def test_pictures_of_an_example_reach_nothing_of_the_others_in_its_row(trained):
    config, params, batch = trained.config, trained.params, trained.batch
    forward = jax.jit(lambda batch: VLM(config).apply({"params": params}, batch).logits)
    before, belongs = np.asarray(forward(batch)), owners(config, batch)
    assert all(len(found) == (batch.image_ids[place] > 0) for place, found in belongs.items())
    examples = [(row, number) for (row, _), found in belongs.items() for number in found]
    several = [(row, number) for row, number in set(examples) if examples.count((row, number)) > 1]
    chosen = next((row, number) for row, number in several if any(r == row and n != number for r, n in examples))
    images = batch.images.copy()
    for place, found in belongs.items():
        if (place[0], *found) == chosen:
            images[place] = np.random.default_rng(0).integers(0, 256, images[place].shape)
    after = np.asarray(forward(dataclasses.replace(batch, images=images)))
    own = np.zeros(batch.tokens.shape, bool)
    own[chosen[0]] = batch.segment_ids[chosen[0]] == chosen[1]
    real = batch.segment_ids != 0
    np.testing.assert_array_equal(after[real & ~own], before[real & ~own])
    assert np.abs(after - before)[own].max() > 1e-4


def extended(rendered, tokens):
    """A rendered prompt with more tokens of text."""
    count = len(tokens)
    more = {
        "tokens": tokens,
        "loss": [0] * count,
        "positions": rendered.positions[-1] + 1 + np.arange(count),
        "visual_index": [-1] * count,
        "pictures": [-1] * count,
        **dict.fromkeys(("branch_ids", "block_ids"), [0] * count),
    }
    planes = {name: getattr(rendered, name) for name in more}
    longer = {name: np.concatenate([planes[name], more[name]]).astype(planes[name].dtype) for name in more}
    return dataclasses.replace(rendered, **longer)


@pytest.mark.parametrize("trained", [name for name in MODELS if name not in VARIANTS], indirect=True)
def test_generation_is_the_argmax_of_the_full_forward(trained, stage):
    config, processor, params = trained.config, trained.processor, trained.params
    pages = open_source(stage.data.mixture[0].source)
    engine = Engine(config, params, processor)
    prompt = question("a red", [pages[n]["segments"][0]["image"] for n in (0, 1)])
    rendered = engine.render(prompt)
    cut = zip(rendered.images, rendered.cuts, strict=True)
    slots = np.concatenate([processor.slots(*picture) for picture in cut])
    forward = jax.jit(lambda batch: VLM(config).apply({"params": params}, batch).logits)
    new: list[int] = []
    for _ in range(NEW):
        whole = extended(rendered, new)
        numbers, pad = [list(range(rendered.slots))], processor.tokenizer.pad_id
        batch, entries = prompt_batch([whole], numbers, 1, pad, config.prompt_tokens, config.pictures)
        logits = forward(dataclasses.replace(batch, images=slots[entries]))[0, whole.length - 1]
        new.append(int(np.argmax(logits[: processor.tokenizer.vocabulary_size])))
    assert engine.generate([prompt], max_new_tokens=NEW) == [engine.text(new)]
