"""The engine: prefill, decode, retire, refill over a fixed number of slots.

Rows leave as soon as they are finished, and others take their slots. Which token comes next is decided as in
`reference`. Knows nothing of attention and cache layout.
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

# A prefill of one row reads all weights, as a step does: rows wait until so large a part of the slots is free.
REFILL_SHARE = 16


class ContinuousEngine:
    """Keeps every slot busy. A step is one forward: a prefill while there are rows and room, else a token for each row.

    `sampler` chooses the tokens. `share` computes once what prompts have in common. Few rows get several tokens in a
    step: those that they have already, and with `lookup` those that repeat what they have.
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
        self._prefills: deque[int] = deque()  # rows of each that is planned
        self._owes_step = False  # rows were prefilled, and those that run have not made a step since
        self._has_finished = False  # the last prefill finished some
        self._has_lost_states = False  # a step failed that had changed states of rows
        self._num_tried = 0  # rows that memory was asked to hold last

    # What the pipeline asks for.

    @property
    def wants_rows(self) -> int:
        """As many as there are slots, once nothing waits and enough slots are free."""
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
        """Queues rows, those that begin alike together, the longest first."""
        groups = groups_of(list(sequences), share=self.share, shares_prefixes=self.slot_model.shares_prefixes)
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
        if ran_out:  # not in the `except`: its traceback holds the failed forward's tensors
            with torch.inference_mode():  # the cache's tensors were made in it, and change nowhere else
                self._give_way()
        finished, self._finished = self._finished, []
        if self.is_idle:
            self._room.measure()
        return finished

    def close(self) -> None:
        """Lets go of rows and cache."""
        with torch.inference_mode():
            for slot in [row.slot for row in self._running if row.slot]:
                self.slot_model.cache.close(slot)
            self.slot_model.cache.shrink()
        self._room.end()
        for queue in (self._waiting, self._running, self._finished, self._prefills):
            queue.clear()
        self._owes_step = False

    # Rows that wait.

    def _has_room(self) -> bool:
        free = self.most_slots - len(self._running)
        return not self._running or free >= max(1, self.most_slots // REFILL_SHARE)

    def _is_to_prefill(self) -> bool:
        """Whether the next forward fills slots; rows that one has finished go out before the next one."""
        if not self._prefills and self._waiting and self._has_room() and not (self._owes_step and self._has_finished):
            started = time.perf_counter()
            rows = self._next_rows()
            lengths = [row.length[0] for row in rows]
            # Rows that wait again after memory ran out may stand before longer ones: each counts as long as those.
            self._prefills.extend(plan_prefills([*accumulate(reversed(lengths), max)][::-1], prefill_rows))
            self._prefill_s += time.perf_counter() - started
        return bool(self._prefills)

    def _next_rows(self) -> list[SlotRow]:
        """Waiting rows with the first one's opening, as many as there are slots and bytes for."""
        head = self._waiting[0].opening
        alike = takewhile(lambda row: row.opening is head, self._waiting)
        rows = list(islice(alike, self.most_slots - len(self._running)))
        running, waiting = [row.length for row in self._running], [row.length for row in rows]
        openings = {id(row.opening): len(row.opening.token_ids) for row in [*self._running, *rows] if row.opening}
        prefix_tokens = sum(openings.values())
        cache = self.slot_model.cache
        room = self._room.beside(running, waiting, prefix_tokens, cache.held_bytes)
        if room == 0 and not running:  # what earlier rows left behind goes first
            cache.shrink()
            release()
            room = self._room.beside(running, waiting, prefix_tokens, 0)
        if room == 0 and not running:  # not even one: it is tried, unless that would kill the process
            if self._backoff.hits_the_wall([rows[0].sequence]):
                self._fail_first()
                return []
            room = 1
        if room:
            self._num_tried = len(running) + room  # the cache has to hold them all, though prefills are smaller
            self._room.watch(running + waiting[:room], prefix_tokens)
            cache.grow([last_column(*length) for length in running + waiting[:room]])
        return rows[:room]

    # One forward.

    def _prefill(self, rows: list[SlotRow]) -> None:
        """Fills slots for the first waiting rows, and chooses each one's next token; if that fails they still wait."""
        started = time.perf_counter()
        opening = rows[0].opening
        if opening and opening.prefix is None:
            opening.prefix = self.slot_model.compute_prefix(opening.token_ids)
        slots = [Slot(opening.prefix if opening else None) for _ in rows]
        try:
            logits = self.slot_model.prefill([row.prompt for row in rows], slots)
            self._feeder.choose_first(rows, logits)
        except BaseException:
            for slot in slots:
                self.slot_model.cache.close(slot, is_broken=True)  # for all that is known
            raise
        longest = max(row.sequence.num_prompt_tokens for row in rows)
        for row, slot in zip(rows, slots, strict=True):
            self._waiting.popleft()
            row.slot = slot
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
        """Rows that are finished go out."""
        done = [row for row in self._running if row.sequence.is_finished]
        if done:
            self._running = [row for row in self._running if not row.sequence.is_finished]
            for row in done:
                self._leave(row)
            if not self._waiting:
                self.slot_model.cache.compact()

    def _leave(self, row: SlotRow) -> None:
        """A finished row goes out with its twins, and its slot is free."""
        if row.slot:
            self.slot_model.cache.close(row.slot, is_broken=row.sequence.error is not None)
        for twin in row.twins:
            self._feeder.new_tokens += row.sequence.num_output_tokens
            twin.copy_answer(row.sequence)
        self._finished += [row.sequence, *row.twins]

    # Out of memory.

    def _give_way(self) -> None:
        """Half of the running rows wait again, with the tokens they have, and half the slots go.

        All of them wait where a step has changed states and then failed.
        A row that ran out all alone has failed.
        """
        self._prefills.clear()
        self.most_slots = max(1, self._num_tried // 2)
        kept = 0 if self._num_tried == 1 or self._has_lost_states else self.most_slots
        self._has_lost_states = False
        for row in reversed(self._running[kept:]):
            assert row.slot is not None
            self.slot_model.cache.close(row.slot)
            row.slot = None
            self._waiting.appendleft(row)
        del self._running[kept:]
        release()
        with suppress(MemoryError):  # smaller pages are made before the large ones go
            self.slot_model.cache.shrink()
        if self._num_tried > 1:
            self._room.halve(self._num_tried, self.most_slots)
        else:
            self._fail_first()

    def _fail_first(self) -> None:
        """The first waiting row fits nowhere: it goes out failed, without the tokens that it may have had."""
        row = self._waiting.popleft()
        self._feeder.new_tokens -= row.sequence.num_output_tokens
        row.sequence.output_ids.clear()
        self._backoff.fail(row.sequence)
        self._leave(row)
