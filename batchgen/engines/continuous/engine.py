"""Engine `continuous`: prefill, decode, retire, refill over a fixed number of slots.

Rows leave as soon as they are finished, and others take their slots. Which token comes next is decided as in
`reference`. Knows nothing of attention and cache layout.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, islice, takewhile

import torch

from batchgen.engines.continuous.kv_cache import Prefix, Slot
from batchgen.engines.continuous.prefixes import shared_prefixes, twins
from batchgen.engines.continuous.slot_model import SlotModel
from batchgen.engines.sampling.sampler import OnLogits, Sampler, append_token
from batchgen.errors import ModelError, failures_in_one_line, is_out_of_memory
from batchgen.planning.backoff import Backoff, release
from batchgen.planning.batches import longest_first, plan_prefills, step_work
from batchgen.planning.memory import BatchLimits, pages_of
from batchgen.records import SamplingParams, Sequence

# A prefill of one row reads all weights, as a step does: rows wait until so large a part of the slots is free.
REFILL_SHARE = 16


@dataclass(slots=True, eq=False)
class _Opening:
    """Tokens that several rows begin with; their keys and values are computed when the first row is prefilled."""

    token_ids: list[int]
    prefix: Prefix | None = None


@dataclass(slots=True, eq=False)
class _Row:
    """A sequence, and its slot while it has one."""

    sequence: Sequence
    twins: list[Sequence]
    opening: _Opening | None = None
    slot: Slot | None = None

    @property
    def length(self) -> tuple[int, SamplingParams]:
        """Prompt tokens behind the opening, and options: what its memory depends on."""
        shared = len(self.opening.token_ids) if self.opening else 0
        return self.sequence.num_prompt_tokens - shared, self.sequence.sampling


class ContinuousEngine:
    """Keeps every slot busy: yields each sequence when it is finished, and gives its slot to the next.

    `on_step` is told how many tokens each step made, `on_logits` the logits that they are chosen from. `should_stop` is
    asked at each step; a yes drops what is in hand and raises `KeyboardInterrupt`. `exact` decides near ties again,
    from an unpadded forward of the row alone. `share` computes once what prompts have in common.
    """

    name = "continuous"

    def __init__(
        self,
        slot_model: SlotModel,
        limits: BatchLimits,
        *,
        exact: bool = True,
        share: bool = True,
        on_step: Callable[[int], None] = lambda num_tokens: None,
        on_logits: OnLogits = lambda logits, sequences: None,
        should_stop: Callable[[], bool] = lambda: False,
        backoff: Backoff | None = None,
    ) -> None:
        self.slot_model = slot_model
        self.checkpoint = slot_model.model.checkpoint
        self.backoff = backoff or Backoff(limits)
        self.most_slots = limits.num_rows or limits.most_rows
        self.share = share
        self.on_step = on_step
        self.should_stop = should_stop
        recompute = slot_model.model.logits_alone if exact else None
        self.sampler = Sampler(self.checkpoint.eos_token_ids, recompute, on_logits)
        self.num_batches = self.decode_work = 0
        self.prefill_s = self.decode_s = 0.0
        self._waiting: deque[_Row] = deque()
        self._running: list[_Row] = []
        self._finished: list[Sequence] = []
        self._num_tried = 0  # rows that memory was asked to hold last

    @property
    def is_busy(self) -> bool:
        """Whether there is work in hand, which should not wait for more rows to arrive."""
        return bool(self._waiting or self._running)

    def generate(self, windows: Iterable[list[Sequence]]) -> Iterator[Sequence]:
        source = iter(windows)
        more = True
        while more or self.is_busy:
            if more and not self._waiting and self._wants_rows():
                window = next(source, None)
                more = window is not None
                self._take(window or [])
            if self.should_stop():
                raise KeyboardInterrupt
            self._turn()
            yield from self._finished
            self._finished.clear()
        self.backoff.measure()

    def _take(self, window: list[Sequence]) -> None:
        """Queues a window's rows, those that begin alike together, the longest first; failed ones are finished."""
        self._finished += [sequence for sequence in window if sequence.is_finished]
        groups = self._group([sequence for sequence in window if not sequence.is_finished])
        for rows in sorted(groups, key=lambda rows: -rows[0].sequence.num_prompt_tokens):
            self._waiting.extend(rows)

    def _group(self, sequences: list[Sequence]) -> list[list[_Row]]:
        others = {id(lead): rest for lead, *rest in twins(sequences)} if self.share else {id(s): [] for s in sequences}
        leads = [sequence for sequence in sequences if id(sequence) in others]
        groups = []
        for num_tokens, group in shared_prefixes(leads) if self.share else [(0, leads)]:
            opening = _Opening(group[0].input_ids[:num_tokens]) if num_tokens else None
            groups.append([_Row(sequence, others[id(sequence)], opening) for sequence in longest_first(group)])
        return [group for group in groups if group]

    # One turn: finished rows make room, waiting ones take it, and all that run make a step.

    def _turn(self) -> None:
        ran_out = False
        try:
            with torch.inference_mode(), failures_in_one_line(f"with {len(self._running)} rows in its slots"):
                self._refill()
                self._step()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            ran_out = True
        if ran_out:  # not in the `except`: its traceback holds the failed forward's tensors
            with torch.inference_mode():  # the cache's tensors were made in it, and change nowhere else
                self._give_way()

    def _wants_rows(self) -> bool:
        free = self.most_slots - len(self._running)
        return not self._running or free >= max(1, self.most_slots // REFILL_SHARE)

    def _refill(self) -> None:
        """Prefills waiting rows while there is room, or until some are finished, which should not wait to go out."""
        if not (self._waiting and self._wants_rows()):
            return
        started = time.perf_counter()
        while self._waiting and self._wants_rows() and not self._finished and (rows := self._next_rows()):
            lengths = [row.length[0] + row.sequence.num_output_tokens for row in rows]
            # Rows that wait again after memory ran out may stand before longer ones: each counts as long as those.
            for size in plan_prefills([*accumulate(reversed(lengths), max)][::-1]):
                if self.should_stop():
                    raise KeyboardInterrupt
                self._prefill(list(islice(self._waiting, size)))
                if self._finished:
                    break
        self.prefill_s += time.perf_counter() - started

    def _next_rows(self) -> list[_Row]:
        """Waiting rows with the first one's opening, as many as there are slots and bytes for."""
        head = self._waiting[0].opening
        alike = takewhile(lambda row: row.opening is head, self._waiting)
        rows = list(islice(alike, self.most_slots - len(self._running)))
        running, waiting = [row.length for row in self._running], [row.length for row in rows]
        openings = {id(row.opening): len(row.opening.token_ids) for row in [*self._running, *rows] if row.opening}
        prefix_tokens = sum(openings.values())
        room = self.backoff.room_beside(running, waiting, prefix_tokens, self.slot_model.cache.held_columns)
        if room == 0 and not running:  # what earlier rows left behind goes first
            self.slot_model.cache.shrink([])
            release()
            room = self.backoff.room_beside(running, waiting, prefix_tokens, 0)
        if room == 0 and not running:  # not even one: it is tried, unless that would kill the process
            if self.backoff.hits_the_wall([rows[0].sequence]):
                self._fail_first()
                return []
            room = 1
        if room:
            self._num_tried = len(running) + room  # the cache has to hold them all, though prefills are smaller
            self.backoff.watch(running + waiting[:room], prefix_tokens)
            self.slot_model.cache.grow(sum(pages_of(*length) for length in running + waiting[:room]))
        return rows[:room]

    def _prefill(self, rows: list[_Row]) -> None:
        """Fills slots for the first waiting rows, and chooses each one's next token; if that fails they still wait."""
        opening = rows[0].opening
        if opening and opening.prefix is None:
            opening.prefix = self.slot_model.compute_prefix(opening.token_ids)
        slots = [Slot(opening.prefix if opening else None) for _ in rows]
        try:
            logits = self.slot_model.prefill([row.sequence for row in rows], slots)
            self._check(logits)
            tokens = self.sampler.choose(logits, [row.sequence for row in rows])
        except BaseException:
            for slot in slots:
                self.slot_model.cache.close(slot)
            raise
        longest = max(len(row.sequence.token_ids) for row in rows)
        for row, slot in zip(rows, slots, strict=True):
            self._waiting.popleft()
            row.slot = slot
            row.sequence.batch_index, row.sequence.padded_length = self.num_batches, longest
        self._running += rows
        self.num_batches += 1
        self._append(rows, tokens)

    def _step(self) -> None:
        if not self._running:
            return
        started = time.perf_counter()
        rows = self._running
        self._num_tried = len(rows)
        slots = [row.slot for row in rows if row.slot]
        try:
            logits = self.slot_model.step([row.sequence.output_ids[-1] for row in rows], slots)
            tokens = self.sampler.choose(logits, [row.sequence for row in rows])
        except BaseException:
            self.slot_model.cache.undo_step()
            raise
        self._append(rows, tokens)
        self.decode_s += time.perf_counter() - started
        self.decode_work += step_work(len(rows))

    def _check(self, logits: torch.Tensor) -> None:
        if bool(logits.amax(-1).isnan().any()):  # NaN is the largest of all
            raise ModelError(self.slot_model.model.nan_message)

    def _append(self, rows: list[_Row], tokens: list[int]) -> None:
        """Gives rows their tokens, and retires those that are finished."""
        self.on_step(len(rows))
        for row, token in zip(rows, tokens, strict=True):
            append_token(row.sequence, token, self.checkpoint.eos_token_ids, self.checkpoint.tokenizer)
        done = [row for row in rows if row.sequence.is_finished]
        if done:
            self._running = [row for row in self._running if not row.sequence.is_finished]
            for row in done:
                self._leave(row)
            if not self._waiting:
                self.slot_model.cache.compact([row.slot for row in self._running if row.slot])

    def _leave(self, row: _Row) -> None:
        """A finished row goes out with its twins, and its slot is free."""
        if row.slot:
            self.slot_model.cache.close(row.slot)
        for twin in row.twins:
            self.on_step(row.sequence.num_output_tokens)
            twin.copy_answer(row.sequence)
        self._finished += [row.sequence, *row.twins]

    def _give_way(self) -> None:
        """After memory ran out: half of the running rows wait again, with the tokens they have, and half the slots go.

        A row that ran out all alone has failed.
        """
        self.most_slots = max(1, self._num_tried // 2)
        kept = self.most_slots if self._num_tried > 1 else 0
        for row in reversed(self._running[kept:]):
            assert row.slot is not None
            self.slot_model.cache.close(row.slot)
            row.slot = None
            self._waiting.appendleft(row)
        del self._running[kept:]
        release()
        with suppress(MemoryError):  # smaller pages are made before the large ones go
            self.slot_model.cache.shrink([row.slot for row in self._running if row.slot])
        if self._num_tried > 1:
            self.backoff.say_halved(self._num_tried, self.most_slots)
        else:
            self._fail_first()

    def _fail_first(self) -> None:
        """The first waiting row fits nowhere: it goes out failed, without the tokens that it may have had."""
        row = self._waiting.popleft()
        self.on_step(-row.sequence.num_output_tokens)
        row.sequence.output_ids.clear()
        self.backoff.fail(row.sequence)
        self._leave(row)
