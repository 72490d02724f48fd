import contextlib
import json
import re

import numpy as np
import pytest

from data_pipelines.examples import Example, Text
from data_pipelines.loader import make_loader
from data_pipelines.look.stage_stats import stats, stats_page
from data_pipelines.quarantine import Quarantine


def collect(stage, processor, batches=6, **options):
    with contextlib.closing(make_loader(stage, processor, seed=5, **options)) as loader:
        return [next(loader) for _ in range(batches)]


def test_figures_agree_with_the_batches(tiny, processor):
    entries = [tiny.Entry(tiny.Source(name=name), tiny.Kind(), weight=w) for name, w in (("a", 2.0), ("b", 1.0))]
    stage = tiny(*entries)
    batches = collect(stage, processor)
    figures = stats(stage, processor, batches)
    ids = [i for _, info in batches for row in info.example_ids for i in row]
    assert figures["examples"] == len(ids)
    assert figures["distinct_examples"] == len(set(ids))
    assert {n: s["examples"] for n, s in figures["sources"].items()} == batches[-1][1].examples_seen
    real = sum(int((batch.segment_ids > 0).sum()) for batch, _ in batches)
    learned = sum(int((batch.loss_weights > 0).sum()) for batch, _ in batches)
    positions = 6 * 4 * 160
    assert figures["tokens"] == real == sum(s["tokens"] for s in figures["sources"].values())
    assert figures["padding_share"] == pytest.approx(1 - real / positions)
    assert figures["learned_share"] == pytest.approx(learned / real)
    shares = figures["visual_share"] + figures["prompt_share"] + figures["padding_share"] + learned / positions
    assert shares == pytest.approx(1)
    slots = np.concatenate([(batch.image_ids > 0).sum(1) for batch, _ in batches])
    assert figures["images_per_row"] == pytest.approx(slots.mean())
    assert sum(int(n) * count for n, count in figures["token_counts"].items()) == real


def test_answers_and_words_are_told_apart_by_script(tiny, processor):
    stage = tiny()
    figures = stats(stage, processor, collect(stage, processor))
    questions = sum(
        1 + int(i.split("/")[1]) % 5 for _, info in collect(stage, processor) for row in info.example_ids for i in row
    )
    assert set(figures["answers"]["cyrillic"]) == {"да"}
    assert set(figures["answers"]["latin"]) == {"no"}
    assert sum(count for counts in figures["answers"].values() for count in counts.values()) == questions
    assert figures["words"]["latin"]["question"] == figures["words"]["latin"]["about"] == questions
    assert figures["words"]["cyrillic"] == figures["answers"]["cyrillic"]


def test_fertility_by_language_is_that_of_the_packed_texts(tiny, processor):
    figures = stats(tiny(), processor, collect(tiny(), processor))
    cyrillic, latin = figures["fertility"]["cyrillic"], figures["fertility"]["latin"]
    assert cyrillic["words"] == cyrillic["texts"] == figures["words"]["cyrillic"]["да"]
    assert cyrillic["tokens"] == cyrillic["texts"] * len(processor.tokenizer.encode("да"))
    assert latin["tokens_per_word"] == latin["tokens"] / latin["words"] > 1
    assert f"{latin['tokens_per_word']:.2f}" in stats_page(figures)


class Long:
    """Text that no row can hold, cut at its end."""

    kind = "text_only"

    def __call__(self, record, rng, source=""):
        return Example((Text("question " * 400, loss=True),), source=source, id=record["id"], when_long="cut")


def test_positions_cut_off_are_told_by_source(tiny, processor):
    stage = tiny(tiny.Entry(tiny.Source(name="long"), Long()), tiny.Entry(tiny.Source(name="short"), tiny.Kind()))
    batches = collect(stage, processor)
    figures = stats(stage, processor, batches)
    assert figures["cut"] == dict(batches[-1][1].cut)
    assert figures["cut"].keys() == {"long"}
    assert "positions cut off" in stats_page(figures)
    assert "positions cut off" not in stats_page(stats(tiny(), processor, collect(tiny(), processor, 1)))
    assert not any(len(answer) > 80 for answers in figures["answers"].values() for answer in answers)


def test_page_is_self_contained_after_a_round_trip_through_json(tiny, processor):
    stage = tiny(tiny.Source(bad_records=(3,)))
    figures = stats(stage, processor, collect(stage, processor, 12, quarantine=Quarantine(limit=1.0)))
    assert figures["quarantined"] == {"tiny": 1}
    page = stats_page(json.loads(json.dumps(figures)))
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("data:image/svg+xml") == 4 + len(figures["answers"]) + len(figures["words"])
    assert page == stats_page(figures), "the same figures, the same page"
    assert f"{100 * (1 - figures['padding_share']):.2f} %" in page


def test_full_image_slots_with_padding_are_pointed_out(tiny, processor):
    stage = tiny(tiny.Source(pictures=1), images=1)
    figures = stats(stage, processor, collect(stage, processor))
    assert figures["rows_with_all_slots_used"] == 1
    assert "data.images" in stats_page(figures)
    roomy = tiny(tiny.Source(pictures=1), images=12)
    assert "data.images" not in stats_page(stats(roomy, processor, collect(roomy, processor)))


def test_a_text_only_stage(tiny, processor):
    stage = tiny(tiny.Source(pictures=0), images=0)
    figures = stats(stage, processor, collect(stage, processor, 2))
    assert figures["visual_share"] == 0
    assert figures["image_counts"] == {}
    assert "image slots" not in stats_page(figures)
