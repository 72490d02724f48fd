"""The merges of a BPE model that only tells the score of every piece, as sentencepiece models do."""

from collections.abc import Mapping


def merges_by_score(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the best piece first.

    Sentencepiece joins the neighbours whose piece has the best score; a list of merges joins those that stand first.

    Args:
        scores: piece -> score, larger is joined earlier; without control tokens and bytes.

    Returns:
        (left, right), by falling score of left + right; of one piece, the way learned first stands first.
    """
    merges = []
    for piece, score in scores.items():
        ways = [
            (piece[:cut], piece[cut:])
            for cut in range(1, len(piece))
            if piece[:cut] in scores and piece[cut:] in scores
        ]
        # Among the ways to make one piece, the one whose parts came first is the one that was learned.
        ways.sort(key=lambda way: (-scores[way[0]], -scores[way[1]]))
        merges += [(-score, number, way) for number, way in enumerate(ways)]
    merges.sort(key=lambda merge: merge[:2])
    return [way for _, _, way in merges]
