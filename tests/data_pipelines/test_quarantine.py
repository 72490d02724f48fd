"""Unusable records are written down once, counted, and stop the run when they are too many."""

import json

import pytest

from data_pipelines.quarantine import Quarantine
from vlm_jax.errors import UserError


def test_a_record_is_written_and_counted_once(tmp_path):
    path = tmp_path / "deep" / "quarantine.jsonl"
    quarantine = Quarantine(path)
    for _ in range(3):
        quarantine.met("a", 1000)
        quarantine.add("a", "a/1", "no\nquestion")
    quarantine.add("b", "b/ключ", "пусто")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"source": "a", "id": "a/1", "reason": "no question"},
        {"source": "b", "id": "b/ключ", "reason": "пусто"},
    ]
    assert quarantine.counts() == {"a": 1, "b": 1}


def test_one_early_bad_record_does_not_stop_a_run():
    quarantine = Quarantine()
    quarantine.met("a")
    quarantine.add("a", "a/0", "bad")
    assert quarantine.counts() == {"a": 1}


def test_more_than_the_limit_of_a_source_stops_the_run():
    quarantine = Quarantine(limit=0.01)
    quarantine.expect("a", 1000)
    quarantine.met("a", 1000)
    for number in range(10):
        quarantine.add("a", f"a/{number}", "bad")
    with pytest.raises(UserError, match=r"'a': 11 of 1000 records .* limit of 1\.00%; .* a/10: too short"):
        quarantine.add("a", "a/10", "too short")


def test_exactly_the_limit_goes_on_over_many_epochs():
    quarantine = Quarantine(limit=0.01)
    quarantine.expect("a", 1000)
    for _ in range(50):
        for number in range(1000):
            quarantine.met("a")
            if number % 100 == 0:
                quarantine.add("a", f"a/{number}", "bad")
    assert quarantine.counts() == {"a": 10}


def test_a_bad_beginning_of_a_huge_source_stops_the_run_early():
    quarantine = Quarantine(limit=0.01)
    quarantine.expect("a", 10**9)
    quarantine.met("a", 100)
    for number in range(7):
        quarantine.add("a", f"a/{number}", "bad")
    with pytest.raises(UserError, match="8 of the first 100 records"):
        quarantine.add("a", "a/7", "bad")


def test_sources_are_judged_apart():
    quarantine = Quarantine(limit=0.01)
    quarantine.expect("good", 10**6)
    quarantine.expect("bad", 100)
    quarantine.met("good", 10**6)
    quarantine.met("bad", 100)
    for number in range(3):
        quarantine.add("bad", f"bad/{number}", "bad")
    with pytest.raises(UserError, match="'bad': 4 of 100"):
        quarantine.add("bad", "bad/3", "bad")


def test_a_resumed_run_remembers_and_mends_a_half_written_line(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path).add("a", "a/1", "bad")
    with path.open("a") as file:
        file.write('{"source": "a", "id"')
    resumed = Quarantine(path)
    assert resumed.counts() == {"a": 1}
    resumed.add("a", "a/2", "bad")
    assert Quarantine(path).counts() == {"a": 2}
    assert Quarantine(path).reasons() == {("a", "a/1"): "bad", ("a", "a/2"): "bad"}


def test_a_place_that_cannot_be_written_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the quarantine"):
        Quarantine(tmp_path / "file" / "quarantine.jsonl").add("a", "a/1", "bad")
    with pytest.raises(UserError, match="not a share"):
        Quarantine(limit=7)
