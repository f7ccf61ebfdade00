"""How many rows memory allows in slots at this moment, and what they were found to take."""

from __future__ import annotations

from batchgen.engines.continuous.memory import Lengths, SlotMemory, room_beside
from batchgen.planning.backoff import Backoff


class SlotRoom:
    """Asks a `Backoff` for rows that come and go one by one, and tells it what they take."""

    def __init__(self, backoff: Backoff) -> None:
        self.backoff = backoff

    def beside(self, running: Lengths, waiting: Lengths, prefix_tokens: int, held_bytes: int) -> int:
        """How many of the first `waiting` rows may join those that run; the cache has `held_bytes` already."""
        if self.backoff.is_users_number:
            return len(waiting)
        return room_beside(self.backoff.limits, running, waiting, prefix_tokens, held_bytes)

    def watch(self, rows: Lengths, prefix_tokens: int) -> None:
        """Notes what the rows in slots are expected to take; what they do take counts from the first call on.

        Prefills and steps of like sizes then keep freed blocks for the next ones, if memory allows.
        """
        backoff = self.backoff
        predicted = SlotMemory(backoff.limits.memory.footprint).of_rows(rows, prefix_tokens).total
        is_first = not backoff.predicted_bytes
        if not is_first:
            self.measure()
        backoff.expect(predicted, anew=is_first)
        backoff.predicted_bytes = max(backoff.predicted_bytes, predicted)

    def measure(self) -> None:
        """Notes what the rows in slots have taken; where memory is short, more than expected leaves room for fewer."""
        if self.backoff.predicted_bytes:
            self.backoff.compare(self.backoff.predicted_bytes)

    def end(self) -> None:
        """No rows come any more."""
        self.measure()
        self.backoff.end()

    def halve(self, num_rows: int, left: int) -> None:
        """Memory ran out with so many rows in slots."""
        self.backoff.lower_ceiling(self.backoff.ceiling_bytes or self.backoff.limits.budget_bytes)
        self.backoff.say_fewer(f"{num_rows} rows", left)
