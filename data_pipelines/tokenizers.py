"""Tokenizers: text to ids and back, without loss and without a way for text to become a control token."""

import dataclasses
import functools
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol

import sentencepiece
from etils import epath

from vlm_jax.errors import UserError

_MODEL_FILE = "tokenizer.model"
_JSON_FILE = "tokenizer.json"

# In the order of their ids: sentencepiece numbers the control symbols after the four it knows itself.
_PIECES = ("<pad>", "<unk>", "<bos>", "<end>", "<image>", "<user>", "<assistant>")
_BYTES = 256
# sentencepiece writes spaces as this character, so the character itself must go another way: as its bytes.
_SPACE_MARK = "▁"
_CACHED_TEXT_LENGTH = 256
_TRAINING_LINE_LENGTH = 4000


@dataclasses.dataclass(frozen=True)
class SentencePieceConfig:
    """What to train.

    vocabulary_size: ids in all, of which 7 are control tokens and 256 are bytes.
    model_type: 'unigram' or 'bpe'.
    character_coverage: share of the text's characters, 0.98 to 1, that get pieces of their own; the rest is spelled in
        bytes.
    """

    vocabulary_size: int = 384
    model_type: Literal["unigram", "bpe"] = "unigram"
    character_coverage: float = 1.0


class Tokenizer(Protocol):
    """What the rest of the code needs of a tokenizer."""

    @property
    def vocabulary_size(self) -> int:
        """Number of ids."""

    @property
    def pad_id(self) -> int:
        """Fills unused positions."""

    @property
    def bos_id(self) -> int:
        """Opens an example."""

    @property
    def end_id(self) -> int:
        """Ends a turn or a document."""

    @property
    def image_id(self) -> int:
        """Holds the place of a visual token."""

    @property
    def user_id(self) -> int:
        """Opens the user's turn."""

    @property
    def assistant_id(self) -> int:
        """Opens the assistant's turn."""

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; never a control token, whatever the text says."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; control tokens are dropped."""

    def id_to_piece(self, id: int) -> str:
        """How one id is written, for people."""

    def save(self, directory: epath.PathLike) -> None:
        """Writes files that `load_tokenizer` reads."""


class SentencePieceTokenizer:
    """A sentencepiece model with byte fallback: every text comes back as it was."""

    def __init__(self, model: bytes) -> None:
        """Loads a serialised model.

        Raises:
            ValueError: if the bytes are not a model with the control tokens that are needed here.
        """
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"not a sentencepiece model ({error})") from None
        self._model = model
        self.vocabulary_size: int = self._processor.vocab_size()
        if self.vocabulary_size < len(_PIECES) + _BYTES:
            raise ValueError("a sentencepiece model without control tokens and bytes")
        found = tuple(self._processor.id_to_piece(id) for id in range(len(_PIECES)))
        if found != _PIECES:
            raise ValueError(f"a sentencepiece model with other control tokens: {found}")
        self.pad_id, self.unknown_id, self.bos_id, self.end_id, self.image_id, self.user_id, self.assistant_id = range(
            7
        )
        self._space_mark_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]
        self._short = functools.lru_cache(maxsize=1 << 16)(self._encode)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; never a control token, whatever the text says.

        Raises:
            UnicodeEncodeError: if the text holds half of a surrogate pair, which no UTF-8 can carry.
        """
        # Questions, answers and captions come back every epoch, and a look-up is ten times cheaper than a segmentation.
        return list(self._short(text) if len(text) <= _CACHED_TEXT_LENGTH else self._encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; control tokens are dropped, and bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: if an id is outside the vocabulary.
        """
        plain = [int(id) for id in ids]
        for id in plain:
            if not 0 <= id < self.vocabulary_size:
                raise ValueError(f"token id {id} is outside the vocabulary of {self.vocabulary_size}")
        return self._processor.decode([id for id in plain if id >= len(_PIECES)])

    def id_to_piece(self, id: int) -> str:
        """How one id is written, for people; spaces show as ▁."""
        return self._processor.id_to_piece(int(id))

    def save(self, directory: epath.PathLike) -> None:
        """Writes tokenizer.model and tokenizer.json."""
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _MODEL_FILE).write_bytes(self._model)
        plain = {"type": "sentencepiece", "sha256": hashlib.sha256(self._model).hexdigest()}
        (directory / _JSON_FILE).write_text(json.dumps(plain, indent=2) + "\n")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SentencePieceTokenizer) and self._model == other._model

    def __hash__(self) -> int:
        return hash(self._model)

    def __repr__(self) -> str:
        return f"SentencePieceTokenizer(vocabulary_size={self.vocabulary_size})"

    def __reduce__(self) -> tuple[type["SentencePieceTokenizer"], tuple[bytes]]:
        return SentencePieceTokenizer, (self._model,)

    def _encode(self, text: str) -> tuple[int, ...]:
        text.encode("utf-8")
        ids: list[int] = []
        for number, part in enumerate(text.split(_SPACE_MARK)):
            if number:
                ids += self._space_mark_ids
            ids += self._processor.encode(part)
        return tuple(ids)


