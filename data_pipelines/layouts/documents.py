"""Layouts of interleaved documents: OBELICS and MMC4."""

from collections.abc import Mapping
from typing import Any

from data_pipelines.layouts.values import Native, pictures, present, text_in
from data_pipelines.quarantine import BadRecord


def from_obelics(native: Native) -> dict[str, Any]:
    """{'images': [image, None, …], 'texts': [None, text, …]} -> {'language', 'segments'}.

    The lists are parallel; at each place stands one of the two (where neither does, nothing is taken).

    Raises:
        BadRecord: if the lists differ in length, or both stand at one place.
    """
    images, texts = native.get("images"), native.get("texts")
    _check_lists(native, "images", "texts")
    if len(images) != len(texts):
        raise BadRecord(f"{len(images)} places of pictures and {len(texts)} of texts; the lists must be parallel")
    segments: list[dict[str, Any]] = []
    for place, (picture, text) in enumerate(zip(images, texts, strict=True)):
        if present(picture) and present(text):
            raise BadRecord(f"a picture and a text at place {place}; one of the two must be null")
        if present(text):
            segments.append({"text": text_in(text)})
        elif present(picture):
            segments += [{"image": image} for image in pictures(picture, native.image)]
    return {"language": native.text_language(), "segments": segments}


def from_mmc4(native: Native) -> dict[str, Any]:
    """{'text_list', 'image_info': [{'image_name', 'matched_text_index'}]} -> {'language', 'segments'}.

    A picture stands before the text that it was matched with, and says by 'text_index' which one that is.

    Raises:
        BadRecord: if a picture has no name, or belongs to a text that is not there.
    """
    texts, infos = native.get("text_list"), native.get("image_info")
    _check_lists(native, "text_list", "image_info")
    before: list[list[dict[str, Any]]] = [[] for _ in texts]
    for info in infos:
        name = info.get("image_name", info.get("image")) if isinstance(info, Mapping) else None
        if not present(name):
            raise BadRecord("a picture without 'image_name'")
        index = info.get("matched_text_index")
        if not isinstance(index, int) or not 0 <= index < len(texts):
            raise BadRecord(f"picture '{name}' is matched with text {index!r} of {len(texts)}")
        before[index] += [{"image": image, "text_index": index} for image in pictures(name, native.image)]
    segments = []
    for matched, text in zip(before, texts, strict=True):
        segments += [*matched, {"text": text_in(text)}]
    return {"language": native.text_language(), "segments": segments}


def _check_lists(native: Native, *fields: str) -> None:
    for field in fields:
        value = native.get(field)
        if not isinstance(value, (list, tuple)):
            raise BadRecord(f"'{native.renamed(field)}' is of type {type(value).__name__}; it must be a list")
