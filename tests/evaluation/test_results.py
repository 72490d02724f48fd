import dataclasses
import json

import pytest

from vlm_jax.errors import UserError
from vlm_jax.evaluation.results import Answer, read_predictions, read_results, summarise, write_results
from vlm_jax.evaluation.runner import evaluate


def test_eval_json_has_the_form_that_programs_outside_read(lab, tmp_path):
    result = evaluate(lab.Task("colors_en", lab.Source()), lab.Looker(blind_to=(0,)))
    write_results(tmp_path / "run", "runs/quickstart", [result])
    plain = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert set(plain) == {"model", "tasks"}
    assert plain["model"] == "runs/quickstart"
    task = plain["tasks"]["colors_en"]
    assert set(task) == {"metric", "score", "low", "high", "n", "controls", "differences", "groups"}
    assert task["metric"] == "exact_match"
    assert (task["score"], task["n"]) == (pytest.approx(11 / 12), 24)
    assert task["low"] < task["score"] < task["high"]
    assert {type(value) for value in task["controls"].values()} == {float}
    for control, difference in task["differences"].items():
        assert difference["score"] == pytest.approx(task["score"] - task["controls"][control])
        assert difference["low"] < difference["score"] < difference["high"]
    assert set(task["groups"]["yes_no"]) == {"score", "low", "high", "n"}
    assert read_results(tmp_path / "run") == read_results(tmp_path / "run" / "eval.json") == plain


def test_every_figure_can_be_computed_again_from_the_predictions(lab, tmp_path):
    results = [
        evaluate(lab.Task(f"colors_{language}", lab.Source(languages=(language,))), lab.Looker(blind_to=(3,)))
        for language in ("en", "ru")
    ]
    write_results(tmp_path, "m", results)
    again = [summarise(result.name, result.metric, read_predictions(tmp_path, result.name)) for result in results]
    assert again == results
    line = (tmp_path / "predictions" / "colors_ru.jsonl").read_text().splitlines()[0]
    assert "красный" in line
    assert {"id", "question", "prediction", "answer", "type", "score"} <= set(json.loads(line))
    assert not list(tmp_path.rglob("*.part"))


def test_a_prediction_may_hold_any_character(tmp_path):
    answer = Answer("a#0", "a", "", "", "", "q", "x", 'a\u2028b\n"\u0085', 0.0)
    result = summarise("t", "exact_match", [answer, dataclasses.replace(answer, id="b#0", picture="b")])
    assert result.groups == {}
    write_results(tmp_path, "m", [result])
    assert tuple(read_predictions(tmp_path, "t")) == result.answers


def test_missing_and_damaged_results_are_named(tmp_path):
    with pytest.raises(UserError, match=r"eval.json: there are no results here; run `vlm eval` first"):
        read_results(tmp_path)
    for text in ("{", "[]", '{"tasks": 1}'):
        (tmp_path / "eval.json").write_text(text)
        with pytest.raises(UserError, match=r"eval.json: (damaged|not the results)"):
            read_results(tmp_path)
    with pytest.raises(UserError, match=r"t.jsonl: the predictions of task t are missing"):
        read_predictions(tmp_path, "t")
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "t.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(UserError, match=r"t.jsonl: line 1 is damaged"):
        read_predictions(tmp_path, "t")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the results"):
        write_results(tmp_path / "file" / "run", "m", [])
