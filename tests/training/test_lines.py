"""Files of JSON lines: what a kill or a full disk leaves of them, and what a resumed run drops."""

import pytest
from etils import epath

from vlm_jax.training.lines import MetricsFile, read_lines, rewind_metrics


@pytest.fixture
def metrics_file(tmp_path):
    """Lines of two stages, the second of which is under way."""
    path = epath.Path(tmp_path) / "metrics.jsonl"
    sink = MetricsFile(path)
    for stage, step in (("pre", 2), ("pre", 4), ("sft", 2), ("sft", 4), ("sft", 6)):
        sink({"stage": stage, "step": step, "sources": {"шар\u2028": step}})
    return path


def test_rewinding_drops_what_will_be_done_again(metrics_file):
    last = rewind_metrics(metrics_file, ["pre"], "sft", 4)
    assert [(line["stage"], line["step"]) for line in read_lines(metrics_file)] == [
        ("pre", 2),
        ("pre", 4),
        ("sft", 2),
        ("sft", 4),
    ]
    assert last == {"stage": "sft", "step": 4, "sources": {"шар\u2028": 4}}


def test_rewinding_to_the_first_stage_drops_those_after_it(metrics_file):
    assert rewind_metrics(metrics_file, [], "pre", 2)["step"] == 2
    assert [(line["stage"], line["step"]) for line in read_lines(metrics_file)] == [("pre", 2)]
    assert rewind_metrics(metrics_file, [], "pre", 0) is None
    assert read_lines(metrics_file) == []


@pytest.mark.parametrize("cut", [1, 5, 14, 25, 30])
def test_half_a_line_at_the_end_is_dropped_even_inside_a_letter(metrics_file, cut):
    """A kill or a full disk can leave any number of its bytes."""
    content = metrics_file.read_bytes()
    metrics_file.write_bytes(content[:-cut])
    whole = [2, 4, 2, 4, 6] if cut == 1 else [2, 4, 2, 4]
    assert [line["step"] for line in read_lines(metrics_file)] == whole
    rewind_metrics(metrics_file, ["pre"], "sft", 6)
    MetricsFile(metrics_file)({"stage": "sft", "step": 8})
    assert read_lines(metrics_file)[-1] == {"stage": "sft", "step": 8}


def test_without_a_file_there_are_no_lines(tmp_path):
    path = epath.Path(tmp_path) / "metrics.jsonl"
    assert read_lines(path) == []
    assert rewind_metrics(path, [], "pre", 0) is None
