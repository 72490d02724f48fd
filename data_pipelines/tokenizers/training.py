"""Training a sentencepiece tokenizer with the control tokens that templates here need."""

import dataclasses
import io
import re
from collections.abc import Iterable, Iterator
from typing import Literal

import sentencepiece

from data_pipelines.tokenizers.sentencepieces import CONTROL_PIECES, SentencePieceTokenizer
from vlm_jax.errors import UserError

_BYTES = 256
_TRAINING_LINE_LENGTH = 4000


@dataclasses.dataclass(frozen=True)
class SentencePieceConfig:
    """What to train.

    vocabulary_size: ids in all, of which 7 are control tokens and 256 are bytes.
    model_type: 'unigram' or 'bpe'.
    character_coverage: share of the text's characters, 0.98 to 1, that get pieces of their own; the rest is spelled in
        bytes.
    sample: characters of the mixture's texts that it is trained on, from random places of every source, each source by
        its share of the mixture, averaged over the stages; all there is, where there is less. 0 = 400 for each id of
        the vocabulary, and at least 2 million.
    temperature: 0 = the languages as the mixture has them. T > 0 takes of each (told apart by script) in proportion to
        what there is, to the power 1/T: with 3 or more, a language of which there is little hardly suffers.
    """

    vocabulary_size: int = 384
    model_type: Literal["unigram", "bpe"] = "unigram"
    character_coverage: float = 1.0
    sample: int = 0
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.sample < 0:
            raise UserError(f"tokenizer sample {self.sample}: give the number of characters to train on, or 0")
        if not self.temperature >= 0:
            raise UserError(f"tokenizer temperature {self.temperature}: give 0 for languages as they come, or more")

    @property
    def characters(self) -> int:
        """How many characters to train on."""
        return self.sample or max(2_000_000, 400 * self.vocabulary_size)


def train_sentencepiece(texts: Iterable[str], config: SentencePieceConfig) -> SentencePieceTokenizer:
    """Trains a tokenizer; the same texts in the same order give the same model, byte for byte.

    Texts are taken as they are: no normalisation, no space put in front, several spaces kept.

    Raises:
        UserError: if there is no text, or the vocabulary size does not suit it.
    """
    smallest = len(CONTROL_PIECES) + _BYTES + 1
    if config.vocabulary_size < smallest:
        raise UserError(
            f"tokenizer vocabulary_size {config.vocabulary_size} is too small: "
            f"{len(CONTROL_PIECES)} control tokens, {_BYTES} bytes and at least one piece need {smallest} or more"
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
            pad_piece=CONTROL_PIECES[0],
            unk_piece=CONTROL_PIECES[1],
            bos_piece=CONTROL_PIECES[2],
            eos_piece=CONTROL_PIECES[3],
            control_symbols=list(CONTROL_PIECES[4:]),
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
        return (
            f"tokenizer vocabulary_size {size} is too large for this little text: set it to {too_high[1]} or less, or "
            "train on more text"
        )
    too_small = re.search(r"smaller than required_chars\. (\d+) vs (\d+)", message)
    if too_small:
        return (
            f"tokenizer vocabulary_size {size} is too small for the characters of this text: "
            f"set it to {too_small[2]} or more, or lower character_coverage"
        )
    return f"the tokenizer cannot be trained with {config}: {' '.join(message.split())}"
