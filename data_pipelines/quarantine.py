"""What becomes of unusable records: written down, counted, and a reason to stop when there are too many of them."""

import collections
import contextlib
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from vlm_jax.errors import UserError


class BadRecord(ValueError):  # noqa: N818
    """A record that cannot become an example. The message says why; `record_id` names it where the raiser knows it."""

    def __init__(self, reason: str, record_id: str = "") -> None:
        super().__init__(reason)
        self.record_id = record_id


class Quarantine:
    """Keeps account of unusable records by source, and stops the run when their share passes the limit.

    A record counts once, however often the epochs come back to it. A run stops when either

    - distinct bad records of a source pass both `floor` and `limit` times the source's size, where `expect` told it; or
    - bad records met pass `floor` and, by more than three standard deviations of chance, `limit` times the records
      met. This one speaks early in sources too large to see the end of, and is all there is where the size is unknown.

    The file holds one JSON line a bad record: {"source", "id", "reason"}. Lines that are there already (a resumed run)
    count, and are not written again. Where several processes read one data set, each has a file of its own, and judges
    by what it meets itself; `join_files` makes one of them.
    """

    def __init__(
        self,
        path: epath.PathLike | None = None,
        limit: float = 0.01,
        floor: int = 3,
        known: epath.PathLike | None = None,
    ) -> None:
        """Opens the account.

        Args:
            path: file that bad records are appended to; None keeps them in memory only.
            limit: share of bad records, 0..1, above which the run stops.
            floor: that many bad records of a source never stop a run.
            known: another file, whose records count but are not written again.

        Raises:
            UserError: if the limit is not a share, or the file cannot be read.
        """
        if not 0 <= limit <= 1:
            raise UserError(f"quarantine limit {limit} is not a share: give a number from 0 to 1")
        self._path = None if path is None else epath.Path(path)
        self._limit = limit
        self._floor = floor
        self._reasons: dict[tuple[str, str], str] = {}
        self._distinct: collections.Counter[str] = collections.Counter()
        self._met: collections.Counter[str] = collections.Counter()
        self._bad_met: collections.Counter[str] = collections.Counter()
        self._sizes: dict[str, int] = {}
        self._half_line = False
        self._lock = threading.Lock()
        if known is not None and epath.Path(known).exists():
            self._read(epath.Path(known))
        if self._path is not None and self._path.exists():
            self._half_line = self._read(self._path)
        self._distinct.update(source for source, _ in self._reasons)
        self._before = collections.Counter(self._distinct)

    def expect(self, source: str, records: int) -> None:
        """Says how many records the source holds in all."""
        self._sizes[source] = records

    def met(self, source: str, records: int = 1) -> None:
        """Counts records drawn from the source, good and bad alike; call it before `add`."""
        with self._lock:
            self._met[source] += records

    def add(self, source: str, record_id: str, reason: str) -> None:
        """Puts a record into quarantine.

        Raises:
            UserError: once bad records are more than the limit allows (the record is written down first), or if the
                file cannot be written.
        """
        reason = " ".join(reason.split())
        with self._lock:
            self._bad_met[source] += 1
            if (source, record_id) not in self._reasons:
                self._reasons[source, record_id] = reason
                self._distinct[source] += 1
                self._write(source, record_id, reason)
            self._check(source, record_id, reason)

    def counts(self) -> Mapping[str, int]:
        """Distinct bad records by source; sources without one are left out."""
        with self._lock:
            return dict(self._distinct)

    def known_counts(self) -> Mapping[str, int]:
        """The same of those alone that were known at the beginning."""
        return dict(self._before)

    def new_counts(self) -> Mapping[str, int]:
        """The same of those alone that were not."""
        with self._lock:
            return dict(self._distinct - self._before)

    def reasons(self) -> Mapping[tuple[str, str], str]:
        """(source, record id) -> reason, in the order in which they were met."""
        with self._lock:
            return dict(self._reasons)

    def _check(self, source: str, record_id: str, reason: str) -> None:
        distinct = self._distinct[source]
        size = self._sizes.get(source)
        met, bad = self._met[source], self._bad_met[source]
        allowed = self._limit * met
        if size is not None and distinct > max(self._floor, self._limit * size):
            share = f"{distinct} of {size} records"
        elif bad > self._floor + allowed + 3 * math.sqrt(allowed):
            share = f"{bad} of the first {max(met, bad)} records"
        else:
            return
        where = f"; all are listed in {self._path}" if self._path is not None else ""
        raise UserError(
            f"source '{source}': {share} are unusable, more than the limit of {self._limit:.2%}; the last was "
            f"{record_id}: {reason}{where}; mend the data, or raise the quarantine limit"
        )

    def _read(self, path: epath.Path) -> bool:
        """Takes note of a file's records; whether it ends in half a line."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot read the quarantine ({error}); remove the file or mend the path") from None
        # A run that was killed while it wrote leaves half a line; its record comes again when it is met again.
        self._reasons |= dict(_records(text))
        return bool(text) and not text.endswith("\n")

    def _write(self, source: str, record_id: str, reason: str) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if "://" in os.fspath(self._path):
                # Object stores cannot append.
                self._path.write_text("".join(_line(*key, reason) for key, reason in self._reasons.items()))
                return
            with self._path.open("a") as file:
                file.write("\n" * self._half_line + _line(source, record_id, reason))
            self._half_line = False
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot write the quarantine ({error}); free space or mend the path"
            ) from None


def _records(text: str) -> Iterator[tuple[tuple[str, str], str]]:
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            yield (entry["source"], entry["id"]), entry["reason"]


def join_files(path: epath.Path, others: Sequence[epath.Path]) -> None:
    """Puts the records of other files into this one, each record once, and removes the others."""
    if not others:
        return
    files = [each for each in (path, *others) if each.exists()]
    reasons = dict(record for each in files for record in _records(each.read_text(encoding="utf-8")))
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text("".join(_line(*key, reason) for key, reason in reasons.items()))
    partial.replace(path)
    for each in others:
        each.unlink(missing_ok=True)


def _line(source: str, record_id: str, reason: str) -> str:
    return json.dumps({"source": source, "id": record_id, "reason": reason}) + "\n"
