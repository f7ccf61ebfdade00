"""The slot KV cache: keys and values of rows that come and go, in pages; and how transformers comes to use it.

A transformers `Cache`. A page holds `PAGE` columns of one row, so rows of any length stand side by side without pads:
each is written at its own positions, and one that leaves gives its pages to the next without moving the others.
Knows nothing of tokens, sampling or scheduling.
"""

from __future__ import annotations

import heapq
import math
import mmap
import weakref
from collections.abc import Sequence as Rows
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from batchgen.engines.continuous.slot_attention import attend_pages, attend_prefix, attend_prompts, merge
from batchgen.machine.process import untouched_memory_is_free
from batchgen.planning.memory import PAGE

ATTENTION = "batchgen_slots"  # the name under which transformers finds the attention below
HIDDEN = torch.finfo(torch.float32).min  # added to the score of a column that holds nothing; -inf - -inf would be NaN
MOST_HOLES = 1 / 16
MORE_PAGES = 64  # how many come at once, at least, where there are none left
# So large a part more comes with them where pages cost nothing until they are written: growing later copies those in
# use, and all others are then touched for the first time once more, the slowest of all writes.
SPARE_PAGES = 1 / 2
TOUCHED_AHEAD = 32  # pages that take memory before they are used, so that not every step begins with it
# What an attention may ask for that slots do not have.
FOREIGN = ("sliding_window", "softcap", "s_aux", "position_bias")


@dataclass(slots=True, eq=False)
class Prefix:
    """Keys and values of tokens that several rows begin with: one `[Hkv, P, D]` of each a layer."""

    num_tokens: int
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Slot:
    """A row's place in the cache: how many columns of its own it has, in which pages, behind which prefix."""

    prefix: Prefix | None = None
    num_columns: int = 0
    pages: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return self.num_columns + (self.prefix.num_tokens if self.prefix else 0)


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
        self.view: _Prefill | _Step | None = None
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
            layer.resize(num_pages)
        empty = torch.full((num_pages - self.num_pages, PAGE), HIDDEN, device=self.device)
        self.mask = torch.cat([self.mask, empty])
        self.num_pages, self.num_touched = num_pages, self.num_used

    def begin_prefill(self, slots: Rows[Slot], attention_mask: torch.Tensor) -> None:
        """The next forward fills `slots` with the real columns of a left-padded batch: mask `[B, T]` on the CPU."""
        lengths = attention_mask.sum(-1).tolist()
        for slot, num_columns in zip(slots, lengths, strict=True):
            self._extend(slot, num_columns)
        self._touch()
        pages = [page for slot in slots for page in _pages_by_column(slot)]
        columns = [column % PAGE for num_columns in lengths for column in range(num_columns)]
        real = attention_mask.flatten().nonzero()[:, 0].to(self.device)
        self.view = _Prefill(slots[0].prefix, real, self._index(pages), self._index(columns))
        self.mask[self.view.page, self.view.column] = 0

    def begin_prefix(self, num_tokens: int) -> Prefix:
        """The next forward, of one row, computes a prefix instead of filling a slot."""
        prefix = Prefix(num_tokens)
        self.view = _Prefill(None, None, None, None, computes=prefix)
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
        self.view = _Step(page, column, self._index(row_of_page), self.mask[: self.num_used], _by_prefix(slots))

    def undo_step(self) -> None:
        """Takes back the columns that a step which failed has begun: of all its slots, or of none."""
        begun, self._begun = self._begun, []
        for slot in begun:
            slot.num_columns -= 1
            self.mask[slot.pages[-1], slot.num_columns % PAGE] = HIDDEN
            if slot.num_columns % PAGE == 0:
                heapq.heappush(self._free, slot.pages.pop())

    def close(self, slot: Slot) -> None:
        """Gives a slot's pages back."""
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
            layer.resize(self.num_used)

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
                list(threads.map(_touch_block, blocks))
        self.num_touched = new.stop

    def _index(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, device=self.device)