def train_sentencepiece(texts: Iterable[str], config: SentencePieceConfig) -> SentencePieceTokenizer:
    """Trains a tokenizer; the same texts in the same order give the same model, byte for byte.

    Texts are taken as they are: no normalisation, no space put in front, several spaces kept.

    Raises:
        UserError: if there is no text, or the vocabulary size does not suit it.
    """
    smallest = len(_PIECES) + _BYTES + 1
    if config.vocabulary_size < smallest:
        raise UserError(
            f"tokenizer vocabulary_size {config.vocabulary_size} is too small: "
            f"{len(_PIECES)} control tokens, {_BYTES} bytes and at least one piece need {smallest} or more"
        )
    if not 0.98 <= config.character_coverage <= 1:
        raise UserError(f"tokenizer character_coverage {config.character_coverage}: give a number from 0.98 to 1")
    lines = list(_training_lines(texts))
    if not lines:
        raise UserError("the tokenizer has no text to train on: give it a mixture that holds text")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=config.vocabulary_size,
            model_type=config.model_type,
            character_coverage=config.character_coverage,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=_PIECES[0],
            unk_piece=_PIECES[1],
            bos_piece=_PIECES[2],
            eos_piece=_PIECES[3],
            control_symbols=list(_PIECES[4:]),
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            max_sentence_length=4 * _TRAINING_LINE_LENGTH,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_training_trouble(str(error), config)) from None
    return SentencePieceTokenizer(model.getvalue())


def load_tokenizer(directory: epath.PathLike) -> Tokenizer:
    """Reads what a tokenizer's `save` wrote.

    Raises:
        UserError: if a file is missing or damaged.
    """
    directory = epath.Path(directory)
    try:
        plain = json.loads((directory / _JSON_FILE).read_text())
        model = (directory / _MODEL_FILE).read_bytes()
    except OSError:
        raise UserError(f"{directory}: no tokenizer here; {_JSON_FILE} and {_MODEL_FILE} are needed") from None
    except ValueError as error:
        raise UserError(f"{directory / _JSON_FILE}: damaged, not JSON ({error}); restore the file") from None
    if not isinstance(plain, dict) or plain.get("type") != "sentencepiece":
        raise UserError(f"{directory / _JSON_FILE}: not a tokenizer of a known type; restore the file")
    if plain.get("sha256") != hashlib.sha256(model).hexdigest():
        raise UserError(f"{directory / _MODEL_FILE}: damaged, its checksum is not the one in {_JSON_FILE}; restore it")
    try:
        return SentencePieceTokenizer(model)
    except ValueError as error:
        raise UserError(f"{directory / _MODEL_FILE}: {error}; restore the file") from None


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines without the characters that make sentencepiece drop a line in silence, none of them too long for it."""
    for text in texts:
        for line in re.split(r"[\n\r\t\x00▁]+", text.encode("utf-8", "ignore").decode()):
            for start in range(0, len(line), _TRAINING_LINE_LENGTH):
                yield line[start : start + _TRAINING_LINE_LENGTH]


def _training_trouble(message: str, config: SentencePieceConfig) -> str:
    size = config.vocabulary_size
    too_high = re.search(r"Vocabulary size.*?too high.*?<= (\d+)", message)
    if too_high:
        return f"tokenizer vocabulary_size {size} is too large for this little text: set it to {too_high[1]} or less"
    too_small = re.search(r"smaller than required_chars\. (\d+) vs (\d+)", message)
    if too_small:
        return (
            f"tokenizer vocabulary_size {size} is too small for the characters of this text: "
            f"set it to {too_small[2]} or more, or lower character_coverage"
        )
    return f"the tokenizer cannot be trained with {config}: {' '.join(message.split())}"
