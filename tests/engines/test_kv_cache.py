"""The slot cache against a list of keys and values per row and a plain softmax."""

from __future__ import annotations

import mmap
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from threading import Thread
from typing import TypeAlias

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.engines.continuous import blocks, pages
from batchgen.engines.continuous.kv_cache import SlotCache
from batchgen.engines.continuous.memory import PAGE, pages_for
from batchgen.engines.continuous.pages import HIDDEN, TOUCHED_AHEAD, PagePool
from batchgen.engines.continuous.slots import Prefix, Slot
from batchgen.model.layer_rules import LayerRule

LAYERS, KV_HEADS, GROUP, SIZE = 2, 2, 3, 4
SCALING = SIZE**-0.5
CPU = torch.device("cpu")
Window: TypeAlias = int | LayerRule | None


@dataclass(eq=False)
class Row:
    """A slot, and what it should hold: keys and values `[Hkv, columns, D]` of each layer, and the prefix before."""

    slot: Slot
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)


def softmax_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: LayerRule) -> torch.Tensor:
    """Attend from query `[H, D]` to the columns of keys and values `[Hkv, C, D]` that the last one sees: `[H, D]`."""
    seen = slice(rule.first_seen(keys.shape[1] - 1), None)
    keys, values = (of[:, seen].repeat_interleave(GROUP, 0) for of in (keys, values))
    weights = (torch.einsum("hd,hcd->hc", query, keys) * SCALING).softmax(-1)
    return torch.einsum("hc,hcd->hd", weights, values)


