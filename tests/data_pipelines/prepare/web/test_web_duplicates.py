"""Near duplicates: like things meet under a key, unlike ones are far, and of the near ones exactly the best stays."""

import itertools
import random

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.examples import Image
from data_pipelines.images import decode
from data_pipelines.prepare.web.config import ContaminationRules, DuplicateRules
from data_pipelines.prepare.web.contamination import EvaluationIndex, build_index, text_hashes
from data_pipelines.prepare.web.documents import Document
from data_pipelines.prepare.web.duplicates import (
    band_keys,
    beaten_in,
    colour_difference,
    distance,
    picture_keys,
    signature,
    similarity,
    sketch_of,
    text_key,
)
from vlm_jax.errors import UserError

RULES = DuplicateRules()
WORDS = [f"слово{i}" if i % 2 else f"word{i}" for i in range(400)]


def text(seed: int, changed: int = 0) -> str:
    words = random.Random(seed).choices(WORDS, k=300)
    for i in range(changed):
        words[i * 37 % 300] = f"new{i}"
    return " ".join(words)


def page(name: str, content: str) -> Document:
    return {"id": name, "segments": [{"text": content, "block": 0, "heading": 0, "links": 0.0}]}


def test_nearly_the_same_texts_share_a_band_and_others_do_not() -> None:
    original, close, other = (signature(t, RULES) for t in (text(1), text(1, changed=3), text(2)))
    assert similarity(original.tobytes(), close.tobytes()) > 0.8 > 0.3 > similarity(original.tobytes(), other.tobytes())
    keys = [set(band_keys(sketch, RULES)) for sketch in (original, close, other)]
    assert keys[0] & keys[1]
    assert not keys[0] & keys[2]


def test_the_estimate_is_near_the_true_similarity() -> None:
    for changed in (2, 5, 10, 20):
        left, right = text(3), text(3, changed)
        grams = [{tuple(words[i : i + 5]) for i in range(296)} for words in (left.split(), right.split())]
        true = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
        estimate = similarity(signature(left, RULES).tobytes(), signature(right, RULES).tobytes())
        assert estimate == pytest.approx(true, abs=0.13)


def test_case_and_punctuation_make_no_other_text() -> None:
    assert text_key(page("a", "Слои, как стекло!")) == text_key(page("b", "слои как\nСТЕКЛО"))
    assert text_key(page("a", "слои как стекло")) != text_key(page("b", "слои как стёкла"))


@given(st.lists(st.integers(0, 60), min_size=1, max_size=40, unique=True), st.integers(0, 5), st.randoms())
def test_no_two_that_stay_are_near_and_each_that_goes_has_a_better_one(
    values: list[int], reach: int, shuffle: random.Random
) -> None:
    def near(one: int, other: int) -> bool:
        return abs(one - other) <= reach

    bucket = [[[-(value % 3), str(value)], str(value), value] for value in values]
    ranks = {name: rank for rank, name, _ in bucket}
    shuffled = list(bucket)
    shuffle.shuffle(shuffled)
    beaten = dict(beaten_in(shuffled, near))
    assert beaten == dict(beaten_in(bucket, near))
    kept = [value for value in values if str(value) not in beaten]
    assert not any(near(*pair) for pair in itertools.combinations(kept, 2))
    for loser, winner in beaten.items():
        assert near(int(loser), int(winner))
        assert ranks[winner] < ranks[loser]


@given(st.integers(0, 2**64 - 1), st.sets(st.integers(0, 63), max_size=3))
def test_hashes_that_differ_in_three_bits_share_a_key(value: int, bits: set[int]) -> None:
    other = value
    for bit in bits:
        other ^= 1 << bit
    assert distance(value, other) == len(bits)
    assert set(picture_keys(value)) & set(picture_keys(other))


def hash_of(pixels: np.ndarray) -> int:
    return sketch_of(pixels)[0]


def colours_of(pixels: np.ndarray) -> bytes:
    return sketch_of(pixels)[1]


def clouds(seed: int) -> np.ndarray:
    dots = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.resize(dots, (240, 180), interpolation=cv2.INTER_CUBIC)


def test_copies_of_a_picture_are_near_in_hash_and_colours_and_others_are_far() -> None:
    original = clouds(1)
    jpeg = cv2.imencode(".jpg", cv2.resize(original, (160, 120))[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 70])[1]
    copy = decode(Image(data=jpeg.tobytes()))
    assert distance(hash_of(original), hash_of(copy)) <= 3
    assert colour_difference(colours_of(original), colours_of(copy)) < 3
    assert distance(hash_of(original), hash_of(clouds(2))) > 12


def test_colours_tell_before_from_after_where_the_hash_cannot() -> None:
    before = clouds(3)
    grey = np.repeat(cv2.cvtColor(before, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
    assert distance(hash_of(before), hash_of(grey)) <= 3
    assert colour_difference(colours_of(before), colours_of(grey)) > 3


CONTAMINATION = ContaminationRules()


def index_of(*records: dict) -> EvaluationIndex:
    return build_index([("test", records)], CONTAMINATION)


def test_a_page_that_quotes_an_evaluation_text_is_found() -> None:
    answer = " ".join(WORDS[:20])
    index = index_of({"id": "a", "questions": [{"question": "What is it", "answer": answer, "language": "en"}]})
    quoted = page("p", f"before {' '.join(WORDS[5:13]).upper()}, after")
    assert index.touches_text(quoted, CONTAMINATION) == quoted["segments"][0]["text"]
    assert index.touches_text(page("p", f"before {' '.join(WORDS[5:12])} after"), CONTAMINATION) == ""
    assert index.touches_text(page("p", text(9)), CONTAMINATION) == ""


def test_a_short_evaluation_text_counts_as_a_whole_passage_only() -> None:
    index = index_of({"id": "a", "captions": [{"text": "Утка плывёт по пруду", "language": "ru"}]})
    assert index.touches_text(page("p", "утка плывёт по пруду."), CONTAMINATION)
    assert not index.touches_text(page("p", "Смотрите: утка плывёт по пруду летом"), CONTAMINATION)
    assert list(text_hashes("a duck", CONTAMINATION)) == []


def test_an_evaluation_picture_is_found_also_as_a_copy() -> None:
    png = cv2.imencode(".png", clouds(4)[:, :, ::-1])[1].tobytes()
    index = index_of({"id": "a", "images": [Image(data=png)]})
    assert index.touches_picture(hash_of(cv2.resize(clouds(4), (100, 80))), CONTAMINATION)
    assert not index.touches_picture(hash_of(clouds(5)), CONTAMINATION)
    assert not index_of({"id": "a", "text": "t"}).touches_picture(hash_of(clouds(5)), CONTAMINATION)


def test_an_evaluation_set_that_cannot_be_read_is_no_small_matter() -> None:
    with pytest.raises(UserError, match="test, record seven"):
        index_of({"id": "seven", "image": Image(data=b"no picture")})
