"""A picture's captions become branches that ask and answer in the caption's language."""

import numpy as np
import pytest

from data_pipelines.examples import Image, Text
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


def test_other_languages_are_left_alone():
    record = RECORD | {"captions": [*RECORD["captions"], {"text": "Ein Kreis.", "language": "de"}]}
    assert {answer.text for _, answer in example(record, languages=("ru",)).branches} == {"Синий круг."}
    assert len(example(record, languages=("en", "ru")).branches) == 3
    with pytest.raises(BadRecord, match="no caption in ru"):
        example(RECORD | {"captions": RECORD["captions"][:2]}, languages=("ru",))
    with pytest.raises(UserError, match="no request in 'de'"):
        Captions(languages=("de",))
    assert example(record, languages=("de",), bare=1.0).trunk[1].text == "Ein Kreis."


def test_held_out_requests_are_never_trained_on():
    def asked(**options):
        return {request.text for seed in range(200) for request, _ in example(seed=seed, **options).branches}

    plain, train, held_out = (asked(wordings=wordings) for wordings in ("plain", "train", "held_out"))
    assert plain == asked() == {wording for language in REQUESTS.values() for wording in language}
    assert plain < train
    assert len(train) >= 20
    assert len(held_out) >= 4
    assert not train & held_out


def test_bare_captions_are_running_text_behind_the_picture():
    bare = [example(seed=seed, bare=1.0) for seed in range(40)]
    texts = {caption["text"] for caption in RECORD["captions"]}
    assert {made.trunk for made in bare} == {(RECORD["image"], Text(text, loss=True)) for text in texts}
    assert {(made.branches, made.when_long) for made in bare} == {((), "cut")}
    share = sum(not example(seed=seed, bare=0.25).branches for seed in range(400)) / 400
    assert 0.15 < share < 0.35
    with pytest.raises(UserError, match=r"bare 1\.5"):
        Captions(bare=1.5)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"image": None}, "no picture"),
        ({"image": b"\x89PNG"}, "a picture is of type bytes"),
        ({"captions": [{"text": None, "language": "en"}]}, "no caption"),
        ({"captions": [{"text": "A duck."}]}, "a caption of unknown language"),
    ],
)
def test_a_record_without_picture_or_language_is_bad(changed, reason):
    with pytest.raises(BadRecord, match=reason):
        example(RECORD | changed)