class Rows:
    """A cache with rows, and random keys and values; every step is compared with plain attention."""

    def __init__(self, windows: tuple[Window, ...] = (None,) * LAYERS) -> None:
        rules = [window if isinstance(window, LayerRule) else LayerRule(window=window) for window in windows]
        self.cache = SlotCache(rules, CPU)
        self.random = torch.Generator().manual_seed(0)
        self.open: list[Row] = []
        self.prefixes: list[tuple[Prefix, list[torch.Tensor], list[torch.Tensor]]] = []

    def numbers(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random)

    def make_prefix(self, num_tokens: int) -> None:
        prefix = self.cache.begin_prefix(num_tokens)
        pairs = [(self.numbers(1, KV_HEADS, num_tokens, SIZE), self.numbers(1, KV_HEADS, num_tokens, SIZE))
                 for _ in range(LAYERS)]  # fmt: skip
        for layer, (keys, values) in enumerate(pairs):
            self.cache.update(keys, values, layer)
        self.prefixes.append((prefix, [keys[0] for keys, _ in pairs], [values[0] for _, values in pairs]))

    def prefill(self, lengths: list[int], which: int | None = None) -> list[Row]:
        """Prefill rows with these numbers of columns, left-padded, after one of the prefixes."""
        prefix, before_keys, before_values = self.prefixes[which] if which is not None else (None, [], [])
        rows, width = [Row(Slot(prefix)) for _ in lengths], max(lengths)
        mask = torch.tensor([[0] * (width - length) + [1] * length for length in lengths])
        self.cache.begin_prefill([row.slot for row in rows], mask)
        for layer in range(LAYERS):
            keys, values = (self.numbers(len(rows), KV_HEADS, width, SIZE) for _ in range(2))
            place, _ = self.cache.update(keys, values, layer)
            query = self.numbers(len(rows), KV_HEADS * GROUP, width, SIZE)
            found = place.attend(query, SCALING)  # [B, T, H, D]
            for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                own = keys[i, :, width - length :], values[i, :, width - length :]
                row.keys.append(torch.cat([*before_keys[layer : layer + 1], own[0]], 1))
                row.values.append(torch.cat([*before_values[layer : layer + 1], own[1]], 1))
                wanted = softmax_attention(query[i, :, -1], row.keys[layer], row.values[layer], place.pool.rule)
                torch.testing.assert_close(found[i, -1], wanted, atol=1e-5, rtol=1e-5)
        self.open += rows
        return rows

    def forward(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Make a step of all open rows; return the keys and values `[B, Hkv, 1, D]` of each layer."""
        self.cache.begin_step([row.slot for row in self.open])
        made = []
        for layer in range(LAYERS):
            query = self.numbers(len(self.open), KV_HEADS * GROUP, 1, SIZE)
            keys, values = (self.numbers(len(self.open), KV_HEADS, 1, SIZE) for _ in range(2))
            place, _ = self.cache.update(keys, values, layer)
            found = place.attend(query, SCALING)  # [B, 1, H, D]
            for i, row in enumerate(self.open):
                wanted = softmax_attention(
                    query[i, :, 0],
                    torch.cat([row.keys[layer], keys[i]], 1),
                    torch.cat([row.values[layer], values[i]], 1),
                    place.pool.rule,
                )
                torch.testing.assert_close(found[i, 0], wanted, atol=1e-5, rtol=1e-5)
            made.append((keys, values))
        return made

    def step(self, times: int = 1) -> None:
        for _ in range(times if self.open else 0):
            for layer, (keys, values) in enumerate(self.forward()):
                for i, row in enumerate(self.open):
                    row.keys[layer] = torch.cat([row.keys[layer], keys[i]], 1)
                    row.values[layer] = torch.cat([row.values[layer], values[i]], 1)
            self.cache.end_step()

    def draft(self, counts: list[int], kept: list[int]) -> None:
        """Make a step that gives rows several columns each, some of which are taken back."""
        if not self.open:
            return
        counts = [counts[i % len(counts)] for i in range(len(self.open))]
        self.cache.begin_step([row.slot for row, count in zip(self.open, counts, strict=True) for _ in range(count)])
        added: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        for layer in range(LAYERS):
            query = self.numbers(sum(counts), KV_HEADS * GROUP, 1, SIZE)
            keys, values = (self.numbers(sum(counts), KV_HEADS, 1, SIZE) for _ in range(2))
            place, _ = self.cache.update(keys, values, layer)
            found = place.attend(query, SCALING)  # [N, 1, H, D]
            parts = [x.split(counts) for x in (query, keys, values, found)]
            added.append([])
            for row, q, k, v, its in zip(self.open, *parts, strict=True):
                k, v = (x[:, :, 0].transpose(0, 1) for x in (k, v))  # [Hkv, n, D]
                for n in range(len(q)):
                    before = (
                        torch.cat([row.keys[layer], k[:, : n + 1]], 1),
                        torch.cat([row.values[layer], v[:, : n + 1]], 1),
                    )
                    wanted = softmax_attention(q[n, :, 0], *before, place.pool.rule)
                    torch.testing.assert_close(its[n, 0], wanted, atol=1e-5, rtol=1e-5)
                added[-1].append((k, v))
        for i, (row, count) in enumerate(zip(self.open, counts, strict=True)):
            number = min(count, kept[i % len(kept)])
            self.cache.take_back(row.slot, count - number)
            for layer in range(LAYERS):
                row.keys[layer] = torch.cat([row.keys[layer], added[layer][i][0][:, :number]], 1)
                row.values[layer] = torch.cat([row.values[layer], added[layer][i][1][:, :number]], 1)
        self.cache.end_step()

    def undo(self) -> None:
        if self.open:
            self.forward()
            self.cache.undo_step()

    def close(self, which: int) -> None:
        if self.open:
            self.cache.close(self.open.pop(which % len(self.open)).slot)

    @property
    def pool(self) -> PagePool:
        """The only pool, if all layers use the same attention rule."""
        [pool] = self.cache.pools
        return pool

    def pages(self, which: int) -> list[int]:
        return self.pool.pages_of(self.open[which].slot)

    def grow(self, num_pages: int) -> None:
        """Make room for `num_pages` pages."""
        self.cache.grow([PAGE] * num_pages)

    def compact(self, most_holes: float) -> None:
        self.cache.compact(most_holes)

    def shrink(self) -> None:
        self.cache.shrink()
        for pool in self.cache.pools:
            assert pool.num_pages == sum(len(pool.pages_of(row.slot)) for row in self.open)

    def check(self) -> None:
        """Check that pages belong to at most one row, and that just the columns that the next query sees are shown."""
        for row in self.open:
            assert row.slot.num_tokens == row.keys[0].shape[1]
        for pool in self.cache.pools:
            self.check_pool(pool)

    def check_pool(self, pool: PagePool) -> None:
        owned = [page for row in self.open for page in pool.pages_of(row.slot)]
        assert sorted(owned + pool._free) == list(range(pool.num_used))
        assert pool.num_used <= pool.num_touched <= pool.num_pages
        assert pool.held_columns == pool.num_touched * PAGE
        assert pool.mask.shape == (pool.num_pages, PAGE)
        wanted = torch.full_like(pool.mask, HIDDEN)
        for row in self.open:
            num_columns, its = row.slot.num_columns, pool.pages_of(row.slot)
            assert len(its) <= pages_for(num_columns, pool.rule.reach)
            gone = -(-num_columns // PAGE) - len(its)  # pages in front that were freed
            skipped = row.slot.num_tokens - num_columns
            first = max(0, pool.rule.first_seen(row.slot.num_tokens) - skipped)
            for column in range(first, num_columns):
                wanted[its[column // PAGE - gone], column % PAGE] = 0
        assert torch.equal(pool.mask, wanted)


LENGTHS = st.lists(st.sampled_from([1, 2, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE]), min_size=1, max_size=3)
ACTIONS: st.SearchStrategy[Callable[[Rows], object]] = st.one_of(
    LENGTHS.map(lambda lengths: lambda rows: rows.prefill(lengths)),
    st.tuples(LENGTHS, st.integers(0, 1)).map(lambda given: lambda rows: rows.prefill(*given)),
    st.integers(1, 3).map(lambda times: lambda rows: rows.step(times)),
    st.tuples(
        st.lists(st.integers(1, 9), min_size=1, max_size=2), st.lists(st.integers(1, 9), min_size=1, max_size=2)
    ).map(lambda given: lambda rows: rows.draft(*given)),
    st.integers(0, 9).map(lambda which: lambda rows: rows.close(which)),
    st.sampled_from([0, 1 / 16, 0.5]).map(lambda share: lambda rows: rows.compact(share)),
    st.just(Rows.undo),
    st.just(Rows.shrink),
)


CHUNKS = LayerRule(chunk=7), LayerRule(chunk=PAGE)
WINDOWS = st.sampled_from([(None, None), (None, 7), (PAGE + 1, PAGE + 1), (2, PAGE), CHUNKS, (CHUNKS[1], PAGE)])


@settings(max_examples=120)
@given(WINDOWS, st.lists(ACTIONS, max_size=14))
def test_rows_that_come_and_go_attend_to_their_own_columns(
    windows: tuple[Window, ...], actions: list[Callable[[Rows], object]]
) -> None:
    rows = Rows(windows)
    rows.make_prefix(2 * PAGE)
    rows.make_prefix(PAGE)
    for action in actions:
        action(rows)
        rows.check()
    rows.step()
    rows.check()


def test_a_row_that_leaves_gives_its_pages_to_the_next() -> None:
    rows = Rows()
    rows.prefill([3 * PAGE, 5])
    rows.close(0)
    rows.prefill([2 * PAGE + 1])
    assert (rows.pages(1), rows.pool.num_used) == ([0, 1, 2], 4)
    rows.step()


@pytest.mark.parametrize("length", [PAGE - 1, PAGE, PAGE + 1])
def test_a_step_takes_a_page_where_the_last_one_is_full(length: int) -> None:
    rows = Rows()
    rows.prefill([length])
    rows.step()
    assert len(rows.pages(0)) == (1 if length < PAGE else 2)


def test_a_step_taken_back_leaves_all_as_it_was() -> None:
    rows = Rows()
    rows.prefill([PAGE, PAGE - 1, 1])
    before = [(row.slot.num_columns, list(rows.pages(i))) for i, row in enumerate(rows.open)]
    rows.undo()
    assert [(row.slot.num_columns, rows.pages(i)) for i, row in enumerate(rows.open)] == before
    rows.check()
    rows.step(2)


def no_memory(*_: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("windows", [(None, None), (None, 7)])
def test_a_step_that_finds_no_page_takes_no_column(
    monkeypatch: pytest.MonkeyPatch, windows: tuple[int | None, ...]
) -> None:
    rows = Rows(windows)
    rows.prefill([3, PAGE, 5])
    rows.shrink()
    monkeypatch.setattr(rows.cache.pools[-1], "grow", no_memory)
    with pytest.raises(MemoryError):
        rows.forward()
    monkeypatch.undo()
    rows.cache.undo_step()
    rows.check()
    rows.step(2)


def test_a_move_that_runs_out_of_memory_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PagePool, "_move", no_memory)
    rows = Rows()
    rows.prefill([PAGE, PAGE, PAGE])
    rows.close(0)
    with pytest.raises(MemoryError):
        rows.compact(0)
    rows.check()
    rows.step()


def test_a_row_that_outgrows_a_window_holds_only_the_pages_that_it_sees() -> None:
    rows = Rows((None, PAGE))
    everywhere, local = rows.cache.pools
    [row] = rows.prefill([5 * PAGE])
    rows.prefill([PAGE - 1])
    assert (len(everywhere.pages_of(row.slot)), len(local.pages_of(row.slot))) == (5, 1)
    for _ in range(2 * PAGE):
        rows.step()
        rows.check()
    assert (len(everywhere.pages_of(row.slot)), len(local.pages_of(row.slot))) == (7, 1)
    assert local.num_used <= 4


def test_a_chunk_gives_all_its_pages_back_at_its_end() -> None:
    rows = Rows((None, LayerRule(chunk=2 * PAGE)))
    [row] = rows.prefill([PAGE + 5])
    held = []
    for _ in range(2 * PAGE):
        rows.step()
        rows.check()
        held.append(len(rows.cache.pools[1].pages_of(row.slot)))
    assert [number for number, _ in groupby(held)] == [2, 0, 1, 2]


@pytest.mark.parametrize("length", [1, PAGE, 3 * PAGE])
def test_a_window_moves_on_over_a_prefix_and_out_of_it(length: int) -> None:
    rows = Rows((PAGE, None))
    rows.make_prefix(2 * PAGE)
    rows.prefill([length, 1, 4], 0)
    rows.prefill([2])
    rows.step(2 * PAGE)
    rows.check()


def test_growing_keeps_what_is_there() -> None:
    rows = Rows()
    rows.prefill([PAGE + 3, 2])
    rows.grow(1000)
    rows.check()
    rows.step()


@pytest.mark.parametrize("is_free", [True, False])
def test_memory_that_was_touched_stays_while_the_cache_grows_a_little(
    monkeypatch: pytest.MonkeyPatch, is_free: bool
) -> None:
    monkeypatch.setattr(pages, "untouched_memory_is_free", lambda: is_free)
    rows = Rows()
    rows.grow(100)
    rows.prefill([PAGE + 3, 2])
    before = rows.cache.layers[0].keys.data_ptr()
    rows.grow(140)
    assert (rows.cache.layers[0].keys.data_ptr() == before) == is_free
    assert rows.pool.num_pages == (150 if is_free else 140)
    rows.check()
    rows.step()


def test_a_growing_cache_holds_only_what_was_written() -> None:
    rows = Rows()
    rows.grow(1000)
    rows.prefill([PAGE + 1])
    assert rows.pool.held_columns == 2 * PAGE


def grown(monkeypatch: pytest.MonkeyPatch, num_pages: int, *, is_free: bool = True) -> Rows:
    """Return a cache of this many pages with a first row in it; `is_free` says whether untouched memory is free."""
    monkeypatch.setattr(pages, "untouched_memory_is_free", lambda: is_free)
    rows = Rows()
    rows.grow(num_pages)
    rows.prefill([3])
    return rows


def mark_unused(rows: Rows) -> None:
    for layer in rows.cache.layers:
        layer.keys[rows.pool.num_touched :] = layer.values[rows.pool.num_touched :] = 7


def is_touched(block: torch.Tensor) -> torch.Tensor:
    """Return, for each cache page `[pages, Hkv, PAGE, D]`, whether its first number was written."""
    return block.flatten(1)[:, 0] != 7


@pytest.fixture
def small_system_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make system pages as small as a page of these tests' cache, which is then touched at its beginning."""
    monkeypatch.setattr(blocks.mmap, "PAGESIZE", KV_HEADS * PAGE * SIZE * 4)


@pytest.mark.usefixtures("small_system_pages")
def test_new_pages_are_touched_in_all_layers_some_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = grown(monkeypatch, 100)
    mark_unused(rows)
    rows.cache.begin_prefill([Slot()], torch.ones(1, PAGE, dtype=torch.int64))
    assert (rows.pool.num_used, rows.pool.num_touched) == (2, 2 + TOUCHED_AHEAD)
    assert rows.pool.held_columns == (2 + TOUCHED_AHEAD) * PAGE
    for layer in rows.cache.layers:
        for block in (layer.keys, layer.values):
            assert is_touched(block).nonzero()[:, 0].tolist() == list(range(2 + TOUCHED_AHEAD))


def test_pages_that_no_row_needs_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = grown(monkeypatch, 10)
    rows.prefill([3])
    assert (rows.pool.num_touched, rows.pool.num_pages) == (10, 15)
    rows.grow(12)
    rows.prefill([1] * 9)
    assert (rows.pool.num_used, rows.pool.num_touched) == (11, 12)


def test_only_pages_that_rows_may_need_are_large_pages_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large page at the border of the spare pages would take memory that no row needs, in every layer."""
    advised: list[tuple[int, ...]] = []

    class Block(mmap.mmap):
        def madvise(self, *advice: int) -> None:
            advised.append((len(self), *advice))

    monkeypatch.setattr(blocks.mmap, "mmap", Block)
    grown(monkeypatch, 100)
    page_bytes = KV_HEADS * PAGE * SIZE * 4
    total, needed = 150 * page_bytes, 100 * page_bytes
    border = needed + -needed % mmap.PAGESIZE
    assert set(advised) == {(total, mmap.MADV_HUGEPAGE, 0, border), (total, mmap.MADV_NOHUGEPAGE, border)}


def test_written_pages_are_not_touched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = grown(monkeypatch, 200)
    for _ in range(3):
        rows.prefill([PAGE] * 20)
        rows.step()
        for which in range(5):
            rows.close(which)
        rows.compact(0)
        rows.step()


@pytest.mark.usefixtures("small_system_pages")
def test_where_untouched_memory_counts_nothing_is_touched_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = grown(monkeypatch, 100, is_free=False)
    mark_unused(rows)
    rows.cache.begin_prefill([Slot()], torch.ones(1, PAGE, dtype=torch.int64))
    assert rows.pool.num_touched == 2
    assert not is_touched(rows.cache.layers[0].keys)[1:].any()


def test_rows_run_where_no_more_threads_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Thread, "start", start)
    rows = grown(monkeypatch, 100)
    rows.prefill([PAGE + 1])
    rows.step()
    rows.check()


def test_holes_are_filled_once_they_are_too_many() -> None:
    rows = Rows()
    rows.prefill([PAGE] * 8)
    rows.close(1)
    rows.compact(0.5)
    assert rows.pool.num_used == 8
    rows.compact(0)
    assert rows.pool.num_used == 7
    rows.step()


def test_many_rows_in_random_order_stay_apart() -> None:
    rows, source = Rows(), random.Random(0)
    rows.make_prefix(PAGE)
    for _ in range(12):
        rows.prefill([source.randint(1, 3 * PAGE) for _ in range(4)], source.choice([None, 0]))
        rows.step()
        for _ in range(3):
            rows.close(source.randrange(8))
    rows.check()


def test_a_step_that_succeeded_is_not_taken_back() -> None:
    rows = Rows()
    rows.prefill([3, PAGE, 5])
    rows.step()
    rows.cache.end_step()
    rows.cache.undo_step()
    rows.check()
    rows.step(2)


def test_pages_of_a_broken_row_are_zeroed_and_spoil_no_other_row() -> None:
    rows = Rows()
    broken, *_ = rows.prefill([PAGE, 5])
    pages = list(rows.pages(0))
    for layer in rows.cache.layers:
        layer.keys[pages] = layer.values[pages] = float("nan")
    rows.open.remove(broken)
    rows.cache.close(broken.slot, is_broken=True)
    assert all(not layer.keys[pages].any() and not layer.values[pages].any() for layer in rows.cache.layers)
    rows.step(2)
