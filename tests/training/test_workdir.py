"""Which workdir a run may use, which changes of the config it takes, and the processor that it keeps."""

import dataclasses
import json
from pathlib import Path

import pytest

from data_pipelines.words import script_of
from vlm_jax.config import load_experiment
from vlm_jax.errors import UserError
from vlm_jax.serialise import to_json
from vlm_jax.training.workdir import build_processor, open_workdir, prepare_processor, texts

TINY = Path(__file__).with_name("tiny_experiment.py")


@pytest.fixture(scope="module")
def tiny():
    return load_experiment(str(TINY))


@pytest.fixture
def begin(tiny, tmp_path):
    """Makes a workdir in which some of the tiny experiment's stages have saved a step."""

    def begin(*stages):
        open_workdir(tiny, tmp_path, False)
        for stage in stages:
            (tmp_path / "checkpoints" / stage / "2").mkdir(parents=True)
        return tmp_path

    return begin


def change_stage(experiment, index, **changes):
    stages = list(experiment.stages)
    stages[index] = dataclasses.replace(stages[index], **changes)
    return dataclasses.replace(experiment, stages=tuple(stages))


def test_a_new_workdir_keeps_the_config(tiny, tmp_path):
    path = open_workdir(tiny, tmp_path / "a" / "b", False)
    assert (path / "config.json").read_text() == to_json(tiny)
    assert open_workdir(tiny, path, False) == path


@pytest.mark.parametrize("place", ["run", "run/below", "run/config.json"])
def test_a_file_in_its_place_is_a_user_error(tiny, tmp_path, place):
    if place == "run/config.json":
        (tmp_path / place).mkdir(parents=True)
    else:
        (tmp_path / "run").write_text("")
    where = tmp_path / ("run" if place == "run/config.json" else place)
    with pytest.raises(UserError, match=r"--workdir .*run.* cannot be written .*choose another"):
        open_workdir(tiny, where, False)


def change_decoder(e, **fields):
    return dataclasses.replace(
        e, model=dataclasses.replace(e.model, decoder=dataclasses.replace(e.model.decoder, **fields))
    )


HARMLESS = {
    "log_every": lambda e: dataclasses.replace(e, log_every=7),
    "checkpoints": lambda e: dataclasses.replace(e, checkpoints=dataclasses.replace(e.checkpoints, every=3)),
    "name": lambda e: dataclasses.replace(e, name="another"),
    "bad_record_limit": lambda e: dataclasses.replace(e, bad_record_limit=0.5),
    "validation": lambda e: change_stage(e, 0, validation=e.stages[1].validation),
    "a later stage's steps": lambda e: change_stage(e, 1, steps=99),
    "remat": lambda e: change_decoder(e, remat="full"),
    "attention_kernel": lambda e: change_decoder(e, attention_kernel="xla"),
    "one more stage": lambda e: dataclasses.replace(
        e, stages=(*e.stages, dataclasses.replace(e.stages[1], name="more"))
    ),
}

HARMFUL = {
    "seed": lambda e: dataclasses.replace(e, seed=9),
    "stages.0.steps": lambda e: change_stage(e, 0, steps=99),
    "stages.0.data.rows": lambda e: change_stage(e, 0, data=dataclasses.replace(e.stages[0].data, rows=16)),
    "stages.0.optimizer.clip": lambda e: change_stage(
        e, 0, optimizer=dataclasses.replace(e.stages[0].optimizer, clip=9.0)
    ),
    "model.decoder.width": lambda e: dataclasses.replace(
        e, model=dataclasses.replace(e.model, decoder=dataclasses.replace(e.model.decoder, width=24))
    ),
    "tokenizer.character_coverage": lambda e: dataclasses.replace(
        e, tokenizer=dataclasses.replace(e.tokenizer, character_coverage=0.9)
    ),
    "stages.1.steps": lambda e: dataclasses.replace(e, stages=e.stages[::-1]),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_change_is_taken_and_kept(tiny, begin, name):
    workdir, changed = begin("captions"), HARMLESS[name](tiny)
    open_workdir(changed, workdir, False)
    assert (workdir / "config.json").read_text() == to_json(changed)


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_change_is_refused_by_its_field_unless_it_is_allowed(tiny, begin, name, caplog):
    workdir = begin("captions")
    changed = HARMFUL[name](tiny)
    with pytest.raises(UserError) as caught:
        open_workdir(changed, workdir, False)
    message = str(caught.value)
    assert name in message
    assert "--allow-config-change" in message
    assert "\n" not in message
    assert (workdir / "config.json").read_text() == to_json(tiny)
    with caplog.at_level("WARNING"):
        open_workdir(changed, workdir, True)
    assert name in caplog.text
    assert (workdir / "config.json").read_text() == to_json(changed)


def test_a_stage_that_has_saved_nothing_may_change(tiny, begin):
    workdir = begin()
    (workdir / "checkpoints" / "captions").mkdir(parents=True)
    (workdir / "checkpoints" / "captions" / "2.orbax-checkpoint-tmp").mkdir()
    open_workdir(HARMFUL["seed"](tiny), workdir, False)


def test_once_the_second_stage_has_begun_its_steps_stay(tiny, begin):
    with pytest.raises(UserError, match=r"stages\.1\.steps: 12 -> 99"):
        open_workdir(change_stage(tiny, 1, steps=99), begin("captions", "instruct"), False)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"{}", b'{"stages": 3}', b'{"stages": [3]}'])
