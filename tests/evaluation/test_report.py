"""The report of a workdir: what it shows, that it asks for nothing from outside, and what it makes of missing files."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import pytest

from data_pipelines.sources import open_source
from vlm_jax.config import load_experiment
from vlm_jax.errors import UserError
from vlm_jax.evaluation.questions import list_questions
from vlm_jax.evaluation.report import figure_for_readme, write_report
from vlm_jax.evaluation.report.cards import choose, commonest_mistakes
from vlm_jax.evaluation.report.contents import read_contents
from vlm_jax.evaluation.report.figures import stage_figures
from vlm_jax.evaluation.report.page import duration, short
from vlm_jax.evaluation.results import Answer, read_results, summarise, write_results
from vlm_jax.serialise import to_json

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "mu.py"
WRONG = {"yes": "no", "no": "yes", "да": "нет", "нет": "да"}


def metrics_line(stage, step, before, **more):
    loss = 6.0 / step
    source = {"loss": loss, "accuracy": 0.5, "tokens": 2500, "examples_seen": 8 * step, "epochs_seen": step / 400}
    done = before + step
    return {
        "stage": stage,
        "step": step,
        "loss": loss,
        "accuracy": 0.5,
        "learning_rate": 0.001,
        "gradient_norm": 1.0,
        "sources": {"easy_vqa": source},
        "tokens_per_second": 5000.0,
        "images_per_second": 80.0,
        "padding_share": 0.02,
        "tokens_seen": 500 * done,
        "images_seen": 8 * done,
        "quarantined": {},
        "seconds": 0.1 * done,
        **more,
    }


def answers_of(task):
    """Right answers, but every ninth, which is wrong in some other way than the majority."""
    for number, question in enumerate(list_questions(open_source(task.source))):
        record = question.record
        prediction = WRONG.get(record["answer"], "?") if number % 9 == 0 else record["answer"]
        yield Answer(
            id=question.id,
            picture=question.picture,
            image=question.image.path or "",
            language=record["language"],
            type=record["type"],
            question=record["question"],
            answer=record["answer"],
            prediction=prediction,
            score=float(prediction == record["answer"]),
            controls={"majority": ("yes", float(number % 2)), "shuffled_image": ("no", float(number % 4 == 0))},
        )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workdir as a run and an evaluation leave it, with the pictures of easy-VQA."""
    workdir = tmp_path_factory.mktemp("finished")
    experiment = load_experiment(str(EXPERIMENT))
    (workdir / "config.json").write_text(to_json(experiment), encoding="utf-8")
    steps = [(stage.name, stage.steps) for stage in experiment.stages]
    lines, before = [], 0
    for name, count in steps:
        lines += [metrics_line(name, step, before) for step in range(5, count + 1, 5)]
        before += count
    lines[-1]["validation"] = {"loss": 0.4321, "accuracy": 0.77, "sources": {}}
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    results = [summarise(task.name, task.metric, list(answers_of(task))) for task in experiment.evaluation.tasks]
    write_results(workdir, "the model that was asked", results)
    bad = [{"source": "easy_vqa", "id": f"easy_vqa/train/{i}", "reason": "the PNG is truncated"} for i in range(3)]
    (workdir / "quarantine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in bad), encoding="utf-8")
    write_report(workdir)
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def report_of(workdir):
    return Path(write_report(workdir)).read_text(encoding="utf-8")


def change_answers(workdir, change):
    path = workdir / "predictions" / "easy_vqa_en.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps({**line, **change(line)}) + "\n" for line in lines), encoding="utf-8")


class Page(HTMLParser):
    """Collects tags, what attributes refer to, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.references, self.text, self.open = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "img", "use", "path", "br", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("href", "xlink:href", "src")]

    def handle_endtag(self, tag):
        if tag not in ("path", "use", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def test_page_asks_for_nothing_from_outside(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    parsed = Page(page)
    assert parsed.open == []
    assert not {"script", "link", "iframe", "object", "base"} & set(parsed.tags)
    assert parsed.references
    assert all(reference.startswith(("#", "data:image/")) for reference in parsed.references)
    assert not re.search(r"url\((?!#)|@import|https?:", page)


def test_page_shows_every_score_with_interval_and_controls(finished):
    words = Page((finished / "report.html").read_text(encoding="utf-8")).words
    for name, task in read_results(finished)["tasks"].items():
        assert name in words
        for group, estimate in [("all questions", task), *task["groups"].items()]:
            score, low, high = (f"{100 * estimate[key]:.1f}" for key in ("score", "low", "high"))
            assert f"{group} {score} {low}–{high} {estimate['n']}" in words
        controls = " ".join(f"{100 * score:.1f}" for score in task["controls"].values())
        assert f"{task['n']} {controls}" in words
    assert "the model that was asked" in words


def test_page_shows_run_config_and_bad_records(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    words = Page(page).words
    assert "42.1k parameters (encoder 7.10k, adapter 4.16k, decoder 30.9k), trained in 2 stages" in words
    assert "20.0k tokens seen" in words
    assert "320 pictures seen" in words
    assert "0.432 77.0 %" in words  # validation
    assert "easy_vqa the PNG is truncated 3 easy_vqa/train/0" in words
    assert '"vocabulary_size": 384' in words
    for title in ("Loss", "Accuracy of answer tokens", "Learning rate", "Gradient norm", "Tokens a second", "Padding"):
        assert f'aria-label="{title}"' in page


def test_cards_show_pictures_in_both_languages_and_every_kind_of_mistake(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert page.count('class="card ') == page.count('src="data:image/png;base64,') == 24
    cards = choose(read_contents(finished).tasks)
    assert {card.answer.language for card in cards} == {"en", "ru"}
    wrong = {(card.task, card.answer.type) for card in cards if card.verdict == "wrong"}
    everything = [answer for task in read_contents(finished).tasks for answer in task.answers]
    assert {kind for _, kind in wrong} == {answer.type for answer in everything if answer.score == 0}
    assert 8 <= sum(card.verdict == "wrong" for card in cards) <= 12
    for card in cards:
        assert card.answer.question in page
    assert re.search("[а-яё]+", page)
    assert cards == choose(read_contents(finished).tasks)
    assert cards != choose(read_contents(finished).tasks, seed=1)


def test_cards_of_few_answers(finished):
    task = read_contents(finished).tasks[0]
    all_wrong = dataclasses.replace(task, answers=tuple(a for a in task.answers if not a.score))
    assert len(choose([all_wrong], 6)) == 6
    assert len(choose([dataclasses.replace(task, answers=task.answers[:3])])) == 3
    assert choose([]) == []
    one = choose([task])
    assert len({card.answer.id for card in one}) == len(one) == 24


def test_commonest_mistakes_count_right(finished):
    task = read_contents(finished).tasks[0]
    mistakes = commonest_mistakes(task, 1000)
    assert sum(times for *_, times in mistakes) == sum(not answer.score for answer in task.answers)
    assert [times for *_, times in mistakes] == sorted((times for *_, times in mistakes), reverse=True)


def test_questions_and_names_are_escaped(workdir):
    nasty = "<script>alert('1')</script> & \"более\""
    change_answers(workdir, lambda line: {"question": nasty, "prediction": "<b>жёлтый</b>", "score": 0.0})
    config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    config["name"] = "<i>имя"
    config["stages"][0]["name"] = "a<u>&$b$"
    (workdir / "config.json").write_text(json.dumps(config), encoding="utf-8")
    metrics = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
    (workdir / "metrics.jsonl").write_text(metrics.replace('"captions"', '"a<u>&$b$"'), encoding="utf-8")
    parsed = Page(report_of(workdir))
    assert not {"script", "u"} & set(parsed.tags)
    assert nasty in parsed.words
    assert "✗ <b>жёлтый</b>" in parsed.words
    assert "<i>имя" in parsed.words
    assert "a<u>&$b$" in parsed.words


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (["eval.json", "predictions"], "vlm eval EXPERIMENT --workdir"),
        (["predictions"], "predictions of task easy_vqa_en are missing"),
        (["config.json"], "A model, trained in 2 stages"),
        (["metrics.jsonl"], "42.1k parameters"),
        (["quarantine.jsonl"], "every record that was met could be used"),
        (["metrics.jsonl", "eval.json", "predictions", "quarantine.jsonl"], "Not evaluated yet"),
        (["config.json", "metrics.jsonl", "quarantine.jsonl"], "all questions"),
    ],
)
def test_missing_files_are_done_without(workdir, missing, said):
    for name in missing:
        path = workdir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert said in Page(report_of(workdir)).words


def test_nothing_to_report_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="name the workdir of a run"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "metrics.jsonl",
            '{"stage": "captions", "st\n{"stage": "instruct", "step": 20, "loss": NaN}\n[1]\n',
            "2 damaged",
        ),
        ("quarantine.jsonl", '{"source": "easy', "quarantine.jsonl: 1 damaged line"),
        ("eval.json", "{", "eval.json: damaged"),
        ("eval.json", '{"tasks": {"vqa": {"metric": "m", "score": 1}}}', "task vqa is damaged"),
        ("predictions/easy_vqa_en.jsonl", '{"id": 1', "easy_vqa_en.jsonl: line 1 is damaged"),
        ("config.json", "{", "config.json is damaged"),
        ("config.json", '{"name": "of the future", "stages": {}, "new": 1}', "another version of the code"),
    ],
)
def test_damage_is_noted(workdir, name, content, said):
    (workdir / name).write_text(content, encoding="utf-8")
    assert said in " ".join(read_contents(workdir).notes)


def test_damage_is_said_and_the_rest_is_shown(workdir):
    (workdir / "config.json").write_text('{"name": "of the future", "stages": {}, "new": 1}', encoding="utf-8")
    (workdir / "predictions" / "easy_vqa_ru.jsonl").write_text("{", encoding="utf-8")
    (workdir / "metrics.jsonl").write_text('{"stage": "instruct", "step": 20, "loss": NaN}\n[1]\n', encoding="utf-8")
    words = Page(report_of(workdir)).words
    assert "another version of the code" in words
    assert "easy_vqa_ru.jsonl: line 1 is damaged" in words
    assert "metrics.jsonl: 1 damaged line is left out" in words
    assert "of the future" in words
    assert "the PNG is truncated" in words
    assert "easy_vqa_ru exact match" in words
    assert "instruct 20" in words


def test_damaged_metrics_line_leaves_the_others(workdir):
    with (workdir / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"stage": "instruct", "step"\n' + json.dumps(metrics_line("instruct", 15, 20, loss=0.125)) + "\n")
    contents = read_contents(workdir)
    assert [line["step"] for line in contents.lines] == [5, 10, 15, 20] * 2
    assert contents.lines[6]["loss"] == 0.125  # done again by a resumed run


def test_lost_quarantine_is_not_taken_for_an_empty_one(workdir):
    (workdir / "quarantine.jsonl").unlink()
    with (workdir / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(metrics_line("instruct", 20, 20, quarantined={"easy_vqa": 3})) + "\n")
    words = Page(report_of(workdir)).words
    assert "Training left out 3" in words
    assert "could be used" not in words


def test_stage_figures_are_differences_of_running_totals(finished):
    first, second = stage_figures(read_contents(finished), None)
    assert (first.tokens, first.images, first.steps) == (10_000, 160, 20)
    assert (second.tokens, second.images, second.steps) == (10_000, 160, 20)
    assert second.seconds == pytest.approx(2.0)
    assert second.tokens_per_second == pytest.approx(5000)
    assert second.padding_share == pytest.approx(0.02)
    assert second.validation_loss == 0.4321
    assert first.finished
    (source,) = second.sources
    assert (source.tokens, source.examples_seen) == (10_000, 160)


def test_unfinished_run_says_so(workdir):
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    assert "stage instruct has done 15 of 20 steps" in Page(report_of(workdir)).words


def test_pictures_come_from_the_source_where_their_file_has_moved(finished, workdir):
    change_answers(workdir, lambda line: {"image": "/moved/away.png"})
    pictures = re.findall(r'src="(data:image/png[^"]*)"', report_of(workdir))
    assert pictures == re.findall(
        r'src="(data:image/png[^"]*)"', (finished / "report.html").read_text(encoding="utf-8")
    )
    change_answers(workdir, lambda line: {"image": "", "picture": "unknown"})
    assert "picture not found" in report_of(workdir)


def test_figure_for_readme(finished, tmp_path):
    path = Path(figure_for_readme(finished, tmp_path / "docs" / "report.png"))
    assert path.stat().st_size < 200_000
    height, width = cv2.imread(str(path)).shape[:2]
    assert 900 < width < 1300
    assert 400 < height < 700


@pytest.mark.parametrize(("count", "text"), [(950, "950"), (42_144, "42.1k"), (999_960, "1.00M"), (8.03e9, "8.03B")])
def test_short(count, text):
    assert short(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(42.2, "42 s"), (725, "12 min 5 s"), (12_000, "3 h 20 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text
