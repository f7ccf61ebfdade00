"""What a step writes and reads, of all rows' pages: made anew for each step, once for all layers with one rule."""

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

HIDDEN = torch.finfo(torch.float32).min  # added to the score of a column that holds nothing; -inf - -inf would be NaN


def step_view(slots: Rows[Slot], held: Mapping[Slot, Held], mask: torch.Tensor, rule: LayerRule) -> StepView:
    """The view of a step that fills the last columns of slots, n of one that stands there n times.

    mask `[U, PAGE]`, in which these columns are still hidden, shows them from now on.
    """
    queries: dict[Slot, list[int]] = {}  # of each slot, in the order of its columns
    for row, slot in enumerate(slots):
        queries.setdefault(slot, []).append(row)
    times = max(map(len, queries.values()))
    columns = [position - _skipped(slot) for slot, position in zip(slots, newest(slots), strict=True)]
    row_of_page = [0] * (len(mask) * times)  # a free page counts as row 0's, which its mask hides
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
        [0, *accumulate(len(its) for its in read[:-1])],
    )
    # All at once, which a device is slow at.
    sent = torch.tensor([number for part in parts for number in part], dtype=torch.int64, device=mask.device)
    page, column, rows, order, first = sent.split([len(part) for part in parts])  # type: ignore[no-untyped-call]
    mask[page, column] = 0
    if times > 1:
        mask = _of_each_query(mask, times, _unseen(queries, columns, held, times, rule))
    return StepView(page, column, rows, order, first, mask, prefixes, times)


def _skipped(slot: Slot) -> int:
    """Tokens in front of a slot's own columns."""
    return slot.num_tokens - slot.num_columns


def _filled(rows: list[int], times: int) -> list[int]:
    return rows + rows[-1:] * (times - len(rows))


def _before(prefixes: list[SharedPrefix], num_rows: int, end: int) -> list[list[int]]:
    """The pages of prefixes that each row reads, numbered from `end` on as `StepView` says."""
    before: list[list[int]] = [[] for _ in range(num_rows)]
    for shared in prefixes:
        for row in shared.rows:
            before[row] = list(range(end, end + shared.num_pages))
            end += shared.num_pages
    return before


def _of_each_query(mask: torch.Tensor, times: int, unseen: list[tuple[int, int]]) -> torch.Tensor:
    """The mask `[U * Q, PAGE]` of each page for each of a slot's queries, some of whose columns are `unseen`."""
    mask = mask.repeat_interleave(times, 0)
    if unseen:
        pages, columns = zip(*unseen, strict=True)
        mask[list(pages), list(columns)] = HIDDEN
    return mask


def _unseen(
    queries: Mapping[Slot, list[int]], columns: list[int], held: Mapping[Slot, Held], times: int, rule: LayerRule
) -> list[tuple[int, int]]:
    """Columns that some query of a slot sees and another does not, as places in the latter's mask.

    Those are the columns behind it, and what its window has left behind since the first query.
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