def test_a_damaged_config_is_one_line(tiny, begin, content):
    workdir = begin("captions")
    (workdir / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json: damaged"):
        open_workdir(tiny, workdir, False)


def test_the_processor_is_kept_and_not_trained_again(tiny, begin):
    workdir = begin("captions")
    first = prepare_processor(tiny, open_workdir(tiny, workdir, False))
    content = (workdir / "processor" / "tokenizer.model").read_bytes()
    again = prepare_processor(tiny, open_workdir(tiny, workdir, False))
    assert (workdir / "processor" / "tokenizer.model").read_bytes() == content
    text = "What color is the shape? Какого цвета фигура?"
    assert again.tokenizer.encode(text) == first.tokenizer.encode(text)
    assert (again.template, again.images, again.image_size) == (first.template, first.images, first.image_size)


def test_a_config_changed_before_the_first_save_gets_a_processor_of_its_own(tiny, begin):
    workdir = begin()
    prepare_processor(tiny, open_workdir(tiny, workdir, False))
    larger = dataclasses.replace(
        tiny,
        tokenizer=dataclasses.replace(tiny.tokenizer, vocabulary_size=350),
        model=dataclasses.replace(tiny.model, decoder=dataclasses.replace(tiny.model.decoder, vocabulary_size=350)),
    )
    assert prepare_processor(larger, open_workdir(larger, workdir, False)).tokenizer.vocabulary_size == 350


def test_a_processor_is_a_pure_function_of_the_experiment(tiny, tmp_path):
    for name in "ab":
        build_processor(tiny).save(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert json.loads((tmp_path / "a" / "processor.json").read_text())["image_size"] == [32, 32]


def test_the_tokenizer_sees_the_texts_of_all_stages(tiny):
    every = " ".join(texts(tiny))
    assert "?" in every
    assert any("а" <= letter <= "я" for letter in every)


def sampled(experiment, **tokenizer):
    config = dataclasses.replace(experiment.tokenizer, **tokenizer)
    return list(texts(dataclasses.replace(experiment, tokenizer=config)))


def test_the_tokenizers_sample_is_bounded_and_by_the_mixtures_shares(tiny):
    assert 4_000 <= sum(map(len, sampled(tiny, sample=4_000))) < 4_500
    assert sampled(tiny, sample=4_000) == sampled(tiny, sample=4_000)
    assert sampled(tiny, sample=4_000) != sampled(dataclasses.replace(tiny, seed=5), sample=4_000)
    captions = dataclasses.replace(tiny, stages=tiny.stages[:1])
    data = captions.stages[0].data
    shares = []
    for weight in (1.0, 3.0):
        english, russian = data.mixture
        mixture = (dataclasses.replace(english, weight=weight), russian)
        changed = change_stage(captions, 0, data=dataclasses.replace(data, mixture=mixture))
        counts = {True: 0, False: 0}
        for text in sampled(changed, sample=1_200):
            counts[script_of(text) == "latin"] += len(text)
        shares.append(counts[True] / sum(counts.values()))
    assert shares == [pytest.approx(0.5, abs=0.06), pytest.approx(0.75, abs=0.06)]


def test_what_two_stages_share_is_sampled_once(tiny):
    twice = dataclasses.replace(tiny, stages=(tiny.stages[0], dataclasses.replace(tiny.stages[0], name="again")))
    once = dataclasses.replace(tiny, stages=tiny.stages[:1])
    assert sampled(twice, sample=10**9) == sampled(once, sample=10**9)
