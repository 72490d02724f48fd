"""`vlm data prepare corpora` as a user calls it, over small manuals laid out like the packages'."""

import re

import manuals_on_disk as manuals
import pytest

from data_pipelines.manifest import read_manifest
from data_pipelines.prepare.corpora.build import chosen_sets
from data_pipelines.prepare.corpora.sets import corpus_sets
from data_pipelines.sources import open_source, source_for
from vlm_jax import cli
from vlm_jax.errors import UserError

PAGES = tuple(f"page{n}" for n in range(24))


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    raw = tmp_path_factory.mktemp("corpora") / "raw"
    for language in ("en", "ru"):
        manuals.write_gimp(raw, language, PAGES)
    return raw


def prepare(raw, output, *options):
    return cli.run(["data", "prepare", "corpora", str(raw), str(output), *options])


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared") / "out"
    assert prepare(raw, output, "--only", "captions/gimp", "interleaved/gimp_ru") == 0
    return output


def test_every_set_has_a_kind_a_licence_and_packages_of_the_table():
    from data_pipelines.prepare.corpora.packages import PACKAGES

    known = {each.name for each in PACKAGES}
    for name, each in corpus_sets().items():
        assert each.name == name
        assert re.fullmatch(r"[a-z]+/[a-z0-9_]+", name)
        assert each.kind in ("interleaved", "captions", "instruct", "text_only", "preference")
        assert each.packages
        assert set(each.packages) <= known
        assert each.licence


def test_sets_are_written_in_splits_and_read_back(prepared):
    ids = set()
    for split in ("train", "validation", "test"):
        manifest = read_manifest(prepared / "captions/gimp" / split)
        assert manifest.licences == ("GFDL-1.2-no-invariants-or-later",)
        assert manifest.config["packages"] == {"gimp-help-en": "1.0", "gimp-help-ru": "1.0"}
        assert manifest.counts["distinct_real_pairs"] == 2 * manifest.records
        if manifest.records:
            source = open_source(source_for(str(prepared / "captions/gimp" / split)))
            ids |= {source[index]["id"] for index in range(len(source))}
    assert ids == {f"gimp/images/{page}.png" for page in PAGES}


def test_what_is_there_is_left_and_another_version_is_built(raw, prepared, capsys):
    shards = sorted(prepared.rglob("*.arrayrecord"))
    before = [(path, path.stat().st_mtime_ns) for path in shards]
    only = ("--only", "captions", "interleaved/gimp_ru")
    assert prepare(raw, prepared, *only) == 0
    output = capsys.readouterr()
    assert output.err.count("already there") == 2
    assert [(path, path.stat().st_mtime_ns) for path in shards] == before
    contents = [path.read_bytes() for path in shards]
    manuals.write_stamp(raw, "gimp-help-ru", "2.0")
    try:
        assert prepare(raw, prepared, *only) == 0
    finally:
        manuals.write_stamp(raw, "gimp-help-ru", "1.0")
    assert capsys.readouterr().err.count("built") == 2
    assert [path.read_bytes() for path in shards] == contents
    assert read_manifest(prepared / "captions/gimp/train").config["packages"]["gimp-help-ru"] == "2.0"


def test_the_table_and_the_page_say_what_came_out(raw, prepared, capsys):
    assert prepare(raw, prepared, "--only", "captions/gimp", "interleaved/gimp_ru") == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line.split() for line in lines if line.startswith("captions/gimp"))
    assert sum(map(int, row[1:-6])) == len(PAGES)  # by split
    assert row[-6:-4] == ["48", "24"]  # real pairs, pictures
    total = next(line.split() for line in lines if line.startswith("all"))
    assert total[-6] == "48"  # the pages' pairs are among those of the captions
    page = (prepared / "report.html").read_text(encoding="utf-8")
    assert "Окно обрезки. Исходный вид" in page
    assert "data:image/jpeg;base64," in page
    assert "http" not in re.sub(r"data:[^\"]*", "", page)


def test_tfds_data_are_written_beside_the_shards(raw, prepared):
    assert prepare(raw, prepared, "--only", "captions/gimp", "--format", "tfds") == 0
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(prepared / "tfds/captions_gimp/1.0.0"))
    records = read_manifest(prepared / "captions/gimp/train").records
    assert len(builder.as_data_source(split="train")) == records


def test_sets_whose_packages_are_missing_are_named(raw, tmp_path, capsys):
    sets, missing = chosen_sets(raw)
    assert {each.name for each in sets} >= {"captions/gimp", "text/gimp_ru"}
    assert missing["text/gnome_en"] == ("gnome-user-docs",)
    assert {each.name for each in chosen_sets(raw, ["text"])[0]} == {"text/gimp_en", "text/gimp_ru"}
    with pytest.raises(UserError, match="the packages gnome-user-docs are not there; run `vlm data fetch"):
        chosen_sets(raw, ["text/gnome_en"])
    (tmp_path / "empty").mkdir()
    assert prepare(tmp_path / "empty", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "experiments/quickstart.py needs none of this" in error
    assert error.count("\n") == 1


def test_an_output_that_cannot_be_written_is_one_line(raw, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert prepare(raw, tmp_path / "file", "--only", "captions/gimp") == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "out"), "nowhere: no such directory; run `vlm data fetch"),
        ((".", "out", "--only", "captions/birds"), "--only captions/birds: no such set; there are"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert prepare(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
