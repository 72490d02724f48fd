"""A picture's captions become branches that ask and answer in the caption's language."""

import numpy as np
import pytest

from data_pipelines.examples import Image
from data_pipelines.kinds import Captions, to_example
from data_pipelines.kinds.captions import REQUESTS
from data_pipelines.quarantine import BadRecord
from vlm_jax.errors import UserError

RECORD = {
    "id": "r/1",
    "image": Image(path="a.png"),
    "captions": [
        {"text": "A blue circle.", "language": "en"},
        {"text": "There is a blue circle.", "language": "en"},
        {"text": "Синий круг.", "language": "ru"},
    ],
}


def example(record=None, seed=0, **options):
    return to_example(RECORD if record is None else record, Captions(**options), np.random.default_rng(seed), "source")


def test_every_caption_is_asked_for_in_its_language_and_learned():
    made = example()
    assert (made.id, made.source, made.trunk) == ("r/1", "source", (RECORD["image"],))
    languages = {caption["text"]: caption["language"] for caption in RECORD["captions"]}
    assert {answer.text for _, answer in made.branches} == set(languages)
    for request, answer in made.branches:
        assert (request.role, request.loss, answer.role, answer.loss) == ("user", False, "assistant", True)
        assert request.text in REQUESTS[languages[answer.text]]


def test_fewer_captions_are_drawn_by_the_generator():
    assert example(seed=3, captions=1) == example(seed=3, captions=1)
    drawn = {example(seed=seed, captions=1).branches[0][1].text for seed in range(50)}
    assert len(drawn) == 3
    assert len(example(captions=2).branches) == 2
    assert len(example(captions=9).branches) == 3


@pytest.mark.parametrize(
    ("captions", "reason"),
    [
        ([], "no caption"),
        (None, "no caption"),
        ([{"text": " ", "language": "en"}], "an empty caption"),
        ([{"text": "Ein Kreis.", "language": "de"}], "a caption in 'de'"),
    ],
)
def test_a_record_without_captions_to_learn_is_bad(captions, reason):
    with pytest.raises(BadRecord, match=reason) as caught:
        example(RECORD | {"captions": captions})
    assert caught.value.record_id == "r/1"


def test_a_negative_number_is_the_users_error():
    with pytest.raises(UserError, match="captions -1"):
        Captions(captions=-1)
