"""`vlm data inspect`, `stats`, `tokenizer`, `quarantine` and `verify` as a user calls them, with good and bad input."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipelines.examples import Image
from data_pipelines.prepare.shards import write_set
from data_pipelines.quarantine import Quarantine
from data_pipelines.tokenizers import load_tokenizer
from vlm_jax.cli import run as run_command
from vlm_jax.config import load_experiment
from vlm_jax.serialise import to_json

TINY = Path(__file__).parents[1] / "training" / "tiny_experiment.py"


@pytest.fixture
def vlm(capsys):
    """vlm(words) -> (code, output, error), the command run in this process."""

    def call(*words):
        code = run_command([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def refused(vlm):
    """The one line that a wrong call gets."""

    def call(*words):
        code, _, error = vlm(*words)
        lines = error.strip().splitlines()
        assert (code, len(lines)) == (2, 1)
        return lines[0]

    return call


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared") / "captions" / "birds"

    def record(n):
        data = cv2.imencode(".png", np.full((20 + n, 30, 3), n, np.uint8))[1].tobytes()
        captions = [{"text": f"Bird {n}", "language": "en"}, {"text": f"Птица {n}", "language": "ru"}]
        return {"id": f"birds/{n}", "image": Image(data=data), "captions": captions}

    write_set(directory, map(record, range(12)), shards=2, config={"birds": 12}, about={})
    return directory


def test_inspect_shows_records_of_prepared_data(prepared, tmp_path, vlm):
    code, out, _ = vlm("data", "inspect", prepared, "--records", 5, "--output", tmp_path)
    assert code == 0
    page = Path(out.strip().splitlines()[-1])
    assert page.parent == tmp_path
    assert page.read_text().count('<section class="card">') == 5
    assert out.count("Птица") == page.read_text().count("Птица") == 5


def test_stats_counts_prepared_data(prepared, tmp_path, vlm):
    code, out, _ = vlm("data", "stats", prepared, "--output", tmp_path)
    assert code == 0
    page = Path(out.strip().splitlines()[-1])
    figures = json.loads(page.with_suffix(".json").read_text())
    assert (figures["records"], figures["pairs"], figures["pictures"]["distinct"]) == (12, 24, 12)
    assert "12 of 12 records" in out
    assert "12 of 12 records" in page.read_text()


def test_stats_measures_a_tokenizer_on_data(prepared, tmp_path, vlm):
    assert vlm("data", "tokenizer", TINY, "--output", tmp_path / "tokenizer")[0] == 0
    code, out, _ = vlm("data", "stats", prepared, "--output", tmp_path, "--tokenizer", tmp_path / "tokenizer")
    assert code == 0
    assert "tokens a word" in out


def test_a_tokenizer_is_trained_compared_and_taken_over(tmp_path, vlm):
    first, second = tmp_path / "first", tmp_path / "second"
    assert vlm("data", "tokenizer", TINY, "--output", first)[0] == 0
    code, out, _ = vlm(
        *("data", "tokenizer", TINY, "--output", second, "--compare", first, "--tokenizer.vocabulary-size", 330)
    )
    assert code == 0
    figures = json.loads((second / "report.json").read_text())
    sizes = {name: each["vocabulary_size"] for name, each in figures["tokenizers"].items()}
    assert sizes == {"tiny": 330, "first": 336}
    assert 0.5 < figures["seen_share"] <= 1, "of this little text, training uses most"
    assert {"latin", "cyrillic"} == figures["tokenizers"]["first"]["languages"].keys()
    assert (second / "report.html").read_text().count("first") > 3
    assert load_tokenizer(second).vocabulary_size == 330
    assert out.count("Cyrillic") == out.count("Latin") == 2
    taken = vlm("data", "stats", TINY, "--parts.tokenizer", first, "--batches", 1, "--output", tmp_path)
    assert taken[0] == 0
    assert json.loads((tmp_path / "captions-stats.json").read_text())["fertility"]["cyrillic"]["tokens_per_word"] > 1


@pytest.fixture
def workdir(tmp_path):
    """A run with two records in quarantine, one of which its source has."""
    path = tmp_path / "run"
    path.mkdir()
    quarantine = Quarantine(path / "quarantine.jsonl", limit=1)
    experiment = load_experiment(str(TINY))
    (path / "config.json").write_text(to_json(experiment))
    quarantine.add("english", "easy_vqa/train/17", "'17.png': the PNG is truncated")
    quarantine.add("english", "easy_vqa/train/18", "'18.png': the PNG is truncated")
    quarantine.add("russian", "gone", "no caption")
    return path


def test_quarantine_counts_lists_and_filters(workdir, tmp_path, vlm):
    code, out, _ = vlm("data", "quarantine", workdir)
    assert code == 0
    assert "3 records of 2 sources" in out
    assert out.count("english") == 1
    assert vlm("data", "quarantine", workdir, "--all")[1].count("\n") == 3
    assert "gone" not in vlm("data", "quarantine", workdir, "--all", "--source", "english")[1]
    assert vlm("data", "quarantine", workdir, "--all", "--reason", "CAPTION")[1] == "russian\tgone\tno caption\n"
    assert "1 records of 1 sources" in vlm("data", "quarantine", workdir / "quarantine.jsonl", "--reason", "no c")[1]
    assert "nothing" in vlm("data", "quarantine", tmp_path / "run" / ".." / "run", "--reason", "other")[1]


def test_a_page_of_quarantine_looks_the_records_up(workdir, tmp_path, vlm):
    from data_pipelines.sources import EasyVQA, open_source

    source = open_source(EasyVQA("validation", ("en",), validation_images=40, pictures="described"))
    Quarantine(workdir / "quarantine.jsonl", limit=1).add("english", source[3]["id"], "picture too small")
    page = tmp_path / "deep" / "quarantine.html"
    code, out, _ = vlm("data", "quarantine", workdir, "--page", page)
    assert code == 0
    assert out.strip().endswith("quarantine.html")
    text = page.read_text()
    assert text.count('<section class="card">') == 4
    assert text.count("<img ") == 1
    assert source[3]["questions"][0]["question"] in text
    assert "the PNG is truncated" in text


def test_verify_names_damaged_files(prepared, tmp_path, vlm):
    assert vlm("data", "verify", prepared.parent)[0] == 0
    copy = tmp_path / "birds"
    copy.mkdir()
    for path in prepared.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    shard = sorted(copy.glob("*.arrayrecord"))[0]
    shard.write_bytes(shard.read_bytes()[:-7])
    code, out, error = vlm("data", "verify", tmp_path)
    assert code == 2
    assert shard.name in out
    assert "1 of 2 files" in error


WRONG = {
    "nothing there": (("inspect", "{tmp}/missing"), "no such file or directory"),
    "an empty directory": (("stats", "{tmp}"), "no data of a known format"),
    "an override of data": (("inspect", "{set}", "--stages.0.steps", "3"), "has no fields to override"),
    "overrides of data": (("stats", "{set}", "--overrides"), "has no fields to override"),
    "no records": (("inspect", "{set}", "--records", "0"), "at least 1"),
    "a tokenizer that is none": (("stats", "{set}", "--tokenizer", "{tmp}"), "no checkpoint"),
    "a quarantine that is none": (("quarantine", "{tmp}/missing"), "no such file or directory"),
    "a source that is none": (("quarantine", "{tmp}", "--source", "x"), "no source has any"),
    "a page without a run": (("quarantine", "{tmp}", "--page", "{tmp}/x.html"), "no workdir"),
    "no sets to verify": (("verify", "{tmp}"), "manifest.json"),
    "nothing to verify": (("verify", "{tmp}/missing"), "no such directory"),
    "a comparison with nothing": (("tokenizer", str(TINY), "--compare", "{tmp}/missing"), "no checkpoint"),
    "a temperature below 0": (("tokenizer", str(TINY), "--tokenizer.temperature", "-1"), "temperature -1"),
    "a sample of less than nothing": (("tokenizer", str(TINY), "--tokenizer.sample", "-1"), "tokenizer sample -1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line(name, prepared, tmp_path, refused):
    words, expected = WRONG[name]
    assert expected in refused("data", *(word.format(tmp=tmp_path, set=prepared) for word in words))
