"""A chosen and a rejected answer are labelled branches of one prompt."""

import numpy as np
import pytest

from data_pipelines.examples import Image, Text
from data_pipelines.kinds import Preference, to_example
from data_pipelines.quarantine import BadRecord

DUCK = Image(path="duck.png")
RECORD = {"id": "p/1", "images": [DUCK], "prompt": "What is this?", "chosen": "A duck.", "rejected": "A goose."}


def example(**changed):
    record = {key: value for key, value in (RECORD | changed).items() if value is not None}
    return to_example(record, Preference(), np.random.default_rng(0), "pairs")


def test_only_the_answers_are_learned():
    dialogue = [
        {"role": "user", "content": [{"text": "What is this?"}, {"image": DUCK}]},
        {"role": "assistant", "content": "A bird."},
        {"role": "user", "content": "Which one?"},
    ]
    made = example(images=None, prompt=None, messages=dialogue)
    assert made.images == (DUCK,)
    assert [(turn.role, turn.loss) for turn in made.trunk if isinstance(turn, Text)] == [
        ("user", False),
        ("assistant", False),
        ("user", False),
    ]
    assert [[turn.loss for turn in branch] for branch in made.branches] == [[True], [True]]
    assert made.labels == (1.0, 0.0)


def test_answers_may_go_on_for_several_turns():
    chosen = [
        {"role": "assistant", "content": "A duck."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    made = example(chosen=chosen)
    assert [(turn.text, turn.loss) for turn in made.branches[0]] == [
        ("A duck.", True),
        ("Sure?", False),
        ("Yes.", True),
    ]
    assert made.branches[1] == (Text("A goose.", loss=True, role="assistant"),)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"prompt": None}, "no prompt"),
        ({"prompt": " "}, "an empty prompt"),
        ({"chosen": None}, "no chosen answer"),
        ({"rejected": ""}, "an empty rejected answer"),
        ({"rejected": "A duck."}, "are the same"),
        ({"images": ["duck.png"]}, "a picture is of type str"),
        ({"messages": []}, "no messages"),
        ({"messages": [{"role": "assistant", "content": "A duck."}]}, "does not end with a turn of the user"),
        ({"chosen": [{"role": "user", "content": "a"}]}, "does not begin with a turn of the assistant"),
        ({"chosen": [{"role": "user", "content": [{"image": DUCK}]}]}, "a picture in the chosen answer"),
    ],
)
def test_what_is_no_pair_is_bad(changed, reason):
    with pytest.raises(BadRecord, match=reason) as caught:
        example(**changed)
    assert caught.value.record_id == "p/1"
