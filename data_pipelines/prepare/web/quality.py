"""Rules for passages and pages: pure functions of one document."""

import collections
import re
from collections.abc import Iterator

from data_pipelines.optional import need
from data_pipelines.prepare.scripts import LANGUAGES, script_share
from data_pipelines.prepare.web.config import PageRules, PassageRules, WebConfig
from data_pipelines.prepare.web.documents import Document, block_text, blocks_of, text_of
from data_pipelines.words import words_of

_LETTER = re.compile(r"[^\W\d_]")
_NOT_SPACE = re.compile(r"\S")
_IDENTIFIED = 2000
"""Characters that are enough to tell a language."""
_ELLIPSES = ("…", "...")


def language_of(document: Document, config: WebConfig) -> str:
    """The ISO 639-1 code of the language that most of the document is in."""
    text = text_of(document)
    declared = document["language"].partition("-")[0]
    if declared in config.languages and len(words_of(text)) < config.pages.sure_words:
        known = declared in LANGUAGES
        if not known or script_share(text, declared) >= config.passages.least_script_share:
            return declared
    language, _ = need("py3langid", "prepare").classify(text[:_IDENTIFIED])
    return str(language)


def bad_passages(document: Document, rules: PassageRules) -> Iterator[tuple[int, str]]:
    """(block, name of the rule that drops it) of every block that a look at this page alone condemns."""
    met: set[str] = set()
    blocks = blocks_of(document)
    links = {
        number
        for number, segments in blocks.items()
        if not segments[0]["heading"] and _link_share(segments) > rules.most_links
    }
    order = list(blocks)
    beside = dict(zip(order, zip([None, *order], [*order[1:], None], strict=False), strict=False))
    for number, segments in blocks.items():
        text = block_text(segments)
        if "\ufffd" in text:
            yield number, "undecodable"
        elif number in links and not links.isdisjoint(beside[number]):
            yield number, "links"  # one alone is a term that is explained elsewhere
        elif text in met and len(words_of(text)) >= rules.least_repeated_words:
            yield number, "repeated_passage"
        met.add(text)


def foreign_passages(document: Document, rules: PassageRules) -> Iterator[int]:
    """Blocks that are not in the script of the document's language: what nobody has translated."""
    language = document["language"]
    if language not in LANGUAGES:
        return
    for number, segments in blocks_of(document).items():
        text = block_text(segments)
        long_enough = len(_LETTER.findall(text)) >= rules.least_script_letters
        if long_enough and script_share(text, language) < rules.least_script_share:
            yield number


def bad_page(document: Document, config: WebConfig) -> str:
    """The name of the rule that drops the page, or ''."""
    rules = config.pages
    text = text_of(document)
    words = words_of(text)
    if len(words) < rules.least_words:
        return "too_short"
    if len(words) > rules.most_words:
        return "too_long"
    mean = sum(map(len, words)) / len(words)
    if not rules.least_word_length <= mean <= rules.most_word_length:
        return "word_length"
    if len(_LETTER.findall(text)) < rules.least_letters * len(_NOT_SPACE.findall(text)):
        return "symbols"
    if len(words) <= rules.placeholder_words and any(phrase in text.casefold() for phrase in rules.placeholders):
        return "placeholder"
    running = [block_text(segments) for segments in blocks_of(document).values() if not segments[0]["heading"]]
    if sum(line.endswith(_ELLIPSES) for line in running) > rules.most_ellipses * len(running):
        return "ellipses"
    return "repetition" if _repeats(text.split("\n"), words, rules) else ""


def _link_share(segments: list[dict]) -> float:
    length = sum(len(segment["text"]) for segment in segments)
    return sum(segment["links"] * len(segment["text"]) for segment in segments) / length if length else 0.0


def _repeats(lines: list[str], words: list[str], rules: PageRules) -> bool:
    repeated = sum(len(line) * (n - 1) for line, n in collections.Counter(lines).items())
    if repeated > rules.most_repeated_passages * sum(map(len, lines)):
        return True
    if len(words) < rules.gram_words:
        return False
    words = [word.casefold() for word in words]
    threes = collections.Counter(zip(words, words[1:], words[2:], strict=False))
    top = max(threes.values(), default=0)
    if top > 2 and 3 * top > rules.most_top_gram * len(words):
        return True
    fives = collections.Counter(zip(*(words[i:] for i in range(5)), strict=False))
    again = sum(n for n in fives.values() if n > 1)
    return again > rules.most_repeated_grams * max(1, fives.total())
