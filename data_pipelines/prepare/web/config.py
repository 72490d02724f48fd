"""What `vlm data prepare web` keeps and drops: one frozen config, read from a JSON file."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from etils import epath

from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PassageRules:
    """Which passages of a page stay."""

    most_links: float = 0.8
    """Share of characters in links above which a passage is a list of links; headings are kept."""
    least_script_share: float = 0.5
    """Share of letters in the script of the page's language below which a passage was left untranslated."""
    least_script_letters: int = 12
    """Passages with fewer letters are not asked for their script: names, keys, numbers."""
    most_pages_of_site: int = 20
    """A passage that stands on more pages of its site is boilerplate; headings are kept."""
    least_boilerplate_words: int = 3
    """Passages of fewer words are never boilerplate: cells of tables, labels."""
    least_repeated_words: int = 5
    """A passage of at least so many words stays once a page."""


@dataclasses.dataclass(frozen=True)
class PageRules:
    """Which pages stay, after their passages were looked through. Thresholds are near those of Gopher and OBELICS."""

    most_bytes: int = 10_000_000
    """Of the HTML file; larger ones are not parsed."""
    least_words: int = 20
    most_words: int = 100_000
    least_word_length: float = 2.5
    """Mean number of letters a word."""
    most_word_length: float = 12.0
    least_letters: float = 0.6
    """Share of letters among all characters but spaces."""
    most_repeated_passages: float = 0.3
    """Share of characters in passages that stood on the page before."""
    most_top_gram: float = 0.2
    """Share of words that the commonest sequence of three words makes up, on pages of at least `gram_words`."""
    most_repeated_grams: float = 0.5
    """Share of sequences of five words that are on the page more than once, likewise."""
    gram_words: int = 100
    most_ellipses: float = 0.3
    """Share of passages, but headings, that end in an ellipsis: teasers of other pages."""
    placeholders: tuple[str, ...] = ("lorem ipsum", "enable javascript", "включите javascript", "404 not found")
    """A short page with one of these says nothing else."""
    placeholder_words: int = 100
    """So many words are short."""
    sure_words: int = 50
    """A page of fewer words is taken to be in the language that it says, if that is wanted: too little to tell by."""


@dataclasses.dataclass(frozen=True)
class PictureRules:
    """Which pictures stay, and which pages for their sake."""

    least_side: int = 64
    """Pixels of the shorter side."""
    most_pixels: int = 50_000_000
    most_bytes: int = 30_000_000
    most_aspect: float = 4.0
    """Longer side / shorter side."""
    tracking_side: int = 3
    """A picture at most so large each way counts readers and shows nothing."""
    bad_names: tuple[str, ...] = ("logo", "button", "icon", "avatar", "spacer", "pixel", "badge", "sprite", "captcha")
    """Words in a picture's file name that tell of decoration."""
    most_pages: int = 10
    """A picture that stands, or one like it stands, on more pages is decoration."""
    same_distance: int = 3
    """Bits of 64 in which perceptual hashes of the same picture may differ; at most 3."""
    same_colours: float = 3.0
    """Mean difference, of 255, up to which two such are the same and not, say, the same scene before and after."""
    least_pictures: int = 1
    """A page with fewer is dropped; 0 keeps pages of text alone."""
    most_pictures: int = 30
    least_words_a_picture: float = 8.0
    """A page with fewer words a picture is a gallery."""


@dataclasses.dataclass(frozen=True)
class DuplicateRules:
    """When two pages are the same text."""

    similarity: float = 0.8
    """Jaccard similarity of their sequences of words; the better page stays (more pictures, then by address)."""
    gram: int = 5
    """Words a sequence."""
    permutations: int = 128
    """Of the MinHash."""


@dataclasses.dataclass(frozen=True)
class ContaminationRules:
    """When a page or picture comes too close to an evaluation set."""

    gram: int = 8
    """A page that shares a sequence of so many words with an evaluation text is dropped."""
    least_words: int = 4
    """An evaluation text shorter than a sequence counts where it is a whole passage, if it has so many words."""
    distance: int = 4
    """Bits of 64 in which the perceptual hash of a picture may differ from an evaluation picture's."""


@dataclasses.dataclass(frozen=True)
class WebConfig:
    """All that decides the output, besides the input and the code."""

    languages: tuple[str, ...] = ("en", "ru")
    """ISO 639-1 codes of the languages to keep."""
    shards: int = 0
    """Number of files; 0 = as many as make them about 64 MiB large."""
    passages: PassageRules = PassageRules()
    pages: PageRules = PageRules()
    pictures: PictureRules = PictureRules()
    duplicates: DuplicateRules = DuplicateRules()
    contamination: ContaminationRules = ContaminationRules()

    def __post_init__(self) -> None:
        if not self.languages:
            raise UserError("languages: none is named; give at least one, such as ['en']")
        if self.shards < 0:
            raise UserError(f"shards: {self.shards}; give a number of files, or 0 to choose it by size")
        if not 0 <= self.pictures.same_distance <= 3:
            raise UserError(f"pictures.same_distance: {self.pictures.same_distance}; it can be 0 to 3")
        if not 0 < self.duplicates.similarity <= 1:
            raise UserError(f"duplicates.similarity: {self.duplicates.similarity}; it is a share above 0, at most 1")
        if self.duplicates.permutations < 16:
            raise UserError(f"duplicates.permutations: {self.duplicates.permutations}; give at least 16")
        for name, gram in (("duplicates.gram", self.duplicates.gram), ("contamination.gram", self.contamination.gram)):
            if gram < 1:
                raise UserError(f"{name}: {gram}; a sequence has at least one word")


def load_web_config(path: str | None) -> WebConfig:
    """Reads a config from a JSON file; fields that it leaves out keep their defaults, None is all defaults.

    Raises:
        UserError: if the file cannot be read, or names a field that there is not, or gives one of a wrong type.
    """
    if path is None:
        return WebConfig()
    try:
        plain = json.loads(epath.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); give a JSON file") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); mend it") from None
    try:
        return _build(WebConfig, plain, "")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def plain_config(config: WebConfig) -> dict[str, Any]:
    """The config as JSON has it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _build(kind: Any, plain: Any, where: str) -> Any:
    if not isinstance(plain, Mapping):
        raise UserError(f"{where or 'the file'}: {_shown(plain)} instead of an object with fields")
    hints = typing.get_type_hints(kind)
    for name in plain:
        if name not in hints:
            raise UserError(f"{where}{name}: there is no such field; those there are: {', '.join(hints)}")
    return kind(**{name: _value(hints[name], value, f"{where}{name}") for name, value in plain.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{where}.")
    if isinstance(hint, types.GenericAlias):
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise UserError(f"{where}: {_shown(value)} instead of a list of strings")
        return tuple(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise UserError(f"{where}: {_shown(value)} instead of {'a whole number' if hint is int else 'a number'}")
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"
