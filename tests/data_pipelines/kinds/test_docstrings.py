"""Records and examples that the kinds' docstrings show are what the kinds make of them."""

import re
import textwrap

import numpy as np
import pytest

from data_pipelines.examples import Example, Image, Text
from data_pipelines.kinds import KIND_NAMES, Captions, Instruct, Interleaved, Preference, TextOnly, to_example
from data_pipelines.kinds.parts import turns_of


def literals(documented):
    """What stands indented in a docstring, in its order; '->' separates."""
    paragraphs = [
        part for part in re.split(r"\n\s*\n", documented.__doc__) if part.lstrip().startswith(("{", "Example"))
    ]
    shown = [part for block in paragraphs for part in re.split(r"^ *->$", textwrap.dedent(block), flags=re.MULTILINE)]
    names = {"Example": Example, "Image": Image, "Text": Text}
    return [eval(part.strip(), names) for part in shown]


@pytest.mark.parametrize(
    ("config", "count"), [(Interleaved(), 2), (Instruct(), 4), (TextOnly(), 2), (Preference(), 2), (Captions(), 3)]
)
def test_the_docstring_shows_what_the_kind_does(config, count):
    shown = literals(type(config))
    assert len(shown) == count
    if isinstance(config, Captions):
        record, asked, bare = shown
        assert to_example(record, Captions(bare=1.0), np.random.default_rng(0)) == bare
        drawn = {to_example(record, config, np.random.default_rng(seed)) for seed in range(40)}
        assert asked in drawn
        assert len(drawn) == 3
        return
    for record, example in zip(shown[::2], shown[1::2], strict=True):
        assert to_example(record, config, np.random.default_rng(0)) == example


def test_every_kind_is_named():
    assert list(KIND_NAMES) == ["interleaved", "captions", "instruct", "text_only", "preference"]
    assert all(config.kind == name for name, config in KIND_NAMES.items())


def test_turns_of_as_its_docstring_has_it():
    image = Image(path="duck.png")
    messages = [
        {"role": "user", "content": [{"text": "Is this"}, {"image": image}, {"text": "a duck?"}]},
        {"role": "assistant", "content": "Yes."},
    ]
    made = turns_of(messages, "")
    assert made == (image, Text("Is this a duck?", role="user"), Text("Yes.", loss=True, role="assistant"))
    (given,) = re.findall(r"( +\[\{.*\}\])\n", turns_of.__doc__, re.DOTALL)
    (expected,) = re.findall(r"-> (.*)", turns_of.__doc__)
    names = {"image": image, "Text": Text}
    assert (eval(given.strip(), names), eval(expected, names)) == (messages, made)
