"""All kinds of pre-training data in one run, from shards on disk to saved steps: mixed, packed, split, and resumed."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import pytest

from data_pipelines.examples import Text
from data_pipelines.kinds import Captions, Instruct, Interleaved, TextOnly, to_example
from data_pipelines.loader import make_loader
from data_pipelines.mixture import DataConfig, KindShare, MixtureEntry
from data_pipelines.prepare.shards import write_set
from data_pipelines.sources import ArrayRecords, EasyVQA, open_source
from vlm_jax import cli
from vlm_jax.config import load_experiment
from vlm_jax.training.recipe import train
from vlm_jax.training.workdir import build_processor

TINY = Path(__file__).with_name("tiny_experiment.py")
STEPS = 6


def sets_of(directory):
    """Four sets of real pictures and their texts, a kind each; the pages are too long for one row."""
    pictures = open_source(EasyVQA("validation", ("en", "ru"), validation_images=24, pictures="described"))
    records = [pictures[index] for index in range(len(pictures))]
    captions = [caption["text"] for record in records for caption in record["captions"]]
    pages = []
    for first in range(0, len(records) - 3, 3):
        segments = []
        for record in records[first : first + 3]:
            segments += [{"image": record["image"]}, *({"text": c["text"]} for c in record["captions"])]
        pages.append({"id": f"page/{first}", "language": "en", "segments": segments})
    texts = [{"id": f"text/{n}", "language": "en", "text": " ".join(captions[n : n + 3])} for n in range(24)]
    kinds = {
        "interleaved": Interleaved(),
        "captions": Captions(captions=1, bare=0.5),
        "instruct": Instruct(questions=1),
    }
    for name, made in (("interleaved", pages), ("captions", records), ("instruct", records), ("text_only", texts)):
        write_set(directory / name, made, config={"of": name})
    kinds["text_only"] = TextOnly()
    return tuple(
        MixtureEntry(ArrayRecords(str(directory / name), name=name), kind, schedule=((0, 1.0), (4, 2.0)))
        for name, kind in kinds.items()
    )


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """The tiny experiment with one stage of all kinds."""
    mixture = sets_of(tmp_path_factory.mktemp("sets"))
    tiny = load_experiment(str(TINY))
    data = DataConfig(
        mixture,
        rows=8,
        length=128,
        images=2,
        examples=8,
        virtual_shards=2,
        kinds=(KindShare("text_only", 0.25), KindShare("interleaved", 0.25)),
    )
    stage = dataclasses.replace(tiny.stages[0], name="pretrain", data=data, steps=STEPS)
    return dataclasses.replace(tiny, stages=(stage,), log_every=1)


@pytest.fixture(scope="module")
def done(experiment, tmp_path_factory):
    jax.config.update("jax_disable_most_optimizations", True)
    workdir = tmp_path_factory.mktemp("every_kind") / "run"
    train(experiment, workdir)
    return workdir


def test_every_source_is_learned_from_as_often_as_its_kind_is_to_be(done):
    last = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["step"] == STEPS
    seen = {name: figures["examples_seen"] for name, figures in last["sources"].items()}
    assert min(seen.values()) > 0
    state = json.loads((done / "checkpoints" / "pretrain" / str(STEPS) / "files" / "data.json").read_text())
    drawn = find(state, "drawn")
    assert len(drawn) == 2
    for shard in drawn:
        # A quarter for each kind that has a share, and the rest for the two others, which weigh the same.
        assert all(abs(count - sum(shard) / 4) <= 2 for count in shard)


def find(tree, key):
    """Every value under the key, at any depth."""
    if not isinstance(tree, dict):
        return []
    return [value for name, value in tree.items() if name == key] + [v for t in tree.values() for v in find(t, key)]


def test_a_resumed_run_ends_at_the_same_bits(experiment, done, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(done, workdir)
    shutil.rmtree(workdir / "checkpoints" / "pretrain" / str(STEPS))
    train(experiment, workdir)
    for file in ("checksums.json", "data.json"):
        at = Path("checkpoints") / "pretrain" / str(STEPS) / "files" / file
        assert (workdir / at).read_text() == (done / at).read_text()


def test_pages_come_whole_though_they_are_longer_than_a_row(experiment):
    entry = experiment.stages[0].data.mixture[0]
    data = dataclasses.replace(
        experiment.stages[0].data, mixture=(dataclasses.replace(entry, schedule=(), max_epochs=1),), kinds=()
    )
    stage = dataclasses.replace(experiment.stages[0], data=data)
    processor = build_processor(experiment)
    source = open_source(entry.source)
    expected = {}
    for index in range(len(source)):
        example = to_example(source[index], entry.kind, None)
        expected[example.id] = "".join(s.text for s in example.trunk if isinstance(s, Text))
    met: dict[str, dict[int, str]] = {}
    loader = make_loader(stage, processor, seed=0)
    for batch, info in loader:
        for row, ids in enumerate(info.example_ids):
            for number, name in enumerate(ids):
                tokens = [int(t) for t in batch.tokens[row][batch.segment_ids[row] == number + 1]]
                page, _, piece = name.partition("#")
                assert met.setdefault(page, {}).setdefault(int(piece or 1), processor.tokenizer.decode(tokens)) != ""
    loader.close()
    assert max(len(pieces) for pieces in met.values()) > 1
    assert {page: "".join(text for _, text in sorted(pieces.items())) for page, pieces in met.items()} == expected


def test_inspect_shows_the_rows(experiment, tmp_path, capsys):
    sets = [entry.source.path for entry in experiment.stages[0].data.mixture]
    for path in sets:
        assert cli.run(["data", "inspect", path, "--output", str(tmp_path)]) == 0
    assert "easy_vqa/train" in capsys.readouterr().out
    assert list(tmp_path.glob("*.html"))
