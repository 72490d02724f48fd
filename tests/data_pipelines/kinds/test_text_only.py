"""Running text, whatever its script, as it is."""

import numpy as np
import pytest

from data_pipelines.examples import Example, Text
from data_pipelines.kinds import TextOnly, to_example
from data_pipelines.quarantine import BadRecord


@pytest.mark.parametrize("text", ["Утки плавают.", "שלום ⁧עולם⁩", "a\u200db \u200eכ", " with spaces \n"])
def test_the_text_is_left_as_it_is(text):
    made = to_example({"id": "t", "text": text}, TextOnly("cut"), np.random.default_rng(0), "source")
    assert made == Example((Text(text, loss=True),), source="source", id="t", when_long="cut")


@pytest.mark.parametrize(
    ("record", "reason"), [({}, "no text"), ({"text": " \n"}, "empty"), ({"text": b"a"}, "type bytes")]
)
def test_no_text_is_bad(record, reason):
    with pytest.raises(BadRecord, match=reason) as caught:
        to_example({"id": "t"} | record, TextOnly(), np.random.default_rng(0))
    assert caught.value.record_id == "t"
