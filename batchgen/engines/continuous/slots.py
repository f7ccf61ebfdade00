"""A row's place in the KV cache, and what one forward needs to know about the places that it fills."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from batchgen.engines.continuous.memory import PAGE
from batchgen.engines.continuous.prompt_attention import RowLayout

if TYPE_CHECKING:
    from batchgen.model.layer_rules import LayerRule


@dataclass(slots=True, eq=False)
class Prefix:
    """Keys and values of tokens that several rows begin with: one `[Hkv, P, D]` of each per layer."""

    num_tokens: int
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Slot:
    """A row's place in the cache: its number of own columns, and the prefix before them."""

    prefix: Prefix | None = None
    num_columns: int = 0

    @property
    def num_tokens(self) -> int:
        return self.num_columns + (self.prefix.num_tokens if self.prefix else 0)


@dataclass(slots=True)
class Held:
    """A slot's pages, in the order of its columns; `num_gone` pages before them were freed."""

    num_gone: int
    pages: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The column after the last page."""
        return (self.num_gone + len(self.pages)) * PAGE

    def page_of(self, column: int) -> int:
        return self.pages[column // PAGE - self.num_gone]


def newest(slots: Rows[Slot]) -> list[int]:
    """Return the position of each slot's last token; for a slot that appears n times, its last n positions.

    >>> newest([Slot(num_columns=3), slot := Slot(num_columns=9), slot])
    [2, 7, 8]
    """
    left = Counter(slots)
    positions = []
    for slot in slots:
        positions.append(slot.num_tokens - left[slot])
        left[slot] -= 1
    return positions


@dataclass(frozen=True, slots=True, eq=False)
class PrefillView:
    """A forward over left-padded prompts: where each column that is kept goes. Or one that `computes` a prefix.

    `layout` lays out its rows from their own starts.
    """

    layout: RowLayout
    prefix: Prefix | None
    real: torch.Tensor | None  # [N], indices into the batch's B * T columns, row by row
    page: torch.Tensor | None  # [N]
    column: torch.Tensor | None  # [N]
    computes: Prefix | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StepView:
    """A forward of single tokens, one per row: where each goes, and which row each page belongs to.

    A slot may get up to Q tokens (`times`); each page then counts Q times, once for each of them. `order` are the pages
    that rows read, those of row b in the order of its columns from first[b] to first[b + 1]. Numbers from U * Q on are
    pages of prefixes: those of the first prefix for each of its rows, then the next prefix's.
    """

    page: torch.Tensor  # [B]
    column: torch.Tensor  # [B]
    row_of_page: torch.Tensor  # [U * Q]
    order: torch.Tensor  # [N]
    first: torch.Tensor  # [B + 1]
    mask: torch.Tensor  # [U * Q, PAGE]
    prefixes: list[SharedPrefix]
    times: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class SharedPrefix:
    """A prefix that a step reads for `rows`, from column `first` on, where a page begins.

    `index` `[R]` holds the same rows.

    mask `[R, P - first]` is added to the scores: 0, or the lowest float32 for columns outside a row's window; None if
    each row sees all.
    """

    prefix: Prefix
    rows: list[int]
    index: torch.Tensor
    first: int = 0
    mask: torch.Tensor | None = None

    @property
    def num_pages(self) -> int:
        return -(-(self.prefix.num_tokens - self.first) // PAGE)


def by_prefix(slots: Rows[Slot], rule: LayerRule, device: torch.device) -> list[SharedPrefix]:
    """Return the prefixes that a step's rows see, each with its rows; a slot's last columns are the queries' own."""
    rows: dict[Prefix, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot.prefix:
            rows.setdefault(slot.prefix, []).append(row)
    if rule.reach is None:
        return [SharedPrefix(prefix, its, torch.tensor(its, device=device)) for prefix, its in rows.items()]
    shared = []
    positions = newest(slots)
    for prefix, its in rows.items():
        firsts = [rule.first_seen(positions[row]) for row in its]
        seeing = [(row, first) for row, first in zip(its, firsts, strict=True) if first < prefix.num_tokens]
        if seeing:
            shared.append(_windowed(prefix, seeing, device))
    return shared


def _windowed(prefix: Prefix, seeing: list[tuple[int, int]], device: torch.device) -> SharedPrefix:
    """Return the rows that see part of a prefix, given with the first column that each one sees."""
    rows = [row for row, _ in seeing]
    index = torch.tensor(rows, device=device)
    firsts = [first for _, first in seeing]
    start = min(firsts) // PAGE * PAGE
    if max(firsts) == start:
        return SharedPrefix(prefix, rows, index, start)
    columns = torch.arange(start, prefix.num_tokens, device=device)
    hidden = columns < torch.tensor(firsts, device=device)[:, None]  # [R, P - first]
    return SharedPrefix(prefix, rows, index, start, hidden * torch.finfo(torch.float32).min)
