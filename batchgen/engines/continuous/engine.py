"""The continuous engine: prefill, decode, retire and refill over a fixed number of slots.

Rows leave as soon as they are finished, and others take their slots. The next token is chosen as in `reference`. Knows
nothing of attention and cache layout.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from itertools import accumulate, islice, takewhile

import torch

from batchgen.engines.continuous.feeds import Feeder
from batchgen.engines.continuous.memory import last_column, prefill_rows
from batchgen.engines.continuous.room import SlotRoom
from batchgen.engines.continuous.rows import SlotRow, groups_of
from batchgen.engines.continuous.slot_model import SlotModel
from batchgen.engines.continuous.slots import Slot
from batchgen.engines.sampling.sampler import Sampler
from batchgen.errors import failures_in_one_line, is_out_of_memory
from batchgen.planning.backoff import Backoff, release
from batchgen.planning.batches import plan_prefills, step_work
from batchgen.planning.memory import BatchLimits
from batchgen.records import EngineStats, Sequence

# A prefill of one row reads all weights, as a step does: rows wait until 1/16 of the slots is free.
REFILL_SHARE = 16


class ContinuousEngine:
    """Keeps every slot busy. A step is one forward: a prefill while rows wait and slots are free, else one decode step.

    `sampler` chooses the tokens. With `share`, common prefixes of prompts are computed once. If few rows run, steps
    take several tokens per row: those that the row already has but its slot lacks, and with `lookup` drafts from prompt
    lookup.
    """

    def __init__(
        self,
        slot_model: SlotModel,
        limits: BatchLimits,
        sampler: Sampler,
        *,
        share: bool = True,
        lookup: bool = False,
        backoff: Backoff | None = None,
    ) -> None:
        self.slot_model = slot_model
        self.sampler = sampler
        self.share = share
        self.most_slots = limits.num_rows or limits.most_rows
        self._backoff = backoff or Backoff(limits)
        self._room = SlotRoom(self._backoff)
        self._first_window = self.most_slots
        self._feeder = Feeder(slot_model, sampler, several=lookup)
        self._batches = self._decode_work = 0
        self._prefill_s = self._decode_s = 0.0
        self._waiting: deque[SlotRow] = deque()
        self._running: list[SlotRow] = []
        self._finished: list[Sequence] = []
        self._prefills: deque[int] = deque()  # number of rows of each planned prefill
        self._owes_step = False  # rows were prefilled, and the running rows have not made a step since
        self._has_finished = False  # rows finished in the last prefill
        self._has_lost_states = False  # a step failed after it had changed the states of rows
        self._num_tried = 0  # number of rows that the last allocation was for

    # The engine protocol.

    @property
    def wants_rows(self) -> int:
        """As many rows as there are slots, once no rows wait and enough slots are free; else 0."""
        return self._first_window if not (self._waiting or self._owes_step) and self._has_room() else 0

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._running or self._finished)

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            engine="continuous",
            batches=self._batches,
            new_tokens=self._feeder.new_tokens,
            drafted_tokens=self._feeder.drafted,
            accepted_tokens=self._feeder.accepted,
            prefill_s=self._prefill_s,
            decode_s=self._decode_s,
            decode_work=self._decode_work,
            host_syncs=self.sampler.host_syncs,
            peak_bytes=self._backoff.peak_bytes,
            predicted_bytes=self._backoff.predicted_bytes,
            measured_bytes=self._backoff.measured_bytes,
        )

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue rows: groups with a common prefix stay together, the longest first."""
        model = self.slot_model
        groups = groups_of(list(sequences), model.long_rope, share=self.share, shares_prefixes=model.shares_prefixes)
        for rows in sorted(groups, key=lambda rows: -rows[0].sequence.num_prompt_tokens):
            self._waiting.extend(rows)

    def step(self) -> list[Sequence]:
        ran_out = False
        try:
            with torch.inference_mode(), failures_in_one_line(f"with {len(self._running)} rows in its slots"):
                if self._is_to_prefill():
                    self._prefill(list(islice(self._waiting, self._prefills.popleft())))
                else:
                    self._decode()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            ran_out = True
        if ran_out:  # not in the `except`: the traceback keeps the failed forward's tensors alive
            with torch.inference_mode():  # the cache's tensors can only be changed in inference mode
                self._give_way()
        finished, self._finished = self._finished, []
        if self.is_idle:
            self._room.measure()
        return finished

    def close(self) -> None:
        """Drop all rows and free the cache."""
        with torch.inference_mode():
            for slot in [row.slot for row in self._running if row.slot]:
                self.slot_model.cache.close(slot)
            self.slot_model.cache.shrink()
        self._room.end()
        for queue in (self._waiting, self._running, self._finished, self._prefills):
            queue.clear()
        self._owes_step = False

    # Waiting rows.

    def _has_room(self) -> bool:
        free = self.most_slots - len(self._running)
        return not self._running or free >= max(1, self.most_slots // REFILL_SHARE)

    def _is_to_prefill(self) -> bool:
        """Whether the next forward is a prefill. Rows that a prefill finished are returned before the next prefill."""
        if not self._prefills and self._waiting and self._has_room() and not (self._owes_step and self._has_finished):
            started = time.perf_counter()
            rows = self._next_rows()
            lengths = [row.num_columns for row in rows]
            # After memory ran out, rows that wait again may precede longer ones: each counts as long as the longest
            # behind it.
            self._prefills.extend(plan_prefills([*accumulate(reversed(lengths), max)][::-1], self._rows_at_once))
            self._prefill_s += time.perf_counter() - started
        return bool(self._prefills)

    def _rows_at_once(self, columns: int) -> int:
        return 1 if self.slot_model.prefills_alone else prefill_rows(columns)

    def _next_rows(self) -> list[SlotRow]:
        """Return waiting rows with the same prefix as the first one, as many as fit into the free slots and memory."""
        head = self._waiting[0].opening
        alike = takewhile(lambda row: row.opening is head, self._waiting)
        rows = list(islice(alike, self.most_slots - len(self._running)))
        running, waiting = [row.length for row in self._running], [row.length for row in rows]
        openings = {id(row.opening): len(row.opening.token_ids) for row in [*self._running, *rows] if row.opening}
        prefix_tokens = sum(openings.values())
        cache = self.slot_model.cache
        room = self._room.beside(running, waiting, prefix_tokens, cache.held_bytes)
        if room == 0 and not running:  # first free what earlier rows left behind
            cache.shrink()
            release()
            room = self._room.beside(running, waiting, prefix_tokens, 0)
        if room == 0 and not running:  # not even one row fits: try it anyway, unless that would kill the process
            if self._backoff.hits_the_wall([rows[0].sequence]):
                self._fail_first()
                return []
            room = 1
        if room:
            self._num_tried = len(running) + room  # the cache holds all of these rows; each prefill is smaller
            self._room.watch(running + waiting[:room], prefix_tokens)
            cache.grow([last_column(*length) for length in running + waiting[:room]])
        return rows[:room]

    # Forwards.

    def _prefill(self, rows: list[SlotRow]) -> None:
        """Fill slots for the first waiting rows and choose each one's next token.

        After a failure the rows still wait.
        """
        started = time.perf_counter()
        opening = rows[0].opening
        if opening and opening.prefix is None:
            opening.prefix = self.slot_model.compute_prefix(opening.token_ids, is_long=opening.is_long)
        starts = [row.start for row in rows]
        slots = [Slot(opening.prefix if opening else None) for _ in rows]
        try:
            logits = self.slot_model.prefill(starts, slots)
            self._feeder.choose_first(rows, logits)
        except BaseException:
            for slot in slots:
                self.slot_model.cache.close(slot, is_broken=True)  # it may be broken
            raise
        longest = max(len(start.token_ids) for start in starts)
        for row, start, slot in zip(rows, starts, slots, strict=True):
            self._waiting.popleft()
            row.slot = slot
            if not start.output_ids:
                row.sequence.batch_index, row.sequence.padded_length = self._batches, longest
        self._running += rows
        self._batches += 1
        self._retire()
        self._owes_step = bool(self._running)
        self._has_finished = bool(self._finished)
        if self._has_finished:
            self._prefills.clear()
        self._prefill_s += time.perf_counter() - started

    def _decode(self) -> None:
        self._owes_step = False
        if not self._running:
            return
        started = time.perf_counter()
        rows = self._running
        self._num_tried = len(rows)
        try:
            self._feeder.step(rows)
        except BaseException:
            self._has_lost_states = not self.slot_model.cache.undo_step()
            self._retire()
            raise
        self._retire()
        self._decode_s += time.perf_counter() - started
        self._decode_work += step_work(len(rows))

    def _retire(self) -> None:
        """Hand out finished rows and free their slots; rows that have outgrown their keys wait again."""
        done = [row for row in self._running if row.sequence.is_finished]
        if done:
            self._running = [row for row in self._running if not row.sequence.is_finished]
            for row in done:
                self._leave(row)
            if not self._waiting:
                self.slot_model.cache.compact()
        if outgrown := [row for row in self._running if row.is_outgrown]:
            self._running = [row for row in self._running if not row.is_outgrown]
            self._wait_again(outgrown)
            self._prefills.clear()  # these rows were not planned

    def _leave(self, row: SlotRow) -> None:
        """Hand out a finished row together with its twins, and free its slot."""
        if row.slot:
            self.slot_model.cache.close(row.slot, is_broken=row.sequence.error is not None)
        for twin in row.twins:
            self._feeder.new_tokens += row.sequence.num_output_tokens
            twin.copy_answer(row.sequence)
        self._finished += [row.sequence, *row.twins]

    # Out of memory.

    def _give_way(self) -> None:
        """Send half of the running rows back to the queue, with the tokens they have, and halve the slots.

        All running rows go back if a step changed states and then failed. A row that ran out of memory running by
        itself fails, at the second time if its step took several tokens: from now on, no step does.
        """
        self._prefills.clear()
        took_several, self._feeder.several = self._feeder.several, False
        self.most_slots = max(1, self._num_tried // 2)
        kept = 0 if self._num_tried == 1 or self._has_lost_states else self.most_slots
        self._has_lost_states = False
        self._wait_again(self._running[kept:])
        del self._running[kept:]
        release()
        with suppress(MemoryError):  # smaller pages are allocated before the large ones are freed
            self.slot_model.cache.shrink()
        if self._num_tried > 1:
            self._room.halve(self._num_tried, self.most_slots)
        elif not took_several:
            self._fail_first()

    def _wait_again(self, rows: list[SlotRow]) -> None:
        """Queue running rows, with the tokens they have, before all that wait."""
        for row in reversed(rows):
            assert row.slot is not None
            self.slot_model.cache.close(row.slot)
            row.lose_slot()
            self._waiting.appendleft(row)

    def _fail_first(self) -> None:
        """Fail the first waiting row, which fits nowhere, and drop the tokens that it may already have."""
        row = self._waiting.popleft()
        self._feeder.new_tokens -= row.sequence.num_output_tokens
        row.sequence.output_ids.clear()
        self._backoff.fail(row.sequence)
        self._leave(row)
