"""Batches that wait, and what happens to a batch that ran out of memory. Knows nothing of how a batch is run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from batchgen.planning.backoff import Backoff, release
from batchgen.planning.memory import batch_bytes, kinds_of, largest_batch, padded_estimate
from batchgen.records import Sequence


class BatchQueue:
    """Batches to run one after the other, each cut to what currently fits."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._waiting: deque[list[Sequence]] = deque()
        self._expected_bytes = 0  # what the current batch takes
        self._is_measured = False  # memory is measured from the first batch on: the next ones reuse what it leaves

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, batches: Iterable[list[Sequence]]) -> None:
        self._waiting.extend(batches)

    def clear(self) -> None:
        self._waiting.clear()

    def take(self) -> list[Sequence]:
        """Return the rows to run next. A single row that would get the process killed is returned as failed."""
        rows = self._waiting.popleft()
        if len(rows) > (room := self._room(rows)):
            self._waiting.appendleft(rows[room:])
            rows = rows[:room]
        if self._backoff.hits_the_wall(rows):
            self._backoff.fail(rows[0])
        else:
            limits = self._backoff.limits
            self._expected_bytes = batch_bytes(limits, rows)
            needed = padded_estimate(limits.memory, rows).total
            self._backoff.expect(needed, anew=not self._is_measured, prefills_apart=True)
            self._is_measured = True
        return rows

    def done(self) -> None:
        """Compare what rows took so far with what the largest batch was expected to take when it began."""
        self._backoff.predicted_bytes = max(self._backoff.predicted_bytes, self._expected_bytes)
        self._backoff.compare(self._backoff.predicted_bytes)

    def give_way(self, rows: list[Sequence]) -> int:
        """Queue unfinished rows again after memory ran out, in halves, from their prompts.

        Return how many tokens are lost.

        A row that ran out of memory running by itself fails.
        """
        release()
        unfinished = [row for row in rows if not row.is_finished]
        dropped = sum(row.num_output_tokens for row in unfinished)
        for row in unfinished:
            row.output_ids.clear()
        half = max(1, len(rows) // 2)
        self._backoff.lower_ceiling(padded_estimate(self._backoff.limits.memory, rows[:half]).total)
        if len(rows) == 1:
            self._backoff.fail(rows[0])
        else:
            padded_length = max(row.num_prompt_tokens for row in rows)
            self._backoff.say_fewer(f"{len(rows)} rows of {padded_length} columns", half)
            self._waiting.extendleft(part for part in (unfinished[half:], unfinished[:half]) if part)
        return dropped

    def _room(self, rows: list[Sequence]) -> int:
        """Return how many of these rows may currently run together."""
        if self._backoff.is_users_number:
            return len(rows)
        padded_length = max(row.num_prompt_tokens for row in rows)
        return largest_batch(self._backoff.limits, padded_length, kinds_of(row.sampling for row in rows), len(rows))
