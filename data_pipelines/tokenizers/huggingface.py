"""Tokenizers of the `tokenizers` library: `tokenizer.json`, as almost every pre-trained LLM brings one."""

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

import tokenizers
from etils import epath
from tokenizers import decoders

from data_pipelines.tokenizers.protocol import IMAGE_TOKEN, Found, Span, filled, unique
from data_pipelines.tokenizers.sentencepieces import JSON_FILE

CONFIG_FILE = "tokenizer_config.json"
OWN = "vlm_jax"
"""Key of what `save` adds to tokenizer_config.json for itself."""

_CACHED_TEXT_LENGTH = 256


def _byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte (GPT-2) -> the byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library with the ids that its files name.

    Its "special" added tokens are the control tokens: plain text never becomes one, and `decode` drops them.
    """

    user_id: int | None = None
    assistant_id: int | None = None

    def __init__(
        self,
        text: str,
        *,
        end_ids: tuple[int, ...],
        bos_id: int | None = None,
        pad_id: int | None = None,
        image_id: int | None = None,
        adds_bos: bool | None = None,
    ) -> None:
        """Loads what a tokenizer.json holds.

        Args:
            text: the file's text.
            end_ids: what ends a turn or a document, at least one.
            bos_id: opens a text; None if there is none.
            pad_id: fills what is not used; None = the first of end_ids.
            image_id: holds a picture's place; None = that of the control token `<image>`, if there is one.
            adds_bos: whether plain text is opened with bos_id; None = as the file's post-processor does.

        Raises:
            ValueError: if the text is not such a file, or an id is not in it.
        """
        try:
            whole = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"not a file of the tokenizers library ({error})") from None
        self.text = text
        self.vocabulary_size: int = max(whole.get_vocab(with_added_tokens=True).values()) + 1
        added = whole.get_added_tokens_decoder()
        self._control = {token.content: (id, token) for id, token in added.items() if token.special}
        self.control_ids = frozenset(id for id, _ in self._control.values())
        self.end_ids = unique(end_ids)
        self.end_id = end_ids[0]
        self.bos_id = bos_id
        self.pad_id: int = self.end_id if pad_id is None else pad_id
        self.image_id = self._control[IMAGE_TOKEN][0] if image_id is None and IMAGE_TOKEN in self._control else image_id
        for id in (*self.end_ids, self.bos_id, self.pad_id, self.image_id):
            if id is not None and whole.id_to_token(id) is None:
                raise ValueError(f"no token has the id {id}")
        opening = whole.encode("a", add_special_tokens=True).ids[:1]
        self.adds_bos: bool = bos_id is not None and (opening == [bos_id] if adds_bos is None else adds_bos)
        self._tokenizer = _plain(text)
        self._byte_level = isinstance(whole.decoder, decoders.ByteLevel)
        longest_first = sorted(self._control, key=len, reverse=True)
        self._written = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._short = functools.lru_cache(maxsize=1 << 16)(self._encode)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; never a control token, whatever the text says.

        Raises:
            UnicodeEncodeError: if the text holds half of a surrogate pair, which no UTF-8 can carry.
        """
        return list(self._short(text) if len(text) <= _CACHED_TEXT_LENGTH else self._encode(text))

    def encode_run(self, text: str, first: bool = True) -> tuple[list[int], list[Span]]:
        """See `Tokenizer`."""
        text.encode("utf-8")
        return self._run(self._tokenizer if first else self._inner, text)

    def find_control(self, text: str) -> list[Found]:
        """See `Tokenizer`."""
        found: list[Found] = []
        for match in self._written.finditer(text):
            id, token = self._control[match[0]]
            start, end = match.span()
            if token.single_word and (text[start - 1 : start].isalnum() or text[end : end + 1].isalnum()):
                continue
            # Some tokens swallow the spaces beside them.
            if token.lstrip:
                start = len(text[:start].rstrip())
            if token.rstrip:
                end = len(text) - len(text[end:].lstrip())
            found.append(Found(max(start, found[-1].end if found else 0), end, id))
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; control tokens are dropped, and bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: if an id is outside the vocabulary.
        """
        plain = [int(id) for id in ids]
        for id in plain:
            if not 0 <= id < self.vocabulary_size:
                raise ValueError(f"token id {id} is outside the vocabulary of {self.vocabulary_size}")
        return self._tokenizer.decode([id for id in plain if id not in self.control_ids], skip_special_tokens=False)

    def id_to_piece(self, id: int) -> str:
        """How one id is written, for people; '' for an id between the others that has no token.

        Spaces show as ▁, and bytes that are no characters as <0xD0>, of byte-level tokenizers too.
        """
        piece = self._tokenizer.id_to_token(int(id)) or ""
        if not self._byte_level or id in self.control_ids or not set(piece) <= _BYTES.keys():
            return piece
        content = bytes(_BYTES[character] for character in piece)
        try:
            text = content.decode().replace(" ", "▁")
        except UnicodeDecodeError:
            text = "\x00"
        return text if text.isprintable() else "".join(f"<0x{byte:02X}>" for byte in content)

    def with_ids(
        self, *, end_ids: tuple[int, ...] | None = None, image_id: int | None = None
    ) -> "HuggingFaceTokenizer":
        """See `Tokenizer`."""
        options = self._options()
        if end_ids is not None:
            options["end_ids"] = end_ids
        if image_id is not None:
            options["image_id"] = image_id
        return HuggingFaceTokenizer(self.text, **options)

    def with_control(self, piece: str) -> "HuggingFaceTokenizer":
        """The same tokenizer with one more control token behind the others."""
        return HuggingFaceTokenizer(with_added(self.text, [piece]), **self._options())

    def save(self, directory: epath.PathLike) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which transformers reads too."""
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / JSON_FILE).write_text(self.text, encoding="utf-8")
        plain = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **({} if self.bos_id is None else {"bos_token": self.id_to_piece(self.bos_id)}),
            "eos_token": self.id_to_piece(self.end_id),
            "pad_token": self.id_to_piece(self.pad_id),
            OWN: {"sha256": digest(self.text), **self._options()},
        }
        text = json.dumps(plain, indent=2, ensure_ascii=False) + "\n"
        (directory / CONFIG_FILE).write_text(text, encoding="utf-8")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HuggingFaceTokenizer) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"HuggingFaceTokenizer(vocabulary_size={self.vocabulary_size})"

    def __reduce__(self) -> tuple:
        return _restored, (self.text, self._options())

    def _key(self) -> tuple:
        return self.text, *self._options().values()

    def _options(self) -> dict[str, Any]:
        names = ("end_ids", "bos_id", "pad_id", "image_id", "adds_bos")
        return {name: getattr(self, name) for name in names}

    def _run(self, tokenizer: tokenizers.Tokenizer, text: str) -> tuple[list[int], list[Span]]:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        written = self._written.search(text)
        if written is None or self.control_ids.isdisjoint(encoding.ids):
            return encoding.ids, filled(encoding.offsets)
        # Unigram models find control tokens in their vocabulary, so these are cut apart.
        at = written.start() + 1
        ids, spans = self._run(tokenizer, text[:at])
        more, after = self._run(self._continued, text[at:])
        return ids + more, spans + [(start + at, end + at) for start, end in after]

    @functools.cached_property
    def _inner(self) -> tokenizers.Tokenizer:
        """The same tokenizer for text that does not open the sequence."""
        return self._without_space(("first",), normalizer=False)

    @functools.cached_property
    def _continued(self) -> tokenizers.Tokenizer:
        """The same tokenizer for text in the middle of a run: nothing puts a space in front of it."""
        return self._without_space(("first", "always"), normalizer=True)

    def _without_space(self, schemes: tuple[str, ...], normalizer: bool) -> tokenizers.Tokenizer:
        plain = json.loads(self.text)
        for step in _steps(plain.get("pre_tokenizer"), "pretokenizers"):
            if step.get("prepend_scheme") in schemes:
                step["prepend_scheme"] = "never"
            if normalizer and "add_prefix_space" in step:
                step["add_prefix_space"] = False
        if normalizer:
            for step in _steps(plain.get("normalizer"), "normalizers"):
                if step["type"] == "Prepend":
                    step["prepend"] = ""
        return _plain(json.dumps(plain))

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.encode_run(text)[0])


def _steps(plain: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a pre-tokeniser or normaliser, of which each may be a sequence of others."""
    return [] if plain is None else plain.get(name, [plain])


def with_added(text: str, pieces: Sequence[str]) -> str:
    """A tokenizer.json with these pieces as control tokens; those that are not there get new ids behind the others."""
    tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.add_special_tokens([tokenizers.AddedToken(piece, special=True, normalized=False) for piece in pieces])
    return tokenizer.to_str()


def digest(text: str) -> str:
    """Checksum of a file's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(text: str) -> tokenizers.Tokenizer:
    """For plain text: control tokens are not looked for, nothing is added, cut or filled up, offsets are whole."""
    tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = True
    tokenizer.post_processor = None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _restored(text: str, options: dict[str, Any]) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(text, **options)
