"""Pictures of pages: where their bytes are, what is measured of them once, and which rule drops a reference."""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from data_pipelines.examples import Image
from data_pipelines.image_files import size_in_header
from data_pipelines.images import BadImage, decode
from data_pipelines.prepare.web.config import PictureRules
from data_pipelines.prepare.web.documents import parts_of
from data_pipelines.prepare.web.duplicates import colour_difference, distance, sketch_of
from data_pipelines.prepare.web.inputs import read_bytes

Facts = dict[str, Any]
"""Of one address: {"url", "drop": rule or "", "location": [file, offset], "bytes", "hash", "colours", "pages"}."""

_NAME_WORD = re.compile(r"[a-z]+")


def measure(url: str, location: Sequence[Any] | None, rules: PictureRules) -> Facts:
    """Reads a picture once and says what the rules must know of it. Pixels are not kept.

    Args:
        url: Its address.
        location: [file, offset of its record in a WARC or -1], or None where no input holds it.
        rules: Its limits decide what is decoded at all.
    """
    facts: Facts = {"url": url, "drop": "", "location": None if location is None else list(location)}
    if location is None:
        return {**facts, "drop": "missing"}
    data = read_bytes(location, rules.most_bytes)
    if data is None:
        return {**facts, "drop": "missing"}
    if len(data) > rules.most_bytes:
        return {**facts, "drop": "too_many_bytes"}
    size = size_in_header(data)
    if size is None:
        return {**facts, "drop": "unreadable"}
    if rule := _size_rule(size, rules):
        return {**facts, "drop": rule}
    try:
        pixels = decode(Image(data=data))
    except BadImage:
        return {**facts, "drop": "unreadable"}
    value, colours = sketch_of(pixels)
    return {**facts, "bytes": len(data), "hash": value, "colours": colours}


def bad_reference(segment: Mapping[str, Any], rules: PictureRules) -> str:
    """The rule that drops a picture for what the page says of it, before its file is looked at; or ''."""
    sides = [segment["width"], segment["height"]]
    if any(sides) and max(sides) <= rules.tracking_side:
        return "tracking_pixel"
    name = unquote(parts_of(segment["image"]).path.rsplit("/", 1)[-1]).lower()
    words = set(_NAME_WORD.findall(name.rsplit(".", 1)[0]))
    return "bad_name" if words & set(rules.bad_names) else ""


def choose(
    segments: Sequence[Mapping[str, Any]], facts: Mapping[str, Facts], rules: PictureRules
) -> list[tuple[int, str]]:
    """(index of a segment, rule that drops it) of a page's pictures that do not stay.

    Args:
        segments: The page's.
        facts: Of every picture of the page, by address.
        rules: The thresholds.
    """
    dropped: list[tuple[int, str]] = []
    kept: list[Facts] = []
    for index, segment in enumerate(segments):
        if "image" not in segment:
            continue
        known = facts[segment["image"]]
        rule = known["drop"]
        if not rule and any(_same(known, other, rules) for other in kept):
            rule = "repeated_picture"
        if rule:
            dropped.append((index, rule))
        else:
            kept.append(known)
    return dropped


def _same(one: Facts, other: Facts, rules: PictureRules) -> bool:
    return (
        distance(one["hash"], other["hash"]) <= rules.same_distance
        and colour_difference(one["colours"], other["colours"]) <= rules.same_colours
    )


def _size_rule(size: tuple[int, int], rules: PictureRules) -> str:
    least, most = min(size), max(size)
    if most <= rules.tracking_side:
        return "tracking_pixel"
    if least < rules.least_side:
        return "too_small"
    if least * most > rules.most_pixels:
        return "too_large"
    return "aspect" if most > rules.most_aspect * least else ""
