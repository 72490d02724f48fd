"""Batches that really spoil a step, under each policy: what is skipped leaves no trace, and a resume skips the same."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from data_pipelines.kinds import TextOnly
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.sources import JSONLines
from data_pipelines.tokenizers import SentencePieceConfig
from vlm_jax.batch import BatchInfo
from vlm_jax.checkpoints import CheckpointManager, initialise_missing, read_step_files
from vlm_jax.checkpoints.files import read_files
from vlm_jax.config import Checkpoints, Experiment, LossPolicy, Stage
from vlm_jax.errors import RunError, UserError
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vlm import VLM, VLMConfig
from vlm_jax.optim import OptimizerConfig, Rule, Schedule, assign_rules, build_optimizer
from vlm_jax.parallel import MeshConfig, build_layout
from vlm_jax.serialise import to_json
from vlm_jax.training.loss_policy import LossGuard
from vlm_jax.training.loss_watch import first_watch
from vlm_jax.training.recipe import train
from vlm_jax.training.state import create_state
from vlm_jax.training.step import pass_over, train_step
from vlm_jax.training.workdir import build_processor

PLAIN, ODD = "the duck swims on the pond and the duck sings", "☃ ☃ zq xk jv wq ☃ kz qx ☃ vj"
STEPS, BAD = 16, 12
SEED = 1
SPIKES = {"spike_factor": 4.0, "spike_steps": 4}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """One strange text among many that are all alike."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    records = [{"id": f"t{i}", "text": ODD if i == 5 else PLAIN} for i in range(STEPS)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def experiment_on(texts, **policy):
    data = DataConfig((MixtureEntry(JSONLines(texts, name="texts"), TextOnly()),), rows=1, length=48, images=0)
    decoder = DecoderConfig(
        320, width=16, layers=1, heads=2, key_value_heads=2, head_size=8, mlp_width=32, tied_embeddings=False
    )
    optimizer = OptimizerConfig(schedule=Schedule(peak=0.05, shape="constant"))
    return Experiment(
        name="poisoned",
        model=VLMConfig(decoder=decoder),
        tokenizer=SentencePieceConfig(vocabulary_size=288),
        stages=(Stage("text", data, steps=STEPS, optimizer=optimizer),),
        checkpoints=Checkpoints(every=1, keep_last=STEPS + 1),
        loss_policy=LossPolicy(**policy),
        log_every=3,
        seed=SEED,
    )


@pytest.fixture(scope="module")
def spoilt(texts, tmp_path_factory):
    """{name: a model of which one token's embedding is infinite}: the snowman's, or that of a word in every text."""
    experiment = experiment_on(texts)
    layout, processor = build_layout(experiment.mesh), build_processor(experiment)
    params = initialise_missing(VLM(experiment.model), layout, 0)
    odd, plain = (set(processor.tokenizer.encode(text)) for text in (ODD, PLAIN))
    made = {}
    for name, token in {"one": min(odd - plain), "all": max(plain - odd)}.items():
        workdir = tmp_path_factory.mktemp(name)
        processor.save(workdir / "processor")
        (workdir / "config.json").write_text(to_json(experiment))
        files = {f"processor/{name}": content for name, content in read_files(workdir / "processor").items()}
        embedding = params["decoder"]["embedding"].at[token].set(np.inf)
        harmed = {**params, "decoder": {**params["decoder"], "embedding": embedding}}
        manager = CheckpointManager(workdir / "checkpoints" / "text")
        manager.save(1, harmed, {"count": np.zeros(1)}, {}, {"config.json": to_json(experiment).encode(), **files})
        manager.close()
        made[name] = workdir
    return made


def build(cause, action, texts, spoilt, **limits):
    """An experiment that meets a bad batch at step BAD."""
    experiment = experiment_on(texts, **{cause: action}, **limits, **(SPIKES if cause == "spike" else {}))
    if cause == "spike":
        return experiment
    stage = dataclasses.replace(experiment.stages[0], start_from=str(spoilt["one"]))
    return dataclasses.replace(experiment, stages=(stage,))


CASES = [(cause, action) for cause in ("nonfinite", "spike") for action in ("skip", "roll_back")]


@pytest.fixture(scope="module")
def runs(texts, spoilt, tmp_path_factory):
    """{(cause, action): the workdir of an undisturbed run}; not to be changed."""
    jax.config.update("jax_disable_most_optimizations", True)
    workdirs = {}
    for case in CASES:
        workdirs[case] = tmp_path_factory.mktemp("-".join(case)) / "run"
        train(build(*case, texts, spoilt), workdirs[case])
    return workdirs


def sums(workdir, step, item=""):
    """Checksums of the arrays of a step."""
    found = json.loads((workdir / "checkpoints" / "text" / str(step) / "files" / "checksums.json").read_text())
    return {name: value for name, value in found.items() if name.startswith(item or ("params/", "optimizer/"))}


def events(workdir):
    return [json.loads(line) for line in (workdir / "events.jsonl").read_text().splitlines()]


