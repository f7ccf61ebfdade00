"""Rows that wait for a worker, cut into parts, and what happens to rows whose worker died.

Knows nothing of processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from batchgen.planning.batches import longest_first
from batchgen.records import Sequence

# A worker may have been killed from outside: a row is blamed only after this many deaths while it ran alone.
DEATHS_ALONE = 2
# The last parts are small, so that no worker has a queue while others are idle. Smaller ones gain nothing, because few
# rows take about as long as one.
LEAST_ROWS = 8


@dataclass(frozen=True, slots=True)
class Part:
    """Rows for one worker. A suspect part was being run by a worker that died; it runs apart from other rows.

    `deaths` counts the workers that died while running its only row alone.
    """

    rows: tuple[Sequence, ...]
    is_suspect: bool = False
    deaths: int = 0


class Parts:
    """The queue of a pool: windows go in, parts of at most `part_rows` rows come out.

    A part has at least `least_rows` rows while there are enough.
    """

    def __init__(self, num_workers: int, part_rows: int, least_rows: int = LEAST_ROWS) -> None:
        self.num_workers = num_workers
        self.part_rows = part_rows
        self.least_rows = min(least_rows, part_rows)
        self._rows: deque[Sequence] = deque()
        self._suspects: deque[Part] = deque()

    def __bool__(self) -> bool:
        return bool(self._rows or self._suspects)

    @property
    def wants_more(self) -> bool:
        """Whether fewer rows are queued than one part per worker."""
        return len(self._rows) < self.num_workers * self.part_rows

    def add(self, rows: Iterable[Sequence]) -> None:
        """Queue a window's rows, the longest first."""
        self._rows.extend(longest_first(rows))

    def take(self, *, is_idle: bool) -> Part | None:
        """Return the next part, for a worker that `is_idle` or still has rows; None if there is no work for it."""
        if self._suspects and is_idle:
            return self._suspects.popleft()
        share = -(-len(self._rows) // (2 * self.num_workers))
        size = min(max(share, self.least_rows), self.part_rows, len(self._rows))
        return Part(tuple(self._rows.popleft() for _ in range(size))) if size else None

    def put_back(self, part: Part) -> None:
        """Put back a part that its worker had not started."""
        if part.is_suspect:
            self._suspects.appendleft(part)
        else:
            self._rows.extendleft(reversed(part.rows))

    def lose(self, rows: list[Sequence], deaths: int = 0) -> list[Sequence]:
        """Queue the unfinished rows of a dead worker again, in halves; return the row that must not run again, if any.

        That is a row that killed `DEATHS_ALONE` workers while it ran alone; `deaths` are the ones before this one.
        """
        if len(rows) == 1 and deaths + 1 >= DEATHS_ALONE:
            return rows
        half = -(-len(rows) // 2)
        halves = [tuple(rows[:half]), tuple(rows[half:])]
        alone = deaths + 1 if len(rows) == 1 else 0
        self._suspects.extendleft(Part(part, True, alone) for part in reversed(halves) if part)
        return []
