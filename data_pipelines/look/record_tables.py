"""The figures of `record_stats` for the terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from data_pipelines.words import SCRIPTS


def figure_tables(figures: Mapping[str, Any]) -> Iterator[Table | str]:
    """What to print: the whole, the languages, what is bad."""
    pictures = figures["pictures"]
    yield f"{figures['name']}: {figures['counted']:,} of {figures['records']:,} records"
    whole = _table("", "")
    whole.add_row("kinds that can read them", ", ".join(figures["kinds"]))
    whole.add_row("texts (distinct)", f"{figures['texts']:,} ({figures['distinct_texts']:,})")
    whole.add_row("words", f"{figures['words']:,}")
    if pictures["pictures"]:
        formats = ", ".join(pictures["formats"])
        whole.add_row("pictures (distinct)", f"{pictures['pictures']:,} ({pictures['distinct']:,}), {formats}")
        whole.add_row(
            "megapixels, median (most)", "{median:.2f} ({most:.2f})".format(**pictures["megapixels"] or _NONE)
        )
        whole.add_row("distinct real pairs", f"{figures['pairs']:,}")
    whole.add_row("bad records", f"{figures['bad_records']:,}")
    yield whole
    if figures["languages"]:
        yield _languages(figures)
    if figures["bad"]:
        bad = _table("reason", "records")
        for reason, n in figures["bad"].items():
            bad.add_row(reason, f"{n:,}")
        yield bad


_NONE = {"median": float("nan"), "most": float("nan")}


def _languages(figures: Mapping[str, Any]) -> Table:
    fertile = bool(figures["fertility"])
    more = ("tokens a word", "bytes a token", "byte tokens") if fertile else ()
    table = _table("language", "texts", "words", "words a text", "Latin", "Cyrillic", *more)
    for language, each in figures["languages"].items():
        scripts = figures["scripts"][language]
        shares = (f"{scripts.get(script, 0) / each['texts']:.1%}" for script in ("latin", "cyrillic"))
        row = [SCRIPTS.get(language, language), f"{each['texts']:,}", f"{each['words']:,}"]
        row += [f"{each['words'] / each['texts']:.1f}", *shares]
        if fertile:
            measured = figures["fertility"][language]
            row += [f"{measured['tokens_per_word']:.2f}", f"{measured['bytes_per_token']:.2f}"]
            row += [f"{measured['byte_share']:.2%}"]
        table.add_row(*row)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="dim", show_header=bool(first))
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
