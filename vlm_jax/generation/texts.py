"""From an answer's tokens, as they come, to text that may be shown: whole characters, nothing of a stop string."""

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"
"""What tokenizers decode the bytes of an unfinished character to."""
_LONGEST_TAIL, _OVERLAP = 48, 8


class AnswerText:
    """The text of one answer, token by token.

    Args:
        decode: ids of tokens -> text.
        stop: the text ends before the first of these.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self._tail: list[int] = []
        # Only the last tokens are decoded again when one more comes; `_known` is how much of their text is counted.
        self._known = 0
        self._text = ""
        self._told = 0
        self.stopped = False
        """Whether a stop string has come; what is added after it counts for nothing."""

    def add(self, token: int) -> None:
        """Takes the next token."""
        if self.stopped:
            return
        self._tail.append(token)
        decoded = self._decode(self._tail)
        finished = decoded.rstrip(_UNFINISHED)
        if len(finished) > self._known:
            self._extend(finished[self._known :])
            self._known = len(finished)
        if len(self._tail) > _LONGEST_TAIL and finished == decoded:
            self._shorten_tail(decoded)

    def finish(self) -> None:
        """No more tokens come: what waited for the rest of a character is text now."""
        if not self.stopped and self._tail:
            self._extend(self._decode(self._tail)[self._known :])

    def take(self, everything: bool = False) -> str:
        """What may be shown and was not given before; `everything` when no more can come."""
        end = len(self._text) - (0 if everything or self.stopped else self._held_back())
        piece, self._told = self._text[self._told : end], max(end, self._told)
        return piece

    def _extend(self, new: str) -> None:
        longest = max(map(len, self._stop), default=1)
        search_from = max(0, len(self._text) - longest + 1)
        self._text += new
        found = [at for at in (self._text.find(stop, search_from) for stop in self._stop) if at >= 0]
        if found:
            self._text, self.stopped = self._text[: min(found)], True

    def _held_back(self) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        longest = min(max(map(len, self._stop), default=1) - 1, len(self._text))
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._text[-length:]) for stop in self._stop if len(stop) > length):
                return length
        return 0

    def _shorten_tail(self, decoded: str) -> None:
        """Forgets old tokens, if the few that are kept decode to the end of what all of them decode to."""
        for count in range(_OVERLAP, 2 * _OVERLAP):
            kept = self._decode(self._tail[-count:])
            if kept and decoded.endswith(kept):
                self._tail, self._known = self._tail[-count:], len(kept)
                return
