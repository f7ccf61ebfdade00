"""Pages of keys and values: which slot has which pages, which columns are seen, and when pages are taken and freed.

A page holds `PAGE` columns of one row, so rows of any length stand side by side without pads. Each row is written at
its own positions, and when it leaves, its pages go to the next row without moving others.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence as Rows
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from batchgen.engines.continuous.blocks import touch_block
from batchgen.engines.continuous.memory import PAGE
from batchgen.engines.continuous.prompt_attention import RowLayout
from batchgen.engines.continuous.slots import Held, PrefillView, Prefix, Slot, StepView
from batchgen.engines.continuous.step_view import HIDDEN, step_view
from batchgen.machine.process import untouched_memory_is_free

if TYPE_CHECKING:
    from batchgen.engines.continuous.layer import SlotLayer
    from batchgen.model.layer_rules import LayerRule

MOST_HOLES = 1 / 16
MORE_PAGES = 64  # how many pages are added at least if none are left
# Where pages cost nothing until they are written, this share is added as spare pages. Growing later copies the pages in
# use, and all pages are then touched for the first time again, which is the slowest kind of write.
SPARE_PAGES = 1 / 2
TOUCHED_AHEAD = 32  # pages that are touched before they are used, so that not every step has to start with it


class PagePool:
    """The pages of all layers with the same attention rule.

    Columns that no later query sees are hidden, and pages of only such columns are freed.
    """

    def __init__(self, rule: LayerRule, device: torch.device) -> None:
        self.rule = rule
        self.device = device
        self.layers: list[SlotLayer] = []
        self.num_pages = 0  # allocated
        self.num_used = 0  # pages [0, num_used) are read by every step
        self.num_touched = 0  # pages [0, num_touched) take memory on a CPU; the others are only addresses
        self.mask = torch.empty(0, PAGE, device=device)  # [pages, PAGE], added to the scores: 0, or the lowest float32
        self.view: PrefillView | StepView | None = None  # what the current forward writes and reads
        self._holder: SlotLayer | None = None
        self._num_asked = 0  # pages that rows may need; the others are spare
        self._free: list[int] = []  # a heap of free pages below num_used
        self._held: dict[Slot, Held] = {}
        self._grows_freely = device.type == "cpu" and untouched_memory_is_free()

    @property
    def num_spare(self) -> int:
        """The last pages that no row may need yet."""
        return max(0, self.num_pages - self._num_asked)

    @property
    def held_columns(self) -> int:
        """Columns that take memory: on a CPU only those that were touched."""
        return (self.num_touched if self.device.type == "cpu" else self.num_pages) * PAGE

    @property
    def held_bytes(self) -> int:
        return sum(self.held_columns * layer.column_bytes for layer in self.layers)

    def pages_of(self, slot: Slot) -> list[int]:
        """Return the slot's pages, in the order of its columns."""
        return self._held[slot].pages

    def grow(self, num_pages: int) -> None:
        """Make room for at least `num_pages` pages; existing contents are kept."""
        self._num_asked = max(self._num_asked, num_pages)
        if num_pages <= self.num_pages:
            return
        num_spare = int(SPARE_PAGES * num_pages) if self._grows_freely else 0
        num_pages += num_spare
        for layer in self.layers:
            layer.resize(num_pages, self.num_used, num_spare)
        empty = torch.full((num_pages - self.num_pages, PAGE), HIDDEN, device=self.device)
        self.mask = torch.cat([self.mask, empty])
        self.num_pages, self.num_touched = num_pages, self.num_used

    # Before and after a forward.

    def begin_prefill(self, slots: Rows[Slot], width: int, layout: RowLayout) -> None:
        """Begin a prefill: the forward fills new `slots` with their columns, from a left-padded batch of `width`.

        Columns that no later query sees are not kept.
        """
        real, pages, columns = [], [], []
        for row, slot in enumerate(slots):
            held = self._extend(slot)
            kept = range(self._first_seen(slot), slot.num_columns)
            real += [(row + 1) * width - slot.num_columns + column for column in kept]
            pages += [held.page_of(column) for column in kept]
            columns += [column % PAGE for column in kept]
        self._touch()
        view = PrefillView(layout, slots[0].prefix, self._index(real), self._index(pages), self._index(columns))
        self.mask[view.page, view.column] = 0
        self.view = view

    def begin_prefix(self, prefix: Prefix, layout: RowLayout) -> None:
        """Begin a forward of one row that computes a prefix instead of filling a slot."""
        self.view = PrefillView(layout, None, None, None, None, computes=prefix)

    def hold(self, layer: SlotLayer, prompts: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Let a layer keep its keys and values of a prefill until another layer stores its own.

        Others may share them.
        """
        self._let_go()
        self._holder, layer.prompts = layer, prompts

    def _let_go(self) -> None:
        if self._holder:
            self._holder.prompts = None
        self._holder = None

    def reserve_step(self, slots: Rows[Slot]) -> None:
        """Reserve pages for the next columns of slots; if memory runs out, no slot has changed."""
        ends = [(self._held[slot].end, slot.num_columns + number) for slot, number in Counter(slots).items()]
        num_new = sum(-(-max(0, needed - end) // PAGE) for end, needed in ends) - len(self._free)
        if num_new > self.num_pages - self.num_used:
            self.grow(self.num_used + max(num_new, MORE_PAGES))

    def begin_step(self, slots: Rows[Slot]) -> None:
        """Begin a step: the forward fills the last columns of `slots`, which must be all open slots.

        A slot that appears n times has its last n columns filled.
        """
        self._let_go()
        held = {slot: self._extend(slot) for slot in slots}
        self._touch()
        self.view = step_view(slots, held, self.mask[: self.num_used], self.rule)

    def take_back(self, slot: Slot, *, is_broken: bool = False) -> None:
        """Take back the last column that `begin_step` gave this slot, and zero it if `is_broken`.

        The slot no longer counts the column.
        """
        held = self._held[slot]
        page, column = held.pages[-1], slot.num_columns % PAGE
        self.mask[page, column] = HIDDEN
        for layer in self.layers if is_broken else ():
            layer.zero([page], column)
        if column == 0:
            heapq.heappush(self._free, held.pages.pop())

    def end_step(self, slots: Rows[Slot]) -> None:
        """Hide the columns of each slot that its next query does not see, and free pages of only such columns."""
        gone = []
        for slot, number in Counter(slots if self.rule.reach else ()).items():
            held, seen = self._held[slot], self._first_seen(slot)
            for column in range(self._first_seen(slot, before=number), seen):
                gone.append((held.page_of(column), column % PAGE))
                if (column + 1) % PAGE == 0:
                    heapq.heappush(self._free, held.pages.pop(0))
                    held.num_gone += 1
        if gone:
            pages, columns = zip(*gone, strict=True)
            self.mask[self._index(list(pages)), self._index(list(columns))] = HIDDEN

    def close(self, slot: Slot, *, is_broken: bool = False) -> None:
        """Free a slot's pages, and zero them if their contents are broken (NaN)."""
        held = self._held.pop(slot, Held(0))
        if is_broken:
            for layer in self.layers:
                layer.zero(held.pages)
        self.mask[held.pages] = HIDDEN
        for page in held.pages:
            heapq.heappush(self._free, page)

    # Memory.

    def shrink(self) -> None:
        """Free all memory that the open slots do not need."""
        self.compact(most_holes=0)
        self.num_pages = self.num_touched = self._num_asked = self.num_used
        self.mask = self.mask[: self.num_used].clone()
        for layer in self.layers:
            layer.resize(self.num_used, self.num_used)

    def compact(self, most_holes: float = MOST_HOLES) -> None:
        """Move the last pages into the holes if more than this share of pages are holes: steps read holes too."""
        if len(self._free) <= most_holes * self.num_used:
            return
        places = {page: (held, i) for held in self._held.values() for i, page in enumerate(held.pages)}
        num_held = len(places)
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
        self._move(sources, targets)  # may run out of memory: the slots keep their pages until it has succeeded
        for (held, i), hole in zip(moved, targets, strict=True):
            held.pages[i] = hole
        self.num_used = num_held
        self._free = []

    def _move(self, sources: list[int], targets: list[int]) -> None:
        if sources:
            for layer in self.layers:
                layer.move(sources, targets)
            self.mask[targets] = self.mask[sources]
            self.mask[sources] = HIDDEN

    def _first_seen(self, slot: Slot, before: int = 0) -> int:
        """Return the first of a slot's own columns that its next query sees, or the query `before` positions back."""
        skip = slot.num_tokens - slot.num_columns
        return max(0, self.rule.first_seen(slot.num_tokens - before) - skip)

    def _extend(self, slot: Slot) -> Held:
        """Give a slot pages for its new columns."""
        held = self._held.setdefault(slot, Held(0))
        if not held.pages:
            held.num_gone = min(self._first_seen(slot), slot.num_columns - 1) // PAGE
        while held.end < slot.num_columns:
            held.pages.append(heapq.heappop(self._free) if self._free else self._next_page())
        return held

    def _next_page(self) -> int:
        if self.num_used == self.num_pages:
            self.grow(self.num_pages + max(MORE_PAGES, self.num_pages // 2))
        self.num_used += 1
        return self.num_used - 1

    def _touch(self) -> None:
        """Make new pages take memory, and some that come next, with as many threads as torch uses.

        Otherwise a forward's writes would do it layer by layer in one thread, and the first touch of memory is the
        slowest.
        """
        if self.num_used <= self.num_touched:
            return
        new = slice(self.num_touched, self.num_used)
        if self._grows_freely and all(layer.is_initialized for layer in self.layers):
            new = slice(new.start, max(new.stop, min(new.stop + TOUCHED_AHEAD, self._num_asked)))
            blocks = [block[new] for layer in self.layers for block in (layer.keys, layer.values)]
            with suppress(RuntimeError), ThreadPoolExecutor(torch.get_num_threads()) as threads:
                list(threads.map(touch_block, blocks))
        self.num_touched = new.stop

    def _index(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)