def lines(workdir):
    return {line["step"]: line for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_bad_step_leaves_parameters_and_optimiser_as_they_were_and_others_do_not(runs, case):
    assert sums(runs[case], BAD) == sums(runs[case], BAD - 1)
    for step in (BAD - 1, BAD + 1, STEPS):
        assert sums(runs[case], step, "params/") != sums(runs[case], step - 1, "params/")
    position = [
        read_step_files(runs[case] / "checkpoints" / "text" / str(step))["data.json"] for step in (BAD - 1, BAD)
    ]
    assert position[0] != position[1]


@pytest.mark.parametrize("cause", ["nonfinite", "spike"])
def test_to_skip_and_to_roll_back_end_in_the_same_bits(runs, cause):
    """They are different programs: one computes the bad step and drops it, the other never does it."""
    skipped, rolled_back = runs[cause, "skip"], runs[cause, "roll_back"]
    assert sums(skipped, STEPS) == sums(rolled_back, STEPS)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_an_event_has_its_line_with_values_and_examples(runs, case):
    (event,) = events(runs[case])
    cause, action = case
    assert (event["event"], event["cause"], event["stage"], event["step"]) == (action, cause, "text", BAD)
    assert event["example_ids"] == [["t5"]]
    if cause == "spike":
        assert event["loss"] > event["spike_limit"] > 0
    else:
        assert event["loss"] == "nan"


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_metrics_count_skipped_steps_and_leave_their_losses_out(runs, case):
    found = lines(runs[case])
    assert {step: line["skipped"] for step, line in found.items()} == {
        step: int(step >= BAD) for step in found if step != BAD or case[1] == "skip"
    }
    assert all(np.isfinite(line["loss"]) and line["loss"] < 6 for line in found.values())
    assert list(found) == sorted(found)


@pytest.mark.parametrize("case", CASES[1:], ids="-".join)
@pytest.mark.parametrize("kept", [BAD - 3, BAD + 1], ids=["before", "after"])
def test_a_run_killed_before_or_after_the_bad_step_goes_on_to_the_same_bits(runs, texts, spoilt, tmp_path, case, kept):
    """What a kill leaves: checkpoints up to one, and logs that know more already."""
    workdir = shutil.copytree(runs[case], tmp_path / "run")
    for step in (workdir / "checkpoints" / "text").iterdir():
        if int(step.name) > kept:
            shutil.rmtree(step)
    train(build(*case, texts, spoilt), workdir)
    for step in (BAD, STEPS):
        assert sums(workdir, step) == sums(runs[case], step)
    assert events(workdir) == events(runs[case])
    assert lines(workdir).keys() == lines(runs[case]).keys()


def test_what_a_spike_is_goes_on_from_a_checkpoint_exactly(runs):
    """Mean and variance are files of a checkpoint; a step that was skipped does not move them."""
    watches = {
        step: read_step_files(runs["spike", "skip"] / "checkpoints" / "text" / str(step))["loss_watch.json"]
        for step in range(1, STEPS + 1)
    }
    assert watches[BAD] == watches[BAD - 1] != watches[BAD - 2]
    assert json.loads(watches[STEPS])["steps"] == STEPS - 1


def test_a_spike_stops_the_run_where_the_policy_says_so(texts, spoilt, tmp_path):
    with pytest.raises(RunError, match=rf"step {BAD}: .* a spike .*events.jsonl"):
        train(build("spike", "stop", texts, spoilt), tmp_path)
    assert events(tmp_path)[0]["event"] == "stop"
    assert sorted(int(step.name) for step in (tmp_path / "checkpoints" / "text").iterdir()) == list(range(1, BAD))


@pytest.mark.parametrize("action", ["skip", "roll_back"])
def test_too_many_bad_steps_end_the_run_and_say_so(texts, spoilt, tmp_path, action):
    experiment = build("nonfinite", action, texts, {"one": spoilt["all"]}, most_in_a_row=2)
    with pytest.raises(RunError, match=r"3 steps in a row were at fault, .*step 3, .*most-in-a-row is 2") as caught:
        train(experiment, tmp_path)
    assert "\n" not in str(caught.value)
    assert [event["step"] for event in events(tmp_path)] == [1, 2, 3]


def test_limits_count_in_a_row_and_in_all(tmp_path):
    policy = LossPolicy(nonfinite="skip", most_in_a_row=2, most=3)
    guard, info = LossGuard(policy, epath.Path(tmp_path), "s"), BatchInfo((("a",),), (), {}, {}, {})
    bad = dict.fromkeys(("loss", "gradient_norm", "update_norm"), np.float32("nan"))
    good = dict.fromkeys(bad, np.float32(1))
    assert [guard.passes(n, good if n == 3 else bad, info) for n in range(1, 5)] == [False, False, True, False]
    with pytest.raises(RunError, match=r"4 steps were at fault, the last of them step 6, and loss-policy.most is 3"):
        guard.passes(6, bad, info)
    later = LossGuard(policy, epath.Path(tmp_path), "s", done=2)
    assert [later.skipped_until(n) for n in (1, 2, 6)] == [1, 2, 2]


SKIP = LossPolicy(nonfinite="skip")


def prepare(toy, table=(Rule(".*"),), optimizer=OptimizerConfig(), **options):
    """(state, step) of the toy model, in a stage of 10 steps."""
    config, layout = dataclasses.replace(optimizer, table=table), build_layout(MeshConfig())
    rules = assign_rules(config.table, toy.params())
    optimizer = build_optimizer(config, rules, 10)
    state = create_state(toy.params(), rules, optimizer, "float32", layout)
    known = {"objective": toy.objective(), "optimizer": optimizer, "rate": config.schedule.build(10)}
    return state, functools.partial(train_step, **known, **options)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("table", [(Rule(".*"),), (Rule("embedding", rate=0), Rule(".*"))], ids=["all", "frozen"])
def test_a_spoilt_part_of_a_batch_is_enough_to_skip_it_all(toy, table, accumulation):
    state, step = prepare(toy, table, accumulation=accumulation, policy=SKIP)
    step = jax.jit(step)
    good = toy.batch()
    weights = good.loss_weights.copy()
    weights[-1, 0] = np.nan
    before, _ = step(state, good)
    after, metrics = step(before, dataclasses.replace(good, loss_weights=weights))
    assert (float(metrics["skipped"]), int(after.step)) == (1, 2)
    kept = jax.tree.leaves((before.trained, before.frozen, before.optimizer))
    for a, b in zip(jax.tree.leaves((after.trained, after.frozen, after.optimizer)), kept, strict=True):
        np.testing.assert_array_equal(a, b)
    moved, metrics = step(after, good)
    assert float(metrics["skipped"]) == 0
    assert not np.array_equal(moved.params["head"]["kernel"], after.params["head"]["kernel"])


@pytest.mark.parametrize("how", ["skipped", "passed over"])
def test_the_schedule_goes_on_while_steps_are_skipped(toy, how):
    """SGD moves by rate x gradient, so what a step moves by tells its rate."""
    config = OptimizerConfig("sgd", schedule=Schedule(peak=1.0, shape="linear"), clip=0.0)
    state, step = prepare(toy, policy=SKIP, optimizer=config)
    good = toy.batch()
    spoilt = dataclasses.replace(good, loss_weights=np.full_like(good.loss_weights, np.nan))
    for _ in range(3):
        state = step(state, spoilt)[0] if how == "skipped" else pass_over(state)
    _, metrics = step(state, good)
    rate = float(metrics["update_norm"]) / float(metrics["gradient_norm"])
    assert rate == pytest.approx(float(metrics["learning_rate"]), rel=1e-5)
    assert rate == pytest.approx(1 - 3 / 10, rel=1e-5)


def test_mean_and_deviation_are_those_of_the_steps_then_forget_old_ones():
    losses = np.random.default_rng(0).normal(3, 1, 40).astype(np.float32)
    watch = first_watch(LossPolicy(spike="skip"), build_layout(MeshConfig()))
    for count, loss in enumerate(losses[:10], 1):
        watch = watch.after(loss, 10)
        assert int(watch.steps) == count
    np.testing.assert_allclose(float(watch.mean), losses[:10].mean(), rtol=1e-5)
    np.testing.assert_allclose(float(watch.variance), losses[:10].var(), rtol=1e-5)
    assert float(watch.limit(2.0)) == pytest.approx(losses[:10].mean() + 2 * losses[:10].std(), rel=1e-5)
    mean = losses[:10].astype(float).mean()
    for loss in losses[10:]:
        watch, mean = watch.after(loss, 10), 0.9 * mean + 0.1 * loss
    np.testing.assert_allclose(float(watch.mean), mean, rtol=1e-5)
    again = first_watch(LossPolicy(spike="skip"), build_layout(MeshConfig()), watch.to_json())
    for a, b in zip(jax.tree.leaves(watch), jax.tree.leaves(again), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_loss_that_hardly_moves_makes_no_spike_of_a_small_step():
    watch = first_watch(LossPolicy(spike="skip"), build_layout(MeshConfig()))
    for _ in range(20):
        watch = watch.after(np.float32(2.0), 10)
    assert 2.05 < float(watch.limit(5.0)) < 2.2


def test_the_default_policy_adds_nothing_to_the_step(toy):
    """The state has no further array, and the step's program is the same to the letter."""
    texts_of = {}
    for name, policy in {"default": {}, "named": {"policy": LossPolicy()}, "skip": {"policy": SKIP}}.items():
        state, step = prepare(toy, **policy)
        texts_of[name] = jax.jit(step).lower(state, toy.batch()).as_text()
        assert state.watch is None
    assert texts_of["default"] == texts_of["named"] != texts_of["skip"]


@pytest.mark.parametrize(
    "fields", [{"spike_factor": 0.0}, {"spike_steps": 1}, {"most": 0}, {"most_in_a_row": 0}], ids=str
)
def test_limits_without_sense_are_refused(fields):
    with pytest.raises(UserError, match="loss-policy"):
        LossPolicy(**fields)
