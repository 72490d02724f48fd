"""What an example must be before it is tokenised: right types, sane sizes, and texts that something can be learned of.

A record that fails is set aside with the reason, and the run goes on; none of this is ever repaired in silence.
Right-to-left and zero-width characters, any script and any mixture of them are fine.
"""

import itertools
import math
import unicodedata

import numpy as np

from data_pipelines.examples import Example, Image, Segment, Text
from data_pipelines.images import FILE_LIMIT
from data_pipelines.quarantine import BadRecord
from data_pipelines.rendered import Rendered
from data_pipelines.tiles import place_of
from vlm_jax.pictures import Pictures

TEXT_LIMIT = 1_000_000
"""Characters of one text: a book. Longer ones are files that were taken for texts."""
ID_LIMIT = 1_000
"""Characters of an id: it stands in metrics, reports and checkpoints."""
SEGMENT_LIMIT = 10_000
"""Segments of an example, texts and pictures, over its trunk and branches."""
BYTES_LIMIT = 2 * FILE_LIMIT
"""Bytes of an example's encoded pictures: dozens of examples wait in memory at a time."""

_INVISIBLE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp", "Zs"))
"""Unicode's general categories of control, format and space characters, and halves of surrogate pairs."""
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | frozenset(map(chr, range(0xFE00, 0xFE10)))
"""Fillers, the empty Braille cell and variation selectors: other categories, and nothing to see either."""


def check_example(example: Example) -> None:
    """Refuses an example that cannot be learned from, or that can only be a mistake.

    Raises:
        BadRecord: if a text holds NUL or half of a surrogate pair, or is longer than TEXT_LIMIT; if a turn that is to
            be learned, or all running text that is, shows nothing; if there are more than SEGMENT_LIMIT segments or
            BYTES_LIMIT bytes of pictures, or ID_LIMIT characters of an id; if a field is of another type than
            `Example` says.
    """
    if not isinstance(example.id, str):
        raise BadRecord(f"its id is {_a(example.id)}; ids are strings", repr(example.id)[:ID_LIMIT])
    if len(example.id) > ID_LIMIT:
        reason = f"an id of {len(example.id):,} characters; at most {ID_LIMIT:,} are taken"
        raise BadRecord(reason, example.id[:ID_LIMIT])
    segments = [*example.trunk, *itertools.chain.from_iterable(example.branches)]
    try:
        if len(segments) > SEGMENT_LIMIT:
            raise BadRecord(f"{len(segments):,} segments; at most {SEGMENT_LIMIT:,} are taken: split the record")
        for number, segment in enumerate(segments, 1):
            _check_segment(segment, number)
        size = sum(len(segment.data) for segment in segments if isinstance(segment, Image) and segment.data)
        if size > BYTES_LIMIT:
            raise BadRecord(f"pictures of {size:,} bytes; at most {BYTES_LIMIT:,} are taken: split the record")
        _check_loss(example)
        for label in example.labels:
            if isinstance(label, bool) or not isinstance(label, (int, float)) or not math.isfinite(label):
                raise BadRecord(f"a label is {label!r}; labels are finite numbers")
    except BadRecord as error:
        raise BadRecord(str(error), example.id) from None


def is_visible(text: str) -> bool:
    """Whether any character of the text can be seen: not only spaces, control and format characters, and fillers."""
    return any(unicodedata.category(c) not in _INVISIBLE and c not in _BLANK for c in text)


def check_slots(rendered: Rendered, prompt_tokens: int, pictures: Pictures = Pictures()) -> None:
    """Refuses an example whose places for visual tokens are not exactly those of its pictures, in order.

    Args:
        rendered: The example as arrays.
        prompt_tokens: N, visual tokens a slot.
        pictures: How pictures are cut, and which of their slots stand in the sequence.

    Raises:
        BadRecord: with both numbers.
    """
    places = rendered.visual_index[rendered.visual_index >= 0]
    expected = _expected(rendered, prompt_tokens, pictures)
    matching = len(rendered.cuts) == len(rendered.images) and _is_repeated(places, expected)
    if matching and (len(places) or not rendered.images or _is_marked(rendered)):
        return
    slots = "" if pictures.tiling is None else f" in {rendered.slots} image slots"
    raise BadRecord(
        f"{len(places)} places for visual tokens, but {len(rendered.images)} pictures{slots} of {prompt_tokens} make "
        f"{len(expected)}: its template and the model's adapter must agree on the tokens a picture",
        rendered.id,
    )


def _expected(rendered: Rendered, prompt_tokens: int, pictures: Pictures) -> np.ndarray:
    """The visual tokens of the example's pictures, as they must stand in the sequence."""
    if pictures.tiling is None or not prompt_tokens:
        return np.arange(len(rendered.images) * prompt_tokens)
    parts, first = [np.zeros(0, np.int32)], 0
    for cut in rendered.cuts:
        place = place_of(cut, prompt_tokens, pictures)
        parts.append(place.visual + first)
        first += place.visual_tokens
    return np.concatenate(parts)


def _is_repeated(places: np.ndarray, expected: np.ndarray) -> bool:
    """Whether all that is expected stands there in order, once or, in branches that share nothing, several times."""
    if len(places) == len(expected):
        return bool((places == expected).all())
    if not len(expected) or not len(places) or len(places) % len(expected):
        return False
    return bool((places.reshape(-1, len(expected)) == expected).all())


def _is_marked(rendered: Rendered) -> bool:
    """Whether every picture has a place, though no visual token stands there."""
    return np.array_equal(np.unique(rendered.pictures[rendered.pictures >= 0]), np.arange(len(rendered.images)))


def _check_segment(segment: Segment, number: int) -> None:
    if isinstance(segment, Text):
        _check_text(segment, number)
    elif isinstance(segment, Image):
        if segment.path is not None and not isinstance(segment.path, str):
            raise BadRecord(f"segment {number}: the picture's path is {_a(segment.path)}, not a string")
        if segment.data is not None and not isinstance(segment.data, bytes):
            raise BadRecord(
                f"segment {number}: the picture is {_a(segment.data)}, not the bytes of a file: encode it as PNG"
            )
    else:
        raise BadRecord(f"segment {number} is {_a(segment)}; segments are texts and pictures")


def _check_text(segment: Text, number: int) -> None:
    text = segment.text
    if not isinstance(text, str):
        raise BadRecord(f"segment {number}: its text is {_a(text)}; decode it to a string (UTF-8)")
    if len(text) > TEXT_LIMIT:
        raise BadRecord(f"segment {number}: a text of {len(text):,} characters; at most {TEXT_LIMIT:,} are taken")
    if "\0" in text:
        raise BadRecord(f"segment {number}: NUL at character {text.index(chr(0))}: not a text file")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRecord(
                f"segment {number}: half of a surrogate pair at character {error.start}: damaged when it was decoded"
            ) from None


def _check_loss(example: Example) -> None:
    """Every turn that is learned must show something; of running text, all of a trunk or branch together."""
    for part in (example.trunk, *example.branches):
        running = []
        for segment in part:
            if isinstance(segment, Text) and segment.loss:
                if segment.role is None:
                    running.append(segment.text)
                elif not is_visible(segment.text):
                    raise BadRecord(f"the text of the {segment.role}'s turn is empty, and it was to be learned")
        if running and not any(map(is_visible, running)):
            raise BadRecord("the text that was to be learned is empty, or nothing of it can be seen")


def _a(value: object) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"
