"""A tokenizer from a directory: what `save` wrote, or the files of a Hugging Face checkpoint."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers
from etils import epath

from data_pipelines.tokenizers.huggingface import CONFIG_FILE, OWN, HuggingFaceTokenizer, digest, with_added
from data_pipelines.tokenizers.protocol import IMAGE_TOKEN, Tokenizer, unique
from data_pipelines.tokenizers.sentencepieces import JSON_FILE, MODEL_FILE, SentencePieceTokenizer
from vlm_jax.errors import UserError

_NAMES = ("bos_token", "eos_token", "pad_token", "image_token")


def load_tokenizer(directory: epath.PathLike) -> Tokenizer:
    """Reads what a tokenizer's `save` wrote, or a Hugging Face directory.

    There, tokenizer.json is preferred to tokenizer.model; tokenizer_config.json and special_tokens_map.json name the
    tokens that open and end a text, and the end-of-text ids of generation_config.json count too.

    Raises:
        UserError: if a file is missing or damaged, or none says which token ends a text.
    """
    directory = epath.Path(directory)
    path = directory / JSON_FILE
    if not path.exists():
        if (directory / MODEL_FILE).exists():
            return _imported_sentencepiece(directory)
        raise UserError(f"{directory}: no tokenizer here; {JSON_FILE} or {MODEL_FILE} is needed")
    plain = read_json(path)
    if plain.get("type") == "sentencepiece":
        return _own_sentencepiece(directory, plain)
    if isinstance(plain.get("model"), dict):
        return _huggingface(directory)
    raise UserError(f"{path}: not a tokenizer of a known type; restore the file")


def with_image_token(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a control token for a picture's place: its own if it has one, else `<image>`, at the end.

    The vocabulary grows by one then, and the embedding table with it when weights are loaded. (Where a model embeds
    more ids than its tokenizer has, as Qwen does, the new id may be one of those.)
    """
    if tokenizer.image_id is not None:
        return tokenizer
    assert isinstance(tokenizer, (HuggingFaceTokenizer, SentencePieceTokenizer))
    return tokenizer.with_control(IMAGE_TOKEN)


def read_json(path: epath.Path, missing: bool = False) -> dict[str, Any]:
    """A JSON object from a file; {} where the file may be missing and is.

    Raises:
        UserError: if the file cannot be read or does not hold a JSON object.
    """
    if missing and not path.exists():
        return {}
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); restore the file") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged, not JSON ({error}); restore the file") from None
    if not isinstance(plain, dict):
        raise UserError(f"{path}: not a JSON object, so not a tokenizer of a known type; restore the file")
    return plain


