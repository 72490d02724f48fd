"""Where a run's time goes, and what its batches ask of the model."""

import dataclasses
import json
import time
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from test_step_clock import Result

from vlm_jax.batch import Batch
from vlm_jax.models.flops import stage_flops
from vlm_jax.models.presets import vlm_mu
from vlm_jax.models.vlm import VLM
from vlm_jax.models.work import work_of
from vlm_jax.training.efficiency import PARTS, Meter, peak_of_all, read_began
from vlm_jax.training.recorder import Interval

ROWS, LENGTH = 2, 24


def batch(examples):
    """Rows of so many examples each, without pictures."""
    spec = Batch.spec(ROWS, LENGTH)
    arrays = {name: None if leaf is None else np.zeros(leaf.shape, leaf.dtype) for name, leaf in vars(spec).items()}
    size = LENGTH // examples
    arrays["segment_ids"] += np.arange(1, examples + 1).repeat(size).astype(np.int32)
    arrays["positions"] += (np.arange(LENGTH) % size).astype(np.int32)
    return Batch(**arrays)


class Batches:
    def __init__(self, seconds=0.0):
        self.seconds, self.drawn = seconds, 0

    def __next__(self):
        time.sleep(self.seconds)
        self.drawn += 1
        return batch(self.drawn), None

    def get_state(self):
        return {"drawn": self.drawn}

    def sum_up(self, info):
        return info


def meter_of(began=None, process_began=None, last_line=None, peak=None, cached=False):
    config = vlm_mu()
    stage = SimpleNamespace(data=SimpleNamespace(rows=ROWS), cache_features=cached)
    rules = SimpleNamespace(rate=1.0)

    class Everything(dict):
        def __missing__(self, name):
            return rules

    program = SimpleNamespace(model=VLM(config), stage=stage, rules=Everything())
    now = time.time()
    return Meter(program, began or now, process_began or now, last_line, peak)


@pytest.fixture
def meter():
    meter = meter_of()
    yield meter
    meter.close()


def interval(steps, seconds=1.0):
    return Interval(steps, seconds, {}, None)


def spent(meter, steps=1):
    return meter.figures(interval(steps))["spent"]


def test_while_the_devices_work_the_time_is_the_step_s(meter):
    """A step of 0.3 s, during which a batch is drawn in 0.1 s and something is saved for 0.1 s."""
    batches, saving = meter.batches(Batches(0.1)), meter.hook("checkpoint", lambda event: time.sleep(0.1))
    result = Result()
    step = meter.step(lambda state, batch: (state, {"loss": result}))
    drawn, _ = next(batches)
    step(None, drawn)
    saving(None)
    next(batches)
    time.sleep(0.1)
    result.end()
    found = spent(meter, 2)
    assert found["step"] == pytest.approx(0.3, abs=0.08)
    assert found["data"] == pytest.approx(0.1, abs=0.04)  # the first batch, for which the devices waited
    assert found["checkpoint"] == pytest.approx(0, abs=0.02)


def test_while_they_wait_it_is_that_of_what_the_host_does(meter):
    batches, done = meter.batches(Batches(0.1)), Result()
    done.end()
    step = meter.step(lambda state, batch: (state, {"loss": done}))
    hooks = [meter.hook(part, lambda event: time.sleep(0.05)) for part in ("checkpoint", "validation")]
    for _ in range(2):
        step(None, next(batches)[0])
        for hook in hooks:
            hook(None)
    found = spent(meter, 2)
    assert found["data"] == pytest.approx(0.2, abs=0.05)
    assert found["checkpoint"] == pytest.approx(0.1, abs=0.04)
    assert found["validation"] == pytest.approx(0.1, abs=0.04)
    assert found["step"] == pytest.approx(0, abs=0.05)


def test_compiling_is_no_step(meter):
    import jax

    def compiles(state, batch):
        time.sleep(0.1)
        return state, {"loss": jax.jit(lambda x: x * time.time())(jnp.ones(3))}

    meter.step(compiles)(None, None)
    found = spent(meter)
    assert found["compile"] > 0.1
    assert found["step"] < 0.1


