"""The tokenizer of the instruction that InstructBLIP's Q-Former reads: BERT's, in a directory of its own."""

import json
from pathlib import Path

import tokenizers

from data_pipelines.tokenizers import HuggingFaceTokenizer, Tokenizer
from data_pipelines.tokenizers.files import read_json, token_text
from data_pipelines.tokenizers.huggingface import CONFIG_FILE
from data_pipelines.tokenizers.sentencepieces import JSON_FILE
from vlm_jax.errors import UserError

DIRECTORY = "qformer_tokenizer"
"""Where InstructBLIP's processor of transformers keeps it."""

_NAMES = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}


def instruction_tokenizer(directory: Path) -> HuggingFaceTokenizer:
    """DIRECTORY/qformer_tokenizer, which opens a text with [CLS] and ends it with [SEP].

    Raises:
        UserError: if it is missing or damaged, or has no such tokens.
    """
    path = directory / DIRECTORY / JSON_FILE
    if not path.is_file():
        raise UserError(f"{path}: is missing, and the Q-Former reads instructions by it; copy it there")
    config = read_json(directory / DIRECTORY / CONFIG_FILE, missing=True)
    text = path.read_text(encoding="utf-8")
    try:
        whole = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path}: not a file of the tokenizers library ({error}); copy it again") from None
    pieces = {name: token_text(config.get(name)) or usual for name, usual in _NAMES.items()}
    known = whole.get_vocab(with_added_tokens=True)
    if missing := [piece for piece in pieces.values() if piece not in known]:
        raise UserError(f"{path}: has no token {missing[0]}, which an instruction is written with; copy it again")
    ids = {name: known[piece] for name, piece in pieces.items()}
    return HuggingFaceTokenizer(
        text, end_ids=(ids["sep_token"],), bos_id=ids["cls_token"], pad_id=ids["pad_token"], adds_bos=True
    )


def write_instruction_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """The inverse, for transformers."""
    where = directory / DIRECTORY
    tokenizer.save(where)
    path = where / CONFIG_FILE
    named = json.loads(path.read_text(encoding="utf-8"))
    assert tokenizer.bos_id is not None
    named |= {
        "cls_token": tokenizer.id_to_piece(tokenizer.bos_id),
        "sep_token": tokenizer.id_to_piece(tokenizer.end_id),
    }
    path.write_text(json.dumps(named, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
