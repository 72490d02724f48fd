"""The config file of `vlm data prepare web`: what it says is taken, and what it cannot say is refused by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.prepare.web.config import WebConfig, load_web_config, plain_config
from vlm_jax.errors import UserError


def written(tmp_path: Path, content: Any) -> str:
    path = tmp_path / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_fields_that_are_left_out_keep_their_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, {"languages": ["ru"], "pictures": {"least_side": 150, "most_aspect": 2}})
    config = load_web_config(path)
    pictures = dataclasses.replace(WebConfig().pictures, least_side=150, most_aspect=2.0)
    assert config == dataclasses.replace(WebConfig(), languages=("ru",), pictures=pictures)
    assert load_web_config(None) == WebConfig()


def test_the_printed_config_reads_back(tmp_path: Path) -> None:
    config = dataclasses.replace(WebConfig(), shards=7)
    assert load_web_config(written(tmp_path, plain_config(config))) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ([1], "instead of an object"),
        ({"langages": ["en"]}, "langages: there is no such field; those there are: languages"),
        ({"pages": {"least": 1}}, r"pages\.least: there is no such field"),
        ({"pages": 3}, r"pages\.: 3 instead of an object|pages"),
        ({"shards": "many"}, 'shards: "many" instead of a whole number'),
        ({"shards": True}, "shards: true"),
        ({"languages": "en"}, 'languages: "en" instead of a list'),
        ({"languages": []}, "give at least one"),
        ({"shards": -1}, "shards: -1"),
        ({"pictures": {"same_distance": 9}}, "it can be 0 to 3"),
        ({"duplicates": {"similarity": 80}}, "a share"),
        ({"contamination": {"gram": 0}}, "at least one word"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_web_config(written(tmp_path, content))
    assert "config.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"nowhere\.json: cannot be read"):
        load_web_config("nowhere.json")
