"""What a step writes and reads in all rows' pages: built for each step, once for all layers with the same rule."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from batchgen.engines.continuous.memory import PAGE
from batchgen.engines.continuous.slots import Held, SharedPrefix, Slot, StepView, by_prefix, newest

if TYPE_CHECKING:
    from batchgen.model.layer_rules import LayerRule

HIDDEN = torch.finfo(torch.float32).min  # added to the score of a hidden column; not -inf, as -inf - -inf is NaN


def step_view(slots: Rows[Slot], held: Mapping[Slot, Held], mask: torch.Tensor, rule: LayerRule) -> StepView:
    """Return the view of a step that fills the last column of each slot, or the last n of one that appears n times.

    mask `[U, PAGE]`, in which these columns are still hidden, is changed to show them.
    """
    queries: dict[Slot, list[int]] = {}  # the rows of each slot, in the order of its columns
    for row, slot in enumerate(slots):
        queries.setdefault(slot, []).append(row)
    times = max(map(len, queries.values()))
    columns = [position - _skipped(slot) for slot, position in zip(slots, newest(slots), strict=True)]
    row_of_page = [0] * (len(mask) * times)  # a free page counts as row 0's; its mask hides it
    for slot, its in queries.items():
        for page in held[slot].pages:
            row_of_page[page * times : (page + 1) * times] = _filled(its, times)
    prefixes = by_prefix(slots, rule, mask.device)
    read = _before(prefixes, len(slots), len(row_of_page))
    for slot, its in queries.items():
        for nth, row in enumerate(its):
            read[row] += [page * times + nth for page in held[slot].pages]
    parts = (
        [held[slot].page_of(column) for slot, column in zip(slots, columns, strict=True)],
        [column % PAGE for column in columns],
        row_of_page,
        [page for its in read for page in its],
        [0, *accumulate(len(its) for its in read)],
    )
    # In one transfer, because transfers to a device are slow.
    sent = torch.tensor([number for part in parts for number in part], dtype=torch.int64, device=mask.device)
    page, column, rows, order, first = sent.split([len(part) for part in parts])  # type: ignore[no-untyped-call]
    mask[page, column] = 0
    if times > 1:
        mask = _of_each_query(mask, times, _unseen(queries, columns, held, times, rule))
    return StepView(page, column, rows, order, first, mask, prefixes, times)


def _skipped(slot: Slot) -> int:
    """Return the number of tokens before a slot's own columns."""
    return slot.num_tokens - slot.num_columns


def _filled(rows: list[int], times: int) -> list[int]:
    return rows + rows[-1:] * (times - len(rows))


def _before(prefixes: list[SharedPrefix], num_rows: int, end: int) -> list[list[int]]:
    """Return the prefix pages that each row reads, numbered from `end` on as `StepView` describes."""
    before: list[list[int]] = [[] for _ in range(num_rows)]
    for shared in prefixes:
        for row in shared.rows:
            before[row] = list(range(end, end + shared.num_pages))
            end += shared.num_pages
    return before


def _of_each_query(mask: torch.Tensor, times: int, unseen: list[tuple[int, int]]) -> torch.Tensor:
    """Return the mask `[U * Q, PAGE]` of each page for each of a slot's queries, with the `unseen` columns hidden."""
    mask = mask.repeat_interleave(times, 0)
    if unseen:
        pages, columns = zip(*unseen, strict=True)
        mask[list(pages), list(columns)] = HIDDEN
    return mask


def _unseen(
    queries: Mapping[Slot, list[int]], columns: list[int], held: Mapping[Slot, Held], times: int, rule: LayerRule
) -> list[tuple[int, int]]:
    """Return columns that one query of a slot sees and another does not, as places in the latter's mask.

    These are the columns after a query's own, and those that its window has left behind since the first query.
    """
    unseen = []
    for slot, its in queries.items():
        skipped = _skipped(slot)
        seen = max(0, rule.first_seen(columns[its[0]] + skipped) - skipped)
        for nth, row in enumerate(_filled(its, times) if len(its) > 1 else ()):
            own = columns[row]
            hidden = [
                *range(seen, rule.first_seen(own + skipped) - skipped),
                *range(own + 1, slot.num_columns),
            ]
            unseen += [(held[slot].page_of(column) * times + nth, column % PAGE) for column in hidden]
    return unseen
