"""A process's share of the data: here of one that is alone, whose share is all of it."""

import contextlib
import itertools

import pytest
from etils import epath

from data_pipelines.images import ImagePreprocessing
from data_pipelines.kinds import Captions
from data_pipelines.loader import make_loader
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.quarantine import Quarantine
from data_pipelines.sources import EasyVQA
from data_pipelines.template import Processor, TemplateConfig
from data_pipelines.tokenizers import SentencePieceConfig, train_sentencepiece
from vlm_jax.parallel import MeshConfig, build_layout
from vlm_jax.training.share import SharedBatches, join_quarantines, open_quarantine, own_shards


@pytest.fixture(scope="module")
def processor():
    texts = [f"is there a {colour} {shape} ?" for colour in ("red", "blue") for shape in ("circle", "box")]
    tokenizer = train_sentencepiece(texts * 20, SentencePieceConfig(vocabulary_size=280))
    return Processor(tokenizer, TemplateConfig(), ImagePreprocessing(), (32, 32), 4)


class Stage:
    """The part of a stage that the loader needs."""

    name = "captions"

    def __init__(self, max_epochs):
        source = EasyVQA("validation", ("en",), validation_images=20, pictures="described")
        entry = MixtureEntry(source, Captions(captions=1), max_epochs=max_epochs)
        self.data = DataConfig((entry,), rows=4, length=96, images=2, virtual_shards=2)


def test_all_shards_are_those_of_a_process_that_is_alone():
    layout = build_layout(MeshConfig())
    assert own_shards(Stage(0).data, layout) == [0, 1]


def test_batches_end_when_all_shards_are_used_up(processor):
    stage = Stage(1.0)
    with contextlib.closing(make_loader(stage, processor, seed=0)) as plain:
        expected = [sorted(info.example_ids) for _, info in plain]
    quarantine = Quarantine()
    with contextlib.closing(make_loader(stage, processor, seed=0, quarantine=quarantine, shards=[0, 1])) as loader:
        batches = SharedBatches(loader, quarantine)
        found = [sorted(info.example_ids) for _, info in batches]
    assert len(found) > 2
    assert found == expected


def test_the_whole_of_one_process_is_what_it_has(processor):
    quarantine = Quarantine()
    with contextlib.closing(make_loader(Stage(0), processor, seed=0, quarantine=quarantine, shards=[0, 1])) as loader:
        batches = SharedBatches(loader, quarantine)
        *_, (_, info) = itertools.islice(batches, 3)
        assert batches.get_state() == loader.get_state()
        assert batches.sum_up(info) == info
        quarantine.add("english", "1", "torn")
        assert batches.sum_up(info).quarantined == {"english": 1}


def test_accounts_of_a_killed_run_are_joined_when_it_goes_on(tmp_path):
    first, second = (tmp_path / name for name in ("quarantine.jsonl", "quarantine-1.jsonl"))
    Quarantine(first).add("photos", "1", "torn")
    Quarantine(second).add("photos", "2", "torn")
    quarantine = open_quarantine(epath.Path(tmp_path), 1.0)
    assert quarantine.known_counts() == {"photos": 2}
    assert not second.exists()
    quarantine.add("photos", "3", "torn")
    join_quarantines(epath.Path(tmp_path))
    assert len(first.read_text().splitlines()) == 3
