"""Questions that stand in the config become records without a picture."""

import numpy as np
import pytest

from data_pipelines.examples import Text
from data_pipelines.kinds import Instruct, to_example
from data_pipelines.sources import TextQuestion, TextQuestions, open_source
from vlm_jax.errors import UserError

CONFIG = TextQuestions((TextQuestion("1 + 1?", "It is two.", ("2", "two")), TextQuestion("Кто?", "Я.")), name="asked")


def test_a_question_is_a_record():
    source = open_source(CONFIG)
    assert (source.name, len(source)) == ("asked", 2)
    first, second = source[0], source[1]
    assert first["id"] == "asked/0"
    assert first["questions"][0]["expected"] == ("2", "two")
    assert second["questions"][0]["expected"] == ("Я.",)
    assert "image" not in first
    example = to_example(first, Instruct(), np.random.default_rng(0), source.name)
    assert example.branches == ((Text("1 + 1?", role="user"), Text("It is two.", loss=True, role="assistant")),)


def test_no_question_is_the_users_error():
    with pytest.raises(UserError, match="'asked': it has no questions"):
        open_source(TextQuestions((), name="asked"))
