"""Scripts tell English from Russian, and words are counted alike in both."""

import pytest

from data_pipelines.words import script_of, words_of


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Да, это круг", "cyrillic"),
        ("Yes, круг of it", "latin"),
        ("ещё Ёлка", "cyrillic"),
        ("naïve café", "latin"),
        ("12 + 3", "other"),
        ("漢字", "other"),
        ("", "other"),
    ],
)
def test_script_of(text, script):
    assert script_of(text) == script


def test_words_keep_their_hyphens_and_apostrophes():
    assert words_of("It's a left-hand tool, 3 × 4.") == ["It's", "a", "left-hand", "tool", "3", "4"]
    assert words_of("Кто-то — «ещё» раз…") == ["Кто-то", "ещё", "раз"]