def test_parts_add_up_to_all_time_since_the_run_began():
    """Ten seconds ago it began; a line accounts for three of them, and five ago this process took over."""
    now = time.time()
    before = {"spent": {"step": 2.0, "data": 1.0}}
    meter = meter_of(now - 10, now - 5, before)
    next(meter.batches(Batches()))
    figures = meter.figures(interval(1))
    meter.close()
    found = figures["spent"]
    assert tuple(found) == PARTS
    assert sum(found.values()) == pytest.approx(time.time() - (now - 10), abs=0.1)
    assert found["lost"] == pytest.approx(2.0, abs=0.05)
    assert found["start"] == pytest.approx(5.0, abs=0.1)
    assert (found["step"], found["data"]) == (2.0, pytest.approx(1.0, abs=0.1))
    assert figures["goodput"] == pytest.approx(2 / 10, abs=0.01)


def test_from_stage_to_stage_nothing_is_lost():
    now = time.time()
    meter = meter_of(now - 10, now - 9, {"spent": {"step": 6.0, "start": 2.0}})
    next(meter.batches(Batches()))
    found = spent(meter)
    meter.close()
    assert found["lost"] == 0
    assert found["start"] == pytest.approx(4.0, abs=0.1)


def test_flops_are_those_of_the_batches_of_the_line():
    meter = meter_of(peak=1e6)
    batches, config = meter.batches(Batches()), vlm_mu()
    step = meter.step(lambda state, batch: (state, {"loss": jnp.zeros(())}))
    drawn = []
    for _ in range(2):
        drawn.append(next(batches)[0])
        step(None, drawn[-1])
    work = work_of(config, drawn[0]) + work_of(config, drawn[1])
    figures = meter.figures(interval(2, seconds=4.0))
    wanted = stage_flops(config, None, ROWS, LENGTH, 0, work).total
    assert figures["model_flops"] == pytest.approx(wanted, rel=1e-12)
    assert figures["model_flops_per_second"] == pytest.approx(wanted / 4)
    assert figures["mfu"] == pytest.approx(wanted / 4 / 1e6)
    next(batches)  # of a step that is passed over
    step(None, next(batches)[0])
    fourth = meter.figures(interval(1))["model_flops"]
    alone = work_of(config, batch(4))
    assert fourth == pytest.approx(stage_flops(config, None, ROWS, LENGTH, 0, alone).total, rel=1e-12)
    meter.close()


def test_the_time_of_skipped_steps_is_lost(meter):
    batches, result = meter.batches(Batches()), Result()
    step = meter.step(lambda state, batch: (state, {"loss": result}))
    step(None, next(batches)[0])
    time.sleep(0.2)
    result.end()
    found = meter.figures(dataclasses.replace(interval(4), skipped=3))["spent"]
    assert found["step"] > 0.03
    assert found["lost"] == pytest.approx(3 * found["step"], abs=0.01)


def test_without_a_known_peak_there_is_no_mfu(meter):
    next(meter.batches(Batches()))
    assert "mfu" not in meter.figures(interval(1))
    assert peak_of_all() is None


def test_the_loop_sees_what_it_saw_before(meter):
    class Saving:
        long = True

        def __call__(self, event):
            event.append("saved")

    events = []
    hook = meter.hook("checkpoint", Saving())
    hook(events)
    assert (events, hook.long, hook.__name__) == (["saved"], True, "Saving")
    batches = meter.batches(Batches())
    next(batches)
    assert batches.get_state() == {"drawn": 1}
    assert batches.sum_up("info") == "info"


def test_when_the_run_began_is_kept(tmp_path):
    path = epath.Path(tmp_path)
    assert read_began(path, 100.0) == 100.0
    assert read_began(path, 200.0) == 100.0
    (tmp_path / "began.json").write_text('{"beg')
    assert read_began(path, 300.0) == 300.0
    assert json.loads((tmp_path / "began.json").read_text()) == {"began": 300.0}
