"""Hugging Face directories: which files name which tokens."""

import json

import pytest
from chat_texts import build_tokenizer, sentencepiece_model  # tests/parity/chat_texts.py

from data_pipelines.tokenizers import load_tokenizer
from vlm_jax.errors import UserError


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "tokenizer.json").write_text(build_tokenizer("metaspace").to_str())
    return tmp_path


def write(directory, **files):
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return load_tokenizer(directory)


def test_tokens_are_named_by_text_or_object(directory):
    tokenizer = write(directory, tokenizer_config={"bos_token": "<s>", "eos_token": {"content": "</s>"}})
    assert (tokenizer.id_to_piece(tokenizer.bos_id), tokenizer.id_to_piece(tokenizer.end_id)) == ("<s>", "</s>")
    assert tokenizer.pad_id == tokenizer.end_id
    assert tokenizer.adds_bos
    assert not write(
        directory, tokenizer_config={"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False}
    ).adds_bos


def test_special_tokens_map_and_numbers_of_the_model_stand_in(directory):
    tokenizer = write(directory, special_tokens_map={"eos_token": "</s>", "pad_token": "<unk>"})
    assert tokenizer.id_to_piece(tokenizer.pad_id) == "<unk>"
    assert tokenizer.bos_id is None
    end = tokenizer.end_id
    (directory / "special_tokens_map.json").unlink()
    assert write(directory, config={"eos_token_id": end, "bos_token_id": 1}).end_ids == (end,)
    assert write(directory, config={"text_config": {"eos_token_id": end}}).end_ids == (end,)


def test_what_stops_generation_ends_a_text_too(directory):
    tokenizer = write(directory, tokenizer_config={"eos_token": "</s>"}, generation_config={"eos_token_id": [9, 10]})
    assert tokenizer.end_ids == (tokenizer.find_control("</s>")[0].id, 9, 10)


def test_tokens_that_only_the_config_knows_are_added(directory):
    config = {
        "eos_token": "<|done|>",
        "added_tokens_decoder": {"7000": {"content": "<|more|>", "special": True}},
        "extra_special_tokens": {"image_token": "<pic>"},
        "image_token": "<pic>",
    }
    tokenizer = write(directory, tokenizer_config=config)
    assert {tokenizer.id_to_piece(id) for id in tokenizer.control_ids} >= {"<|done|>", "<|more|>", "<pic>"}
    assert tokenizer.id_to_piece(tokenizer.image_id) == "<pic>"


def test_an_imported_sentencepiece_model(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model("bpe", turns=("<start_of_turn>", "<end_of_turn>")))
    config = {"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>", "<image>"], "add_bos_token": False}
    tokenizer = write(tmp_path, tokenizer_config=config, generation_config={"eos_token_id": [2, 4]})
    assert tokenizer.image_id == tokenizer.vocabulary_size - 1
    assert tokenizer.end_ids == (2, 4)
    assert not tokenizer.adds_bos
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode("<start_of_turn>"))
    tokenizer.save(tmp_path / "ours")
    assert load_tokenizer(tmp_path / "ours") == tokenizer


def test_llamas_space_is_put_in_front_once_as_transformers_has_it(directory):
    plain = json.loads(build_tokenizer("metaspace").to_str())
    plain["pre_tokenizer"] = None
    steps = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    plain["normalizer"] = {"type": "Sequence", "normalizers": steps}
    (directory / "tokenizer.json").write_text(json.dumps(plain))
    named = {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"}
    once = write(directory, tokenizer_config=named)
    always = write(directory, tokenizer_config={**named, "legacy": True})
    assert once.encode("круг") == always.encode("круг") == always.encode_run("круг", first=False)[0]
    assert once.encode_run("круг", first=False)[0] != once.encode("круг")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no file beside it says which token ends a text"),
        ({"tokenizer_config": {"eos_token": "</s>"}, "generation_config": {"eos_token_id": 70000}}, "id 70000"),
        ({"tokenizer_config": []}, "not a JSON object"),
        ({"tokenizer": {"type": "other"}}, "not a tokenizer of a known type"),
    ],
)
def test_what_cannot_be_used_says_why(directory, files, said):
    with pytest.raises(UserError, match=said) as caught:
        write(directory, **files)
    assert "\n" not in str(caught.value)
