"""When two texts or two pictures are nearly the same: short keys that like things share, and distances.

Two things are compared only where they share a key. Of those that are near each other the best by rank stays: each one
is dropped that has a better one near it. That needs no clusters and no order of work, so it comes out the same
however the work is spread, and no two that stay are near each other.
"""

import functools
import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from data_pipelines.optional import need
from data_pipelines.prepare.web.config import DuplicateRules
from data_pipelines.prepare.web.documents import Document, picture_count, text_of
from data_pipelines.words import words_of

PICTURE_BITS = 64
_SIDE = 128
"""Pixels to which a picture shrinks before it is hashed."""
_BUCKET = 200
"""With so many of a bucket, best by rank, is each of it compared; a bucket of a thousand is not a million pairs."""


def digest(text: str) -> str:
    """A short key of a text: 128 bits of its sha256, in hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def text_key(document: Document) -> str:
    """Equal for documents of the same words, whatever their case, spaces and punctuation."""
    return digest(" ".join(words_of(text_of(document).casefold())))


def rank_of(document: Document) -> list[Any]:
    """Sorts documents from best: more pictures, then by address."""
    return [-picture_count(document["segments"]), document["id"]]


def grams_of(words: Sequence[str], size: int) -> set[str]:
    """Sequences of words; of a text that is shorter, the text."""
    return {" ".join(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}


def signature(text: str, rules: DuplicateRules) -> np.ndarray:
    """The MinHash of a text, uint32[permutations]: the share of equal places estimates the similarity of two texts."""
    sketch = need("datasketch", "prepare").MinHash(num_perm=rules.permutations)  # its seed is fixed
    grams = grams_of(words_of(text.casefold()), rules.gram)
    sketch.update_batch([gram.encode("utf-8", "surrogatepass") for gram in grams])
    return sketch.hashvalues.astype(np.uint32)


def band_keys(signature: np.ndarray, rules: DuplicateRules) -> Iterator[str]:
    """Keys of which two texts share one, most likely, if their similarity is above the threshold."""
    bands, rows = _bands(rules.similarity, rules.permutations)
    for band in range(bands):
        part = signature[band * rows : (band + 1) * rows]
        yield f"{band}:{hashlib.sha256(part.tobytes()).hexdigest()[:16]}"


def similarity(left: bytes, right: bytes) -> float:
    """Estimated Jaccard similarity of two texts by their signatures' bytes."""
    return float(np.mean(np.frombuffer(left, np.uint32) == np.frombuffer(right, np.uint32)))


def beaten_in(bucket: Iterable[Sequence[Any]], near: Callable[[Any, Any], bool]) -> Iterator[tuple[str, str]]:
    """(id, id of a better one near it) for all (rank, id, sketch) of a bucket that have one.

    The bucket is gone over twice and never held in memory.
    """
    best = heapq.nsmallest(_BUCKET, bucket, key=lambda entry: entry[0])
    for rank, name, sketch in bucket:
        for better_rank, better, other in best:
            if better_rank >= rank:
                break
            if better != name and near(sketch, other):
                yield name, better
                break


def sketch_of(pixels: np.ndarray) -> tuple[int, bytes]:
    """A picture's perceptual hash, PICTURE_BITS bits, and its colours.

    The hash is near for copies that are scaled, recoded or toned, but it sees neither colours nor small changes.
    `colour_difference` compares those: the picture in 8 x 8 coloured dots, 192 bytes.

    Args:
        pixels: uint8[h, w, 3].
    """
    import PIL.Image

    small = cv2.resize(pixels, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    bits = need("imagehash", "prepare").phash(PIL.Image.fromarray(small)).hash
    colours = cv2.resize(small, (8, 8), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(bits).tobytes(), "big"), colours.tobytes()


def colour_difference(one: bytes, other: bytes) -> float:
    """Mean difference, 0..255, of two pictures as `sketch_of` gives them."""
    pair = [np.frombuffer(colours, np.uint8).astype(np.int16) for colours in (one, other)]
    return float(np.abs(pair[0] - pair[1]).mean())


def picture_keys(value: int) -> Iterator[str]:
    """Four keys, of which two hashes share at least one if they differ in at most three bits."""
    for quarter in range(4):
        yield f"{quarter}:{value >> (16 * quarter) & 0xFFFF:04x}"


def distance(left: int, right: int) -> int:
    """In how many bits two perceptual hashes differ."""
    return (left ^ right).bit_count()


@functools.cache
def _bands(threshold: float, permutations: int) -> tuple[int, int]:
    index = need("datasketch", "prepare").MinHashLSH(threshold=threshold, num_perm=permutations)
    return int(index.b), int(index.r)
