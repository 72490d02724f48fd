"""Which pictures a position may see through cross-attention: from the rule to half-open ranges of image slots.

With the rule 'last' and two slots a picture (the first picture has slots 0 and 1; p is a picture's place, t text):

    trunk       t p t p t           ranges   -   0:2 0:2 2:4 2:4
    branch 1              t t                                    2:4 2:4
    branch 2              t                                              2:4
"""

import numpy as np
from jaxtyping import Int32

from data_pipelines.quarantine import BadRecord
from data_pipelines.rendered import Rendered
from vlm_jax.pictures import Visible

_RULES: dict[Visible, str] = {
    "last": "the last picture before it",
    "group": "the pictures since the last text before it",
    "all": "all pictures before it",
}


def visible_ranges(example: Rendered, rule: Visible) -> Int32[np.ndarray, "L 2"]:
    """Half-open ranges of the example's image slots, one a position; an empty one is (0, 0).

    A branch sees what the end of its trunk sees, and pictures of its own. The place of a picture sees the picture.
    """
    ranges = np.zeros((example.length, 2), np.int32)
    if not example.cuts:
        return ranges
    borders = np.cumsum([0, *(cut.slots for cut in example.cuts)]).astype(np.int32)
    in_branch = example.branch_ids > 0
    trunk = np.flatnonzero(~in_branch)
    along = _along(example.pictures[trunk], rule, borders)
    ranges[trunk] = along
    if not (example.pictures[in_branch] >= 0).any():
        ranges[in_branch] = along[-1] if len(along) else 0
        return ranges
    for branch in range(1, int(example.branch_ids.max()) + 1):
        own = np.flatnonzero(example.branch_ids == branch)
        found = _along(example.pictures[np.concatenate([trunk, own])], rule, borders)
        ranges[own] = found[len(trunk) :]
    return ranges


def _along(pictures: Int32[np.ndarray, " n"], rule: Visible, borders: np.ndarray) -> Int32[np.ndarray, "n 2"]:
    """The ranges along a trunk, or a trunk and its branch."""
    last = np.maximum.accumulate(pictures) if len(pictures) else pictures
    if rule == "last":
        first = last
    elif rule == "all":
        first = np.zeros_like(last)
    else:
        first = _group_starts(pictures, len(borders) - 1)[np.maximum(last, 0)]
    seen = np.stack([borders[np.maximum(first, 0)], borders[last + 1]], 1)
    return np.where((last >= 0)[:, None], seen, 0).astype(np.int32)


def _group_starts(pictures: np.ndarray, count: int) -> Int32[np.ndarray, " count"]:
    """For every picture, the first one of those it stands next to without text between."""
    starts = np.arange(count, dtype=np.int32)
    changes = 1 + np.flatnonzero((pictures[1:] != pictures[:-1]) & (pictures[1:] >= 0) & (pictures[:-1] >= 0))
    for at in changes.tolist():
        starts[pictures[at]] = starts[pictures[at - 1]]
    return starts


def check_seen(example: Rendered, rule: Visible) -> None:
    """Refuses an example with a picture that no text may see.

    Raises:
        BadRecord: with the picture's number and the rule.
    """
    ranges = visible_ranges(example, rule)[example.pictures < 0]
    first = 0
    for number, cut in enumerate(example.cuts, 1):
        if not ((ranges[:, 0] <= first) & (first < ranges[:, 1])).any():
            raise BadRecord(
                f"no text may see picture {number} of {len(example.cuts)}: with visible '{rule}' a text sees "
                f"{_RULES[rule]}; put text behind the picture, or choose another rule",
                example.id,
            )
        first += cut.slots
