"""Pages of manuals: passages and pictures in reading order, and the records that they become.

A corpus's reader makes a `Page` of each of its files. The page goes into an interleaved record if a picture is left on
it, and into a text record otherwise, so that it stands in one set only.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from data_pipelines.examples import Image
from data_pipelines.image_files import size_in_header
from data_pipelines.prepare.corpora.sets import Record
from data_pipelines.prepare.scripts import is_written_in
from data_pipelines.prepare.splits import SPLITS, Split, split_of
from data_pipelines.words import words_of
from vlm_jax.errors import UserError

MIN_WORDS = 30
"""Pages with fewer words are left out: lists of links, titles without a text."""

_SAYS_SOMETHING = 8
"""Words. Shorter passages ("Choose Format - Page.") may stand on any page; longer ones that training has are not held
out."""

_MIN_TRANSLATED = 0.5
"""Pages with a smaller share of text in their language are left out as a whole."""

_MIN_SIDE, _MIN_LONG_SIDE = 32, 64
"""Pictures below are left out, in pixels: signs beside notes, buttons inside sentences."""


@dataclasses.dataclass(frozen=True)
class Passage:
    """A paragraph, or what stands like one."""

    text: str
    role: Literal["heading", "paragraph", "item", "row", "code", "caption"] = "paragraph"
    level: int = 0
    """Of a heading: 1 is the highest."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture in its place."""

    path: str
    """Below the directory of the page's language; the same picture has the same path in every language."""

    caption: str = ""
    """What the page says of this very picture, '' if it says nothing."""

    heading: str = ""
    """The section that it stands in."""


@dataclasses.dataclass(frozen=True)
class Page:
    """A page in one language."""

    name: str
    """The same in every language: 'gimp-tool-crop'."""

    language: str
    title: str
    blocks: tuple[Passage | Picture, ...]
    root: Path
    """Directory that the pictures' paths start from."""

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The pictures in reading order."""
        return tuple(block for block in self.blocks if isinstance(block, Picture))


def pair_key(corpus: str, picture: str, language: str) -> str:
    """Names a distinct real pair of a picture and its text, whichever records it goes into."""
    return f"{corpus}/{picture}:{language}"


def translated(page: Page) -> Page:
    """The page without the passages and captions that are not in its language, and headings that head nothing then."""

    def own(text: str) -> str:
        return text if is_written_in(text, page.language) else ""

    kept: list[Passage | Picture] = []
    for block in page.blocks:
        if isinstance(block, Picture):
            kept.append(Picture(block.path, own(block.caption), own(block.heading)))
        elif block.role == "code" or own(block.text):
            kept.append(block)
    return dataclasses.replace(page, title=own(page.title), blocks=tuple(_without_empty_sections(kept)))


def _is_translated(page: Page) -> bool:
    """Whether most of the page's letters stand in passages of its language, so that what is left of it coheres."""
    kept = total = 0
    for block in page.blocks:
        if isinstance(block, Passage) and block.role != "code":
            total += len(block.text)
            kept += len(block.text) * is_written_in(block.text, page.language)
    return kept >= _MIN_TRANSLATED * total


def _without_empty_sections(blocks: Sequence[Passage | Picture]) -> list[Passage | Picture]:
    """Without headings that a heading as high, or the end, follows at once."""
    kept: list[Passage | Picture] = []
    after: int | None = 0
    for block in reversed(blocks):
        level = block.level if isinstance(block, Passage) and block.role == "heading" else None
        if level is None or after is None or after > level:
            kept.append(block)
            after = level
    return kept[::-1]


def _long_passages(page: Page) -> set[str]:
    return {
        block.text
        for block in page.blocks
        if isinstance(block, Passage) and len(words_of(block.text)) >= _SAYS_SOMETHING
    }


def _without(page: Page, texts: Collection[str]) -> Page:
    """The page without the passages that say one of the texts."""
    kept = [block for block in page.blocks if not (isinstance(block, Passage) and block.text in texts)]
    return dataclasses.replace(page, blocks=tuple(_without_empty_sections(kept)))


def large_enough(path: Path) -> bool:
    """Whether the file is a picture, and larger than signs and buttons are."""
    try:
        size = size_in_header(path.read_bytes())
    except OSError:
        return False
    return size is not None and min(size) >= _MIN_SIDE and max(size) >= _MIN_LONG_SIDE


