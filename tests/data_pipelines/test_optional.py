"""Libraries of extras: given where they are there, asked for by the extra's name where they are not."""

import json

import pytest

from data_pipelines.optional import need
from vlm_jax.errors import UserError


def test_a_library_that_is_there_is_given() -> None:
    assert need("json", "formats") is json
    assert need("json.decoder", "formats").JSONDecoder is json.JSONDecoder


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "half_a_library is not installed"),
        ("import nowhere_to_be_found.part", "half_a_library lacks nowhere_to_be_found, which it needs"),
        ("from json import nothing_like_this", "half_a_library cannot be imported"),
        (
            "raise OSError('libmissing.so: cannot open\\nshared object file')",
            "libmissing.so: cannot open shared object",
        ),
    ],
)
def test_a_library_that_is_not_is_named_with_its_extra(tmp_path, monkeypatch, source: str | None, reason: str) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    if source is not None:
        (tmp_path / "half_a_library.py").write_text(source)
    with pytest.raises(UserError, match=r"pip install 'vlm-jax\[prepare\]'$") as caught:
        need("half_a_library", "prepare")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
