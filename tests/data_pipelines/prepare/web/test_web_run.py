"""Whole runs: what comes out of a site, twice the same, also after a kill, and never anything half done."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from data_pipelines.examples import Image
from data_pipelines.images import decode
from data_pipelines.manifest import read_manifest, verify
from data_pipelines.prepare.shards import write_set
from data_pipelines.prepare.web.config import PassageRules, PictureRules, WebConfig
from data_pipelines.prepare.web.run import Outcome, prepare_web
from data_pipelines.sources import ArrayRecords, open_source
from vlm_jax.errors import UserError

CONFIG = WebConfig(passages=PassageRules(most_pages_of_site=10), shards=3)


def records_of(output: Path) -> dict[str, dict[str, Any]]:
    source = open_source(ArrayRecords(str(output)))
    return {record["id"]: record for record in (source[i] for i in range(len(source)))}


def digests(output: Path) -> list[tuple[str, str]]:
    return [(file.name, file.sha256) for file in read_manifest(output).files]


def dropped(outcome: Outcome) -> dict[str, dict[str, int]]:
    return {rule["name"]: {k: v for k, v in rule["dropped"].items() if v} for rule in outcome.funnel["rules"]}


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    output = tmp_path_factory.mktemp("done") / "web"
    return output, prepare_web([str(folder)], str(output), CONFIG)


def test_good_pages_come_out_with_their_pictures_where_they_stood(done: tuple[Path, Outcome], site: dict) -> None:
    records = records_of(done[0])
    assert {f"file://site/good{i:02}.html" for i in range(25)} | {"file://site/mixed.html", "file://site/bad.html"} == {
        *records
    }
    record = records["file://site/good03.html"]
    assert record["language"] == "ru"
    assert ["text" if "text" in segment else "image" for segment in record["segments"]] == [
        "text", "image", "text", "image", "text",
    ]  # fmt: skip
    assert record["segments"][1]["image"] == Image(data=site["pic/6.png"])
    assert record["segments"][-1]["text"].count("\n") == 2
    assert decode(record["segments"][3]["image"]).shape == (96, 128, 3)
    text = " ".join(segment.get("text", "") for segment in record["segments"])
    assert "Home" not in text
    assert "All rights reserved" not in text
    assert "terms of service" not in text


def test_every_rule_drops_what_is_its_own_and_nothing_else(done: tuple[Path, Outcome]) -> None:
    found = dropped(done[1])
    assert found["exact_duplicate"]["pages"] == 1
    assert found["near_duplicate"]["pages"] == 1
    assert found["too_short"]["pages"] == 1
    assert found["language"]["pages"] == 1
    assert found["site_boilerplate"]["passages"] == 27
    assert found["untranslated"] == {"passages": 1, "words": 13}
    assert found["on_many_pages"]["pictures"] == 25
    for rule in ("tracking_pixel", "bad_name", "unreadable", "too_small", "aspect", "repeated_picture"):
        assert found[rule] == {"pictures": 1}, rule
    assert found["missing"] == {"pictures": 2}  # one is not there, one lies outside the folder
    written, read = done[1].funnel["written"], done[1].funnel["read"]
    assert written["pages"] == 27
    assert read["pages"] == written["pages"] + 4
    assert written["pictures"] == 52
    assert {language: counts["pages"] for language, counts in done[1].funnel["languages"].items()} == {
        "en": 14,
        "ru": 13,
    }


def test_the_funnel_stands_in_the_files_beside_the_shards(done: tuple[Path, Outcome]) -> None:
    output, outcome = done
    assert json.loads((output / "funnel.json").read_text()) == outcome.funnel
    manifest = read_manifest(output)
    assert manifest.records == 27
    assert manifest.counts["pages_read"] == 31
    assert len(manifest.files) == 3
    assert [problem for _, problem in verify(output)] == ["", "", ""]
    report = (output / "report.html").read_text()
    assert "near_duplicate" in report
    assert "http://" not in report
    assert report.count("data:image/jpeg;base64,") > 5
    assert sorted(path.name for path in output.iterdir()) == sorted(
        [*(file.name for file in manifest.files), "manifest.json", "funnel.json", "report.html", "run.json"]
    )


def test_a_second_run_does_nothing_and_one_elsewhere_gives_the_same_files(
    done: tuple[Path, Outcome], folder: Path, tmp_path: Path
) -> None:
    output, outcome = done
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    again = prepare_web([str(folder)], str(output), CONFIG)
    assert again.skipped
    assert again.funnel == outcome.funnel
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before
    assert not prepare_web([str(folder)], str(tmp_path / "web"), CONFIG).skipped
    assert (tmp_path / "web/manifest.json").read_bytes() == (output / "manifest.json").read_bytes()
    shard = tmp_path / "web" / read_manifest(output).files[0].name
    os.truncate(shard, 1000)
    assert not prepare_web([str(folder)], str(tmp_path / "web"), CONFIG).skipped
    assert digests(tmp_path / "web") == digests(output)


def test_a_warc_gives_the_same_records_as_the_folder(
    done: tuple[Path, Outcome], site: dict, write_warc: Callable[..., Path], tmp_path: Path
) -> None:
    warc = write_warc(site, tmp_path / "crawl.warc.gz")
    prepare_web([str(warc)], str(tmp_path / "web"), CONFIG)
    from_folder = {name.removeprefix("file://site/"): record for name, record in records_of(done[0]).items()}
    from_warc = {
        name.removeprefix("https://example.org/"): record for name, record in records_of(tmp_path / "web").items()
    }
    assert from_folder.keys() == from_warc.keys()
    for name, record in from_warc.items():
        assert record["segments"] == from_folder[name]["segments"]


def test_a_warc_that_is_cut_off_is_used_up_to_there_and_the_report_says_so(
    site: dict, write_warc: Callable[..., Path], tmp_path: Path
) -> None:
    names = ["pic/0.png", "pic/1.jpg", "good00.html", "pic/2.png", "pic/3.jpg", "good01.html"]
    for suffix in (".warc", ".warc.gz"):
        warc = write_warc({name: site[name] for name in names}, tmp_path / f"crawl{suffix}")
        os.truncate(warc, warc.stat().st_size - 150)
        outcome = prepare_web([str(warc)], str(tmp_path / f"web{suffix}"), CONFIG)
        assert list(records_of(tmp_path / f"web{suffix}")) == ["https://example.org/good00.html"]
        (damage,) = outcome.funnel["cut_inputs"]
        assert str(warc) in damage
        assert "Damaged input" in (tmp_path / f"web{suffix}/report.html").read_text()


def test_of_captures_of_one_address_the_first_stays(
    site: dict, write_warc: Callable[..., Path], tmp_path: Path
) -> None:
    first = {name: site[name] for name in ("good00.html", "pic/0.png", "pic/1.jpg", "pic/header.png")}
    later = {"good00.html": site["good02.html"], "pic/4.png": site["pic/4.png"]}
    warcs = [write_warc(first, tmp_path / "a.warc.gz"), write_warc(later, tmp_path / "b.warc.gz")]
    outcome = prepare_web([str(tmp_path)], str(tmp_path / "web"), CONFIG)
    assert len(warcs) == dropped(outcome)["same_address"]["pages"] + 1
    (record,) = records_of(tmp_path / "web").values()
    assert record["segments"][1]["image"] == Image(data=site["pic/0.png"])


def test_evaluation_sets_are_kept_out(folder: Path, site: dict, done: tuple[Path, Outcome], tmp_path: Path) -> None:
    question = {"question": "What is shown?", "answer": " ".join(article_words(site["good04.html"])), "language": "en"}
    recoded = decode(Image(data=site["pic/20.png"]))
    import cv2

    image = Image(data=cv2.imencode(".jpg", cv2.resize(recoded, (200, 150))[:, :, ::-1])[1].tobytes())
    write_set(tmp_path / "test", [{"id": "one", "image": image, "questions": [question]}], config={})
    outcome = prepare_web([str(folder)], str(tmp_path / "web"), CONFIG, [str(tmp_path / "test")])
    kept, before = records_of(tmp_path / "web"), records_of(done[0])
    assert before.keys() - kept.keys() == {"file://site/good04.html"}
    assert dropped(outcome)["contaminated_picture"] == {"pictures": 1}
    assert Image(data=site["pic/20.png"]) not in [s.get("image") for s in kept["file://site/good10.html"]["segments"]]


def article_words(html: bytes) -> list[str]:
    from data_pipelines.prepare.web.html import extract_page

    return extract_page(html, "").text.split("\n")[1].split()[:12]


@pytest.mark.parametrize("moment", ["pages", "shards", "manifest.json"])
def test_a_killed_run_leaves_nothing_that_looks_finished_and_the_next_one_ends_the_same(
    done: tuple[Path, Outcome], folder: Path, tmp_path: Path, moment: str
) -> None:
    output = tmp_path / "web"
    if moment == "manifest.json":  # the last moment of all: everything in its place but the manifest
        prepare_web([str(folder)], str(output), CONFIG)
        (output / "manifest.json").unlink()
    else:
        kill_when(output / ".partial" / moment, folder, output)
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_source(ArrayRecords(str(output)))
    assert not prepare_web([str(folder)], str(output), CONFIG).skipped
    assert digests(output) == digests(done[0])
    assert (output / "manifest.json").read_bytes() == (done[0] / "manifest.json").read_bytes()


def kill_when(place: Path, folder: Path, output: Path) -> None:
    """Runs the command in a process of its own and kills it as soon as anything lies in the place."""
    config = output.parent / "config.json"
    config.write_text(json.dumps({"shards": 3, "passages": {"most_pages_of_site": 10}}))
    command = [sys.executable, "-m", "vlm_jax.cli", "data", "prepare", "web", str(folder), "--output", str(output)]
    process = subprocess.Popen([*command, "--config", str(config)], stdout=subprocess.DEVNULL)
    try:
        while not (place.is_dir() and any(place.iterdir())):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_another_config_replaces_the_output(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "web"
    prepare_web([str(folder / "zz")], str(output), WebConfig(pictures=PictureRules(least_pictures=0)))
    first = records_of(output)
    assert len(first) == 1
    assert not prepare_web([str(folder / "zz")], str(output), WebConfig()).skipped
    assert records_of_or_none(output) == {}
    assert not list(output.glob("shard-*"))


def records_of_or_none(output: Path) -> dict[str, Any]:
    return records_of(output) if read_manifest(output).records else {}


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        (["nowhere"], "web", "neither a directory nor a WARC"),
        (["nowhere.warc.gz"], "web", "no such file"),
        (["empty"], "web", "no page lies there"),
        (["site", "site"], "web", "given twice"),
        (["site"], "mine", "holds other files"),
        (["site"], "mine/note.txt", "is a file"),
    ],
)
def test_wrong_input_is_one_line(inputs: list[str], output: str, message: str, tmp_path: Path) -> None:
    for name, data in {"empty/x.txt": "", "site/a.html": "<p>a</p>", "mine/note.txt": "mine"}.items():
        epath.Path(tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(data)
    with pytest.raises(UserError, match=message) as error:
        prepare_web([str(tmp_path / path) for path in inputs], str(tmp_path / output), CONFIG)
    assert "\n" not in str(error.value)
    assert (tmp_path / "mine/note.txt").read_text() == "mine"


@pytest.mark.parametrize(("flag", "message"), [("--foo=3", "--foo"), ("--direct_num_workers=x", "invalid int value")])
def test_flags_that_beam_does_not_know_are_refused(folder: Path, tmp_path: Path, flag: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare_web([str(folder)], str(tmp_path / "web"), CONFIG, beam_flags=[flag])
    assert not (tmp_path / "web").exists()
