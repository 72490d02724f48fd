"""The records of caption sets, made in one way: ids, families, splits, and the keys of real pairs."""

from collections.abc import Iterable, Mapping
from typing import Any

from data_pipelines.examples import Image
from data_pipelines.prepare.corpora.sets import Record
from data_pipelines.prepare.splits import Split, split_of

Caption = Mapping[str, Any]
"""{'text', 'language'}, and 'name': True where the text names what is shown and says nothing more."""


def captioned(
    corpus: str, name: str, picture: Image, captions: Iterable[Caption], family: str, topic: str, **more: Any
) -> tuple[Split, Record]:
    """A picture with its captions, and the split of its family.

    Args:
        corpus: Name of the corpus ('tuxpaint').
        name: Of the picture within the corpus.
        picture: As `pictures.fitted` gives it.
        captions: At least one.
        family: Name, within the corpus, of the family of pictures that stand in one split.
        topic: What the picture is about, coarsely, such as its folder; wrong answers are taken from the same topic.
        more: Further fields of the record.
    """
    record: Record = {
        "id": f"{corpus}/{name}",
        "image": picture,
        "captions": [dict(caption) for caption in captions],
        "topic": topic,
        "family": f"{corpus}/{family}",
    }
    record["real"] = real_pairs(record)
    return split_of(record["family"]), record | more


def real_pairs(record: Record) -> list[str]:
    """A key for each distinct (picture, text) of a caption record: '<id> <language> <n>', n counting within it.

    >>> real_pairs({"id": "a", "captions": [{"text": "x", "language": "en"}, {"text": "y", "language": "ru"}]})
    ['a en 0', 'a ru 0']
    """
    keys: list[str] = []
    seen: dict[str, list[str]] = {}
    for caption in record["captions"]:
        texts = seen.setdefault(caption["language"], [])
        if caption["text"] not in texts:
            keys.append(f"{record['id']} {caption['language']} {len(texts)}")
            texts.append(caption["text"])
    return keys
