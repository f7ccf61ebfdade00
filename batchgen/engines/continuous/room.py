"""How many rows currently fit into memory in slots, and how much they were measured to take."""

from __future__ import annotations

from batchgen.engines.continuous.memory import Lengths, SlotMemory, room_beside
from batchgen.planning.backoff import Backoff


class SlotRoom:
    """Asks a `Backoff` about rows that come and go one by one, and reports what they take."""

    def __init__(self, backoff: Backoff) -> None:
        self.backoff = backoff

    def beside(self, running: Lengths, waiting: Lengths, prefix_tokens: int, held_bytes: int) -> int:
        """Return how many of the first `waiting` rows may join the running ones; the cache already has `held_bytes`."""
        if self.backoff.is_users_number:
            return len(waiting)
        return room_beside(self.backoff.limits, running, waiting, prefix_tokens, held_bytes)

    def watch(self, rows: Lengths, prefix_tokens: int) -> None:
        """Record what the rows in slots are expected to take; from the first call on, what they do take is measured.

        Prefills and steps of similar sizes then keep freed blocks for the next ones, if memory allows.
        """
        backoff = self.backoff
        predicted = SlotMemory(backoff.limits.memory.footprint).of_rows(rows, prefix_tokens).total
        is_first = not backoff.predicted_bytes
        if not is_first:
            self.measure()
        backoff.expect(predicted, anew=is_first)
        backoff.predicted_bytes = max(backoff.predicted_bytes, predicted)

    def measure(self) -> None:
        """Record what the rows in slots have taken.

        If that was more than expected and memory is short, fewer rows fit.
        """
        if self.backoff.predicted_bytes:
            self.backoff.compare(self.backoff.predicted_bytes)

    def end(self) -> None:
        """Take a last measurement: no more rows come."""
        self.measure()
        self.backoff.end()

    def halve(self, num_rows: int, left: int) -> None:
        """Lower the limit after memory ran out with `num_rows` rows in slots; `left` slots remain."""
        self.backoff.lower_ceiling(self.backoff.ceiling_bytes or self.backoff.limits.budget_bytes)
        self.backoff.say_fewer(f"{num_rows} rows", left)
