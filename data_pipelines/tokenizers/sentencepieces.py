"""Sentencepiece models: trained here, or imported as `tokenizer.model` (Llama 2, Gemma, TinyLlama, …)."""

import functools
import hashlib
import itertools
import json
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import sentencepiece
from etils import epath

from data_pipelines.tokenizers.protocol import IMAGE_TOKEN, Found, Span, filled, unique

MODEL_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"

# In the order of their ids: sentencepiece numbers the control symbols after the four it knows itself.
CONTROL_PIECES = ("<pad>", "<unk>", "<bos>", "<end>", IMAGE_TOKEN, "<user>", "<assistant>")
# sentencepiece writes spaces as this character, so the character itself must go another way: as its bytes.
_SPACE_MARK = "▁"
_CACHED_TEXT_LENGTH = 256
_CONTROL_TYPE = 3


class SentencePieceTokenizer:
    """A sentencepiece model.

    Those trained here have byte fallback and change nothing, so every text comes back as it was. Imported ones do what
    their model says: one that puts a space in front of a text takes it away again when it decodes.
    """

    def __init__(
        self,
        model: bytes,
        *,
        control: tuple[str, ...] = (),
        end_ids: tuple[int, ...] = (),
        image_id: int | None = None,
        adds_bos: bool = True,
    ) -> None:
        """Loads a serialised model.

        Args:
            model: what `tokenizer.model` holds.
            control: pieces that are control tokens beside those that the model marks as such (Gemma's turns, say, are
                "user defined" in its model, which would let any text write them).
            end_ids: what ends a turn or a document; where empty, the model's own end of sentence.
            image_id: holds a picture's place; where None, `<image>` if the model has it.
            adds_bos: whether plain text opens with the model's begin of sentence.

        Raises:
            ValueError: if the bytes are not a model, or it has nothing that ends a turn.
        """
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"not a sentencepiece model ({error})") from None
        self._model, self._control, self._ends, self._image = model, control, end_ids, image_id
        self.adds_bos = adds_bos
        processor = self._processor
        self.vocabulary_size: int = processor.vocab_size()
        trained_here = tuple(map(processor.id_to_piece, range(min(self.vocabulary_size, 7)))) == CONTROL_PIECES
        named = {id for id in map(self._id, control) if id is not None}
        kinds = (processor.is_control, processor.is_unknown)
        self.control_ids = frozenset(named | {id for id in range(self.vocabulary_size) if any(k(id) for k in kinds)})
        self.unknown_id: int = processor.unk_id()
        ends = end_ids or tuple(id for id in (processor.eos_id(),) if id >= 0)
        if not ends:
            raise ValueError("a sentencepiece model without a token that ends a sentence")
        self.end_ids = unique(ends)
        self.end_id = ends[0]
        self.bos_id = _or_none(processor.bos_id())
        self.pad_id: int = processor.pad_id() if processor.pad_id() >= 0 else self.end_id
        self.image_id = self._id(IMAGE_TOKEN) if image_id is None else image_id
        self.user_id, self.assistant_id = self._id("<user>"), self._id("<assistant>")
        # An imported model takes the mark for a space, as everybody's Llama 2 does; here it comes back as it was.
        self._mark = _SPACE_MARK if trained_here else ""
        self._mark_ids = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]
        self._symbols = re.compile(
            "|".join(re.escape(self.id_to_piece(id)) for id in sorted(named) if not processor.is_control(id)) or "(?!)"
        )
        texts = {self.id_to_piece(id): id for id in self.control_ids}
        self._control_texts = texts
        self._written = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")
        self._short = functools.lru_cache(maxsize=1 << 16)(self._encode)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; never a control token, whatever the text says.

        Raises:
            UnicodeEncodeError: if the text holds half of a surrogate pair, which no UTF-8 can carry.
        """
        # Questions, answers and captions come back every epoch, and a look-up is ten times cheaper than a segmentation.
        return list(self._short(text) if len(text) <= _CACHED_TEXT_LENGTH else self._encode(text))

    def encode_run(self, text: str, first: bool = True) -> tuple[list[int], list[Span]]:
        """See `Tokenizer`."""
        text.encode("utf-8")
        ids: list[int] = []
        spans: list[Span] = []
        for at, part in self._parts(text):
            if part is None:
                ids += self._mark_ids
                spans += [(at, at + 1)] * len(self._mark_ids)
            elif part:
                processor = self._processor if first and at == 0 else self._inner
                found = processor.encode_as_offset_mapping(part)
                ids += found["ids"]
                spans += [(start + at, end + at) for start, end in found["offsets"]]
        return ids, filled(spans)

    def find_control(self, text: str) -> list[Found]:
        """See `Tokenizer`."""
        return [Found(*match.span(), self._control_texts[match[0]]) for match in self._written.finditer(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; control tokens are dropped, and bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: if an id is outside the vocabulary.
        """
        plain = [int(id) for id in ids]
        for id in plain:
            if not 0 <= id < self.vocabulary_size:
                raise ValueError(f"token id {id} is outside the vocabulary of {self.vocabulary_size}")
        return self._processor.decode([id for id in plain if id not in self.control_ids])

    def id_to_piece(self, id: int) -> str:
        """How one id is written, for people; spaces show as ▁."""
        return self._processor.id_to_piece(int(id))

    def with_ids(
        self, *, end_ids: tuple[int, ...] | None = None, image_id: int | None = None
    ) -> "SentencePieceTokenizer":
        """See `Tokenizer`."""
        options = self._options()
        if end_ids is not None:
            options["end_ids"] = end_ids
        if image_id is not None:
            options["image_id"] = image_id
        return SentencePieceTokenizer(self._model, **options)

    def with_control(self, piece: str) -> "SentencePieceTokenizer":
        """The same tokenizer with one more control token behind the others."""
        # Parts of a serialised model may stand behind each other: a list grows by what is appended to the file.
        entry = _field(1, piece.encode()) + b"\x15" + struct.pack("<f", 0.0) + bytes((0x18, _CONTROL_TYPE))
        return SentencePieceTokenizer(self._model + _field(1, entry), **self._options())

    def save(self, directory: epath.PathLike) -> None:
        """Writes tokenizer.model and tokenizer.json."""
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MODEL_FILE).write_bytes(self._model)
        options = {name: value for name, value in self._options().items() if value not in ((), None, True)}
        plain = {"type": "sentencepiece", "sha256": hashlib.sha256(self._model).hexdigest(), **options}
        (directory / JSON_FILE).write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @property
    def takes_mark_for_space(self) -> bool:
        """Whether U+2581 in a text is the same as a space, as in imported models; else it comes back as it was."""
        return not self._mark

    @property
    def model(self) -> bytes:
        """The serialised model."""
        return self._model

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SentencePieceTokenizer) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"SentencePieceTokenizer(vocabulary_size={self.vocabulary_size})"

    def __reduce__(self) -> tuple:
        return _restored, (self._model, self._options())

    def _key(self) -> tuple:
        return self._model, *self._options().values()

    def _options(self) -> dict[str, Any]:
        """What was said beside the model."""
        return {
            "control": self._control,
            "end_ids": self._ends,
            "image_id": self._image,
            "adds_bos": self.adds_bos,
        }

    def _id(self, piece: str) -> int | None:
        id = self._processor.piece_to_id(piece)
        return id if self._processor.id_to_piece(id) == piece else None

    @functools.cached_property
    def _inner(self) -> sentencepiece.SentencePieceProcessor:
        """The same model for text that does not open the sequence: no space is put in front."""
        # Likewise the last word on an option counts: field 3 is the normaliser, its field 3 add_dummy_prefix.
        return sentencepiece.SentencePieceProcessor(model_proto=self._model + _field(3, b"\x18\x00"))

    def _parts(self, text: str) -> Iterator[tuple[int, str | None]]:
        """(place, text) in order; None stands for the space mark where it is to come back as it was."""
        at = 0
        for number, part in enumerate(text.split(self._mark) if self._mark else [text]):
            if number:
                yield at, None
                at += 1
            # A symbol is broken behind its first character, so that it is not found in the text.
            cuts = [0, *(match.start() + 1 for match in self._symbols.finditer(part)), len(part)]
            for start, end in itertools.pairwise(cuts):
                yield at + start, part[start:end]
            at += len(part)

    def _encode(self, text: str) -> tuple[int, ...]:
        text.encode("utf-8")
        ids: list[int] = []
        for at, part in self._parts(text):
            if part is None:
                ids += self._mark_ids
            elif part:
                ids += (self._processor if at == 0 else self._inner).encode(part)
        return tuple(ids)


def _restored(model: bytes, options: dict[str, Any]) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(model, **options)


def _or_none(id: int) -> int | None:
    return id if id >= 0 else None


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field of a protocol buffer, of less than 128 bytes."""
    assert len(payload) < 128, "a longer field needs a longer length"
    return bytes((number << 3 | 2, len(payload))) + payload