def token_text(token: object) -> str | None:
    """How transformers' files write a token: its text, or an object that holds it as `content`."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _own_sentencepiece(directory: epath.Path, plain: dict[str, Any]) -> SentencePieceTokenizer:
    path = directory / MODEL_FILE
    try:
        model = path.read_bytes()
    except OSError:
        raise UserError(f"{directory}: no tokenizer here; {JSON_FILE} and {MODEL_FILE} are needed") from None
    if plain.get("sha256") != hashlib.sha256(model).hexdigest():
        raise UserError(f"{path}: damaged, its checksum is not the one in {JSON_FILE}; restore it")
    try:
        return SentencePieceTokenizer(
            model,
            control=tuple(plain.get("control", ())),
            end_ids=tuple(plain.get("end_ids", ())),
            image_id=plain.get("image_id"),
            adds_bos=plain.get("adds_bos", True),
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}; restore the file") from None


def _huggingface(directory: epath.Path) -> HuggingFaceTokenizer:
    path = directory / JSON_FILE
    text = path.read_text(encoding="utf-8")
    config = read_json(directory / CONFIG_FILE, missing=True)
    own = config.get(OWN)
    try:
        if isinstance(own, dict):
            if own.get("sha256") != digest(text):
                raise UserError(f"{path}: damaged, its checksum is not the one in {CONFIG_FILE}; restore it")
            options = {name: value for name, value in own.items() if name != "sha256"}
            return HuggingFaceTokenizer(text, **{**options, "end_ids": tuple(options["end_ids"])})
        text = _with_named_tokens(_opening_space_once(text, config), directory, config)
        ids = _Ids(directory, config, tokenizers.Tokenizer.from_str(text).token_to_id)
        adds_bos = config.get("add_bos_token")
        return HuggingFaceTokenizer(
            text,
            end_ids=ids.ends(path),
            bos_id=ids.get("bos_token"),
            pad_id=ids.get("pad_token"),
            image_id=ids.get("image_token"),
            adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}; restore the file") from None


def _with_named_tokens(text: str, directory: epath.Path, config: Mapping[str, Any]) -> str:
    """Adds and marks the control tokens that only the other files know, as transformers does."""
    tokenizer = _parsed(text, directory)
    known = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    wanted = [piece for piece in _control_pieces(directory, config) if not known.get(piece)]
    return with_added(text, wanted) if wanted else text


def _opening_space_once(text: str, config: Mapping[str, Any]) -> str:
    """Puts Llama 2's space in front of a text only, and not behind every control token too.

    The published files say the latter, as the first releases did; transformers goes by `legacy` in their config.
    """
    plain = json.loads(text)
    normalizer = plain.get("normalizer") or {}
    steps = [step.get("type") for step in normalizer.get("normalizers", [])]
    named = str(config.get("tokenizer_class")).startswith("LlamaTokenizer")
    if not named or config.get("legacy") or steps != ["Prepend", "Replace"] or plain.get("pre_tokenizer"):
        return text
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return json.dumps({**plain, "normalizer": None, "pre_tokenizer": space}, ensure_ascii=False)


def _parsed(text: str, directory: epath.Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{directory / JSON_FILE}: not a file of the tokenizers library ({error})") from None


def _imported_sentencepiece(directory: epath.Path) -> SentencePieceTokenizer:
    path = directory / MODEL_FILE
    config = read_json(directory / CONFIG_FILE, missing=True)
    try:
        tokenizer = SentencePieceTokenizer(path.read_bytes())
        pieces = {tokenizer.id_to_piece(id): id for id in range(tokenizer.vocabulary_size)}
        wanted = list(_control_pieces(directory, config))
        for piece in wanted:
            if piece not in pieces:
                pieces[piece] = tokenizer.vocabulary_size
                tokenizer = tokenizer.with_control(piece)
        control = tuple(piece for piece in wanted if pieces[piece] not in tokenizer.control_ids)
        ids = _Ids(directory, config, pieces.get)
        return SentencePieceTokenizer(
            tokenizer.model,
            control=control,
            end_ids=ids.ends(path, tokenizer.end_ids),
            image_id=ids.get("image_token"),
            adds_bos=config.get("add_bos_token") is not False,
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}; restore the file") from None


def _control_pieces(directory: epath.Path, config: Mapping[str, Any]) -> Iterator[str]:
    """Control tokens that the files beside a tokenizer name, in the order of their ids where they tell them."""
    added = config.get("added_tokens_decoder") or {}
    table = {int(id): token for id, token in added.items()}
    listed = [token_text(table[id]) for id in sorted(table) if table[id].get("special")]
    names = {**read_json(directory / "special_tokens_map.json", missing=True), **config}
    listed += [token_text(names.get(name)) for name in _NAMES]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = names.get(key) or ()
        listed += map(token_text, more.values() if isinstance(more, Mapping) else more)
    yield from dict.fromkeys(piece for piece in listed if piece)


class _Ids:
    """Finds the ids that the files of a Hugging Face directory name."""

    def __init__(self, directory: epath.Path, config: Mapping[str, Any], lookup: Any) -> None:
        self._names = {**read_json(directory / "special_tokens_map.json", missing=True), **config}
        model = read_json(directory / "config.json", missing=True)
        text = model.get("text_config")
        self._numbers = (
            read_json(directory / "generation_config.json", missing=True),
            model,
            text if isinstance(text, dict) else {},
        )
        self._lookup = lookup

    def get(self, name: str) -> int | None:
        """Id of bos_token, pad_token, …: by its text, else by the number that the model's config gives."""
        piece = token_text(self._names.get(name))
        if piece is not None:
            return self._lookup(piece)
        if name in self._names:
            return None
        return next((id for id in self._all(f"{name}_id")), None)

    def ends(self, path: epath.Path, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Ids that end a text: the tokenizer's own first, then those that stop generation."""
        own = self.get("eos_token")
        numbers = self._numbers[:1] if own is not None else self._numbers
        ends = unique([*(() if own is None else (own,)), *default, *self._all("eos_token_id", numbers)])
        if not ends:
            raise UserError(
                f"{path}: no file beside it says which token ends a text; "
                f"give eos_token in {CONFIG_FILE} or eos_token_id in generation_config.json"
            )
        return ends

    def _all(self, name: str, numbers: tuple[dict, ...] | None = None) -> Iterator[int]:
        for plain in self._numbers if numbers is None else numbers:
            value = plain.get(name)
            yield from (id for id in (value if isinstance(value, list) else [value]) if isinstance(id, int))