def _pages_by_column(slot: Slot) -> list[int]:
    """The page of each of a slot's columns."""
    return [slot.pages[column // PAGE] for column in range(slot.num_columns)]


def _zeros(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Zeros of `like`'s dtype and device.

    On a CPU the system zeroes them when they are first touched, in large pages; torch's own are filled at once, a
    small page at a time, which took a tenth of a prefill.
    """
    num_bytes = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or not num_bytes:
        return like.new_zeros(shape)
    try:
        # Shared memory, the default, has no large pages.
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        block = mmap.mmap(-1, num_bytes, **private)
    except OSError as error:
        raise MemoryError(f"no {num_bytes} bytes for the KV cache: {error}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            block.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(block, dtype=like.dtype).view(shape)


@torch.inference_mode()
def _touch_block(block: torch.Tensor) -> None:
    """Writes a zero into each of the system's pages of a block of zeros."""
    block.view(-1)[:: mmap.PAGESIZE // block.element_size()].zero_()


def _by_prefix(slots: Rows[Slot]) -> list[tuple[Prefix, list[int]]]:
    """Prefixes in use, each with its rows."""
    rows: dict[int, tuple[Prefix, list[int]]] = {}
    for row, slot in enumerate(slots):
        if slot.prefix:
            rows.setdefault(id(slot.prefix), (slot.prefix, []))[1].append(row)
    return list(rows.values())


@dataclass(frozen=True, slots=True, eq=False)
class _Prefill:
    """A forward over left-padded prompts: where each real column goes. Or one that `computes` a prefix."""

    prefix: Prefix | None
    real: torch.Tensor | None  # [N], the real ones of the batch's B * T columns, row by row
    page: torch.Tensor | None  # [N]
    column: torch.Tensor | None  # [N]
    computes: Prefix | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """A forward of one token a row: where it goes, and which row each page belongs to."""

    page: torch.Tensor  # [B]
    column: torch.Tensor  # [B]
    row_of_page: torch.Tensor  # [U]
    mask: torch.Tensor  # [U, PAGE]
    prefixes: list[tuple[Prefix, list[int]]]


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's pages: keys and values `[pages, Hkv, PAGE, D]`, both multiplied as they lie."""

    is_sliding = False

    def __init__(self, cache: SlotCache, index: int) -> None:
        super().__init__()
        # Were it a cycle, the pages would stay until the garbage collector comes.
        self.cache = cast(SlotCache, weakref.proxy(cache))
        self.index = index

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Learns heads, sizes and dtype from the first keys and values, `[B, Hkv, T, D]` each."""
        num_pages = self.cache.num_pages
        # Zeros, since a page's last columns are multiplied before they are written, and 0 * NaN is NaN.
        self.keys = _zeros((num_pages, key_states.shape[1], PAGE, key_states.shape[3]), key_states)
        self.values = _zeros((num_pages, value_states.shape[1], PAGE, value_states.shape[3]), value_states)
        self.is_initialized = True

    def resize(self, num_pages: int) -> None:
        """Gets room for so many pages; those in use are copied."""
        if self.is_initialized:
            used = self.cache.num_used
            for name in ("keys", "values"):
                old: torch.Tensor = getattr(self, name)
                new = _zeros((num_pages, *old.shape[1:]), old)
                new[:used] = old[:used]
                setattr(self, name, new)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Writes keys and values `[B, Hkv, T, D]` where the forward's view says.

        In a prefill they come back, behind their prefix; in a step the layer itself comes in their place, for
        `attention` below to read.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        view = self.cache.view
        if isinstance(view, _Step):
            self.keys[view.page, :, view.column] = key_states[:, :, 0]  # [B, Hkv, D]
            self.values[view.page, :, view.column] = value_states[:, :, 0]
            return self, self
        assert view is not None
        if view.computes:
            view.computes.keys.append(key_states[0].contiguous())
            view.computes.values.append(value_states[0].contiguous())
            return key_states, value_states
        self.keys[view.page, :, view.column] = key_states.transpose(1, 2).flatten(0, 1)[view.real]  # [N, Hkv, D]
        self.values[view.page, :, view.column] = value_states.transpose(1, 2).flatten(0, 1)[view.real]
        if view.prefix is None:
            return key_states, value_states
        rows = len(key_states)
        return (
            torch.cat([view.prefix.keys[self.index].expand(rows, -1, -1, -1), key_states], 2),
            torch.cat([view.prefix.values[self.index].expand(rows, -1, -1, -1), value_states], 2),
        )

    def attend(self, query: torch.Tensor, scaling: float) -> torch.Tensor:
        """Attention of one query a row, `[B, H, 1, D]`, to all of the row's columns: `[B, 1, H, D]`.

        Each page gives a part of it, and so does a prefix, which all rows that share it read together.
        """
        view = self.cache.view
        assert isinstance(view, _Step)
        rows, heads, _, size = query.shape
        query = (query * scaling).view(rows, self.keys.shape[1], -1, size)  # [B, Hkv, G, D]
        used = len(view.row_of_page)
        parts = [attend_pages(query, self.keys[:used], self.values[:used], view.row_of_page, view.mask)]
        for prefix, sharing in view.prefixes:
            parts.append(attend_prefix(query, prefix.keys[self.index], prefix.values[self.index], sharing))
        return merge(parts, rows).view(rows, 1, heads, size).to(query.dtype)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Columns before those of the forward in hand that all of its rows share."""
        prefix = self.cache.view.prefix if isinstance(self.cache.view, _Prefill) else None
        return prefix.num_tokens if prefix else 0

    def get_max_length(self) -> int:
        return -1


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: Any,
    value: Any,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer: the pages in a step, in a prefill the fastest product there is."""
    if isinstance(key, SlotLayer):
        if foreign := [name for name in FOREIGN if kwargs.get(name) is not None]:
            raise NotImplementedError(f"attention with {foreign[0]}")
        return key.attend(query, kwargs["scaling"]), None
    if _has_few_scores(query, key) and attention_mask is not None:
        return attend_prompts(query, key, value, attention_mask, kwargs["scaling"]), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]


def _has_few_scores(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether to compute all scores at once, which in bfloat16 takes a CPU half the time of torch's fused attention.

    Where the heads are as wide as the hidden size, they take no more memory than four vectors of it a token, as long
    as an inner layer's of GPT-2.
    """
    is_bfloat16_on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16
    return is_bfloat16_on_cpu and key.shape[2] <= 4 * query.shape[3]


def attention_mask(*, q_length: int, **kwargs: Any) -> torch.Tensor | None:
    """A step needs none, its pages know their columns; a prefill has the causal mask with its pads."""
    return None if q_length == 1 and kwargs["kv_length"] == 1 else sdpa_mask(q_length=q_length, **kwargs)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, attention_mask)