def picture_splits(pages: Iterable[Page], corpus: str) -> Mapping[str, Split]:
    """The split of each picture of the pages by its path.

    A picture that pages of several splits show belongs to train if one of them does, so no picture is held out that
    training has seen. Files with the same bytes count as one picture.
    """
    files: dict[str, set[str]] = {}
    found: dict[str, set[Split]] = collections.defaultdict(set)
    for page in pages:
        for picture in page.pictures:
            content = hashlib.sha256((page.root / picture.path).read_bytes()).hexdigest()
            files.setdefault(picture.path, set()).add(content)
            found[picture.path].add(split_of(f"{corpus}/{page.name}"))
    by_content: dict[str, set[Split]] = collections.defaultdict(set)
    for path, contents in files.items():
        for content in contents:
            by_content[content] |= found[path]
    for path, contents in files.items():
        for content in contents:
            found[path] |= by_content[content]
    return {path: _first(splits) for path, splits in found.items()}


def _first(splits: Collection[Split]) -> Split:
    return min(splits, key=("train", *(split for split in SPLITS if split != "train")).index)


def page_record(page: Page, corpus: str, shown: Callable[[Picture], bool]) -> Record | None:
    """The page as an interleaved or, where no picture is shown, as a text record; None if there is too little text.

    Args:
        page: as the reader made it.
        corpus: names it in ids: 'gimp'.
        shown: which pictures stay.

    Returns:
        {'id', 'language', 'title', 'segments', 'real'} or {'id', 'language', 'title', 'text'}. Passages between two
        pictures are one text, but for captions, which stand by themselves: a picture's 'text_index' names its caption.
    """
    segments: list[dict[str, Any]] = []
    real: list[str] = []
    run: list[Passage] = []

    def close() -> None:
        if run:
            segments.append({"text": joined(run)})
            run.clear()

    for block in page.blocks:
        if isinstance(block, Passage):
            if block.role == "caption":
                close()
                segments.append({"text": block.text})
            else:
                run.append(block)
        elif shown(block):
            close()
            segments.append({"image": Image(path=str(page.root / block.path))})
            if block.caption:
                segments[-1]["caption"] = block.caption
                real.append(pair_key(corpus, block.path, page.language))
    close()
    texts = [segment["text"] for segment in segments if "text" in segment]
    if sum(len(words_of(text)) for text in texts) < MIN_WORDS:
        return None
    record: Record = {"id": f"{corpus}/{page.name}:{page.language}", "language": page.language, "title": page.title}
    if len(texts) == len(segments):
        return record | {"text": "\n\n".join(texts)}
    _join_captions(segments)
    return record | {"segments": segments, "real": real}


def _join_captions(segments: list[dict[str, Any]]) -> None:
    """Gives each picture the number of the text that is its caption, the nearer side first."""
    text_index = -1
    numbers: list[int] = []
    for segment in segments:
        text_index += "text" in segment
        numbers.append(text_index)
    for place, segment in enumerate(segments):
        caption = segment.pop("caption", "")
        for beside in (place + 1, place - 1):
            if caption and 0 <= beside < len(segments) and segments[beside].get("text", "\0") in caption:
                segment["text_index"] = numbers[beside]
                break


def joined(passages: Sequence[Passage]) -> str:
    """Passages as running text: a line between paragraphs, none between the items of a list or the rows of a table."""
    text = ""
    for before, passage in zip([None, *passages], passages, strict=False):
        if before is not None:
            text += "\n" if before.role == passage.role and passage.role in ("item", "row") else "\n\n"
        text += f"- {passage.text}" if passage.role == "item" else passage.text
    return text


def page_records(
    pages: Sequence[Page], corpus: str, kind: Literal["interleaved", "text_only"]
) -> Iterator[tuple[Split, Record]]:
    """The records of one kind with their splits: the page's, whatever its language.

    A page shows only pictures of its own split, and held-out pages leave out passages that a page of training has word
    for word, so that they hold nothing that training has seen.

    Raises:
        UserError: if there is no page at all.
    """
    if not pages:
        raise UserError(f"{corpus}: no page was found; unpack its package again with `vlm data fetch`")
    shown = picture_splits(pages, corpus)
    split = {page.name: split_of(f"{corpus}/{page.name}") for page in pages}
    whole = [translated(page) for page in pages if _is_translated(page)]
    seen = set().union(*(_long_passages(page) for page in whole if split[page.name] == "train"))
    for page in whole:
        own = split[page.name]
        record = page_record(
            page if own == "train" else _without(page, seen),
            corpus,
            lambda picture, own=own: shown[picture.path] == own,
        )
        if record is not None and ("segments" in record) == (kind == "interleaved"):
            yield own, record
