"""The slot KV cache: keys and values of rows that come and go, in pages.

A transformers `Cache`. A page holds `PAGE` columns of one row, so rows of any length stand side by side without pads:
each is written at its own positions, and one that leaves gives its pages to the next without moving the others.
Knows nothing of tokens, sampling or scheduling.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence as Rows
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch
from transformers.cache_utils import Cache

from batchgen.engines.continuous.blocks import touch_block
from batchgen.engines.continuous.layer import SlotLayer
from batchgen.engines.continuous.memory import PAGE
from batchgen.engines.continuous.slots import PrefillView, Prefix, Slot, StepView, by_prefix, pages_by_column
from batchgen.machine.process import untouched_memory_is_free

HIDDEN = torch.finfo(torch.float32).min  # added to the score of a column that holds nothing; -inf - -inf would be NaN
MOST_HOLES = 1 / 16
MORE_PAGES = 64  # how many come at once, at least, where there are none left
# So large a part more comes with them where pages cost nothing until they are written: growing later copies those in
# use, and all others are then touched for the first time once more, the slowest of all writes.
SPARE_PAGES = 1 / 2
TOUCHED_AHEAD = 32  # pages that take memory before they are used, so that not every step begins with it


class SlotCache(Cache):  # type: ignore[misc]
    """Pages of keys and values in every layer, and what one forward needs to know of them.

    Before a forward say which slots it fills: `begin_prefill` for prompts, `begin_step` for one token of each slot.
    """

    def __init__(self, num_layers: int, device: torch.device) -> None:
        super().__init__(layers=[SlotLayer(self, index) for index in range(num_layers)])
        self.device = device
        self.num_pages = 0  # that there are
        self.num_used = 0  # pages [0, num_used) are read by every step
        self.num_touched = 0  # pages [0, num_touched) take memory on a CPU; the others are addresses
        self._num_asked = 0  # pages that rows may come to need; the others are spare
        self._free: list[int] = []  # a heap below num_used
        self._grows_freely = device.type == "cpu" and untouched_memory_is_free()
        self.mask = torch.empty(0, PAGE, device=device)  # [pages, PAGE], added to the scores: 0 or the least float32
        self.view: PrefillView | StepView | None = None
        self._begun: list[Slot] = []  # those that the step in hand has given a column

    @property
    def held_columns(self) -> int:
        """Columns that take memory: on a CPU those that were touched."""
        return (self.num_touched if self.device.type == "cpu" else self.num_pages) * PAGE

    def grow(self, num_pages: int) -> None:
        """Makes room for at least so many pages; what is there is kept."""
        self._num_asked = max(self._num_asked, num_pages)
        if num_pages <= self.num_pages:
            return
        num_pages += int(SPARE_PAGES * num_pages) if self._grows_freely else 0
        for layer in self.layers:
            layer.resize(num_pages, self.num_used)
        empty = torch.full((num_pages - self.num_pages, PAGE), HIDDEN, device=self.device)
        self.mask = torch.cat([self.mask, empty])
        self.num_pages, self.num_touched = num_pages, self.num_used

    def begin_prefill(self, slots: Rows[Slot], attention_mask: torch.Tensor) -> None:
        """The next forward fills `slots` with the real columns of a left-padded batch: mask `[B, T]` on the CPU."""
        lengths = attention_mask.sum(-1).tolist()
        for slot, num_columns in zip(slots, lengths, strict=True):
            self._extend(slot, num_columns)
        self._touch()
        pages = [page for slot in slots for page in pages_by_column(slot)]
        columns = [column % PAGE for num_columns in lengths for column in range(num_columns)]
        real = attention_mask.flatten().nonzero()[:, 0].to(self.device)
        self.view = PrefillView(slots[0].prefix, real, self._index(pages), self._index(columns))
        self.mask[self.view.page, self.view.column] = 0

    def begin_prefix(self, num_tokens: int) -> Prefix:
        """The next forward, of one row, computes a prefix instead of filling a slot."""
        prefix = Prefix(num_tokens)
        self.view = PrefillView(None, None, None, None, computes=prefix)
        return prefix

    def begin_step(self, slots: Rows[Slot]) -> None:
        """The next forward appends one column to each of `slots`, all that are open, and attends to all it has."""
        self._begun = []
        num_new = sum(slot.num_columns == len(slot.pages) * PAGE for slot in slots) - len(self._free)
        if num_new > self.num_pages - self.num_used:  # before any slot has changed, since it may run out of memory
            self.grow(self.num_used + max(num_new, MORE_PAGES))
        for slot in slots:
            self._extend(slot, 1)
        self._begun = list(slots)
        self._touch()
        row_of_page = [0] * self.num_used  # a free page counts as row 0's, which its mask hides
        for row, slot in enumerate(slots):
            for owned in slot.pages:
                row_of_page[owned] = row
        page = self._index([slot.pages[-1] for slot in slots])
        column = self._index([(slot.num_columns - 1) % PAGE for slot in slots])
        self.mask[page, column] = 0
        self.view = StepView(page, column, self._index(row_of_page), self.mask[: self.num_used], by_prefix(slots))

    def undo_step(self) -> None:
        """Takes back the columns that a step which failed has begun: of all its slots, or of none."""
        begun, self._begun = self._begun, []
        for slot in begun:
            slot.num_columns -= 1
            self.mask[slot.pages[-1], slot.num_columns % PAGE] = HIDDEN
            for layer in self.layers:  # what a failed forward wrote may be no number
                layer.zero([slot.pages[-1]], slot.num_columns % PAGE)
            if slot.num_columns % PAGE == 0:
                heapq.heappush(self._free, slot.pages.pop())

    def end_step(self) -> None:
        """The step in hand has succeeded: what it has begun stays."""
        self._begun = []

    def close(self, slot: Slot, *, is_broken: bool = False) -> None:
        """Gives a slot's pages back, zeroed if what is in them `is_broken` (not a number)."""
        if is_broken:
            for layer in self.layers:
                layer.zero(slot.pages)
        self.mask[slot.pages] = HIDDEN
        for page in slot.pages:
            heapq.heappush(self._free, page)
        slot.pages.clear()

    def shrink(self, slots: Rows[Slot]) -> None:
        """Keeps no more memory than the open `slots` need."""
        self.compact(slots, most_holes=0)
        self.num_pages = self.num_touched = self._num_asked = self.num_used
        self.mask = self.mask[: self.num_used].clone()
        for layer in self.layers:
            layer.resize(self.num_used, self.num_used)

    def compact(self, slots: Rows[Slot], most_holes: float = MOST_HOLES) -> None:
        """Moves the last pages into the holes once these are more than a share of all: steps read holes as well."""
        if len(self._free) <= most_holes * self.num_used:
            return
        places = {page: (slot, i) for slot in slots for i, page in enumerate(slot.pages)}
        sources, targets, moved = [], [], []
        last = self.num_used - 1
        for hole in sorted(self._free):
            while last > hole and last not in places:
                last -= 1
            if last <= hole:
                break
            moved.append(places.pop(last))
            sources.append(last)
            targets.append(hole)
        self._move(sources, targets)  # may run out of memory: the slots keep to their pages until it is done
        for (slot, i), hole in zip(moved, targets, strict=True):
            slot.pages[i] = hole
        self.num_used = sum(len(slot.pages) for slot in slots)
        self._free = []

    def _move(self, sources: list[int], targets: list[int]) -> None:
        if sources:
            for layer in self.layers:
                layer.keys[targets] = layer.keys[sources]
                layer.values[targets] = layer.values[sources]
            self.mask[targets] = self.mask[sources]
            self.mask[sources] = HIDDEN

    def _extend(self, slot: Slot, num_columns: int) -> None:
        slot.num_columns += num_columns
        while len(slot.pages) * PAGE < slot.num_columns:
            slot.pages.append(heapq.heappop(self._free) if self._free else self._next_page())

    def _next_page(self) -> int:
        if self.num_used == self.num_pages:
            self.grow(self.num_pages + max(MORE_PAGES, self.num_pages // 2))
        self.num_used += 1
        return self.num_used - 1

    def _touch(self) -> None:
        """Makes new pages take memory, and some that come next, by as many threads as torch has.

        A forward's writes would do it layer by layer in one thread; the first touch of memory is the slowest of all.
        """
        if self.num_used <= self.num_touched:
            return
        new = slice(self.num_touched, self.num_used)
        if self._grows_freely and all(layer.is_initialized for layer in self.layers):
            new = slice(new.start, max(new.stop, min(new.stop + TOUCHED_AHEAD, self._num_asked)))
            blocks = [block[new] for layer in self.layers for block in (layer.keys, layer.values)]
            with suppress(RuntimeError), ThreadPoolExecutor(torch.get_num_threads()) as threads:  # or there are no more
                list(threads.map(touch_block, blocks))
        self.num_touched = new.stop

    def _index(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, device=self.device)
