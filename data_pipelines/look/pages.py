"""The templates of pages about data, with the style sheet that all pages share."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jinja2


def page_template(name: str) -> jinja2.Template:
    """A page's template: one of this directory's, or named by its place in the package ('prepare/web/…')."""
    return _environment().get_template(name)


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader("data_pipelines", place) for place in ("look", ".")])
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["groupby_runs"] = picture_runs
    return environment


def picture_runs(tokens: Sequence[Any]) -> list[tuple[str, list[Any]]]:
    """Neighbouring tokens of one picture together, or of one of its tiles, under its title; '' = text."""
    return [(title, list(run)) for title, run in itertools.groupby(tokens, key=lambda token: token.slot_title)]
