"""A row's place in the KV cache, and what one forward needs to know of the places that it fills."""

from __future__ import annotations

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
    """Keys and values of tokens that several rows begin with: one `[Hkv, P, D]` of each a layer."""

    num_tokens: int
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Slot:
    """A row's place in the cache: how many columns of its own it has, behind which prefix."""

    prefix: Prefix | None = None
    num_columns: int = 0

    @property
    def num_tokens(self) -> int:
        return self.num_columns + (self.prefix.num_tokens if self.prefix else 0)


@dataclass(frozen=True, slots=True, eq=False)
class PrefillView:
    """A forward over left-padded prompts: where each column that is kept goes. Or one that `computes` a prefix.

    `layout` is how its rows lie from their own starts.
    """

    layout: RowLayout
    prefix: Prefix | None
    real: torch.Tensor | None  # [N], those of the batch's B * T columns, row by row
    page: torch.Tensor | None  # [N]
    column: torch.Tensor | None  # [N]
    computes: Prefix | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StepView:
    """A forward of one token per row: where it goes, and which row each page belongs to.

    `order` are the pages that rows read, each row's in the order of its columns, from `first` on. Numbers from U on
    are pages of prefixes: those of the first one for each of its rows, then the next one's.
    """

    page: torch.Tensor  # [B]
    column: torch.Tensor  # [B]
    row_of_page: torch.Tensor  # [U]
    order: torch.Tensor  # [N]
    first: torch.Tensor  # [B]
    mask: torch.Tensor  # [U, PAGE]
    prefixes: list[SharedPrefix]


@dataclass(frozen=True, slots=True, eq=False)
class SharedPrefix:
    """A prefix that a step's `rows` read together, from column `first` on, where a page begins; `index` `[R]` are they.

    mask `[R, P - first]` is added to the scores: 0, or the least float32 where a window has left a column behind; None
    where each row sees all.
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
    """Prefixes that a step's rows see, each with its rows; their last column is the query's own."""
    rows: dict[Prefix, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot.prefix:
            rows.setdefault(slot.prefix, []).append(row)
    if rule.reach is None:
        return [SharedPrefix(prefix, its, torch.tensor(its, device=device)) for prefix, its in rows.items()]
    shared = []
    for prefix, its in rows.items():
        firsts = [rule.first_seen(slots[row].num_tokens - 1) for row in its]
        seeing = [(row, first) for row, first in zip(its, firsts, strict=True) if first < prefix.num_tokens]
        if seeing:
            shared.append(_windowed(prefix, seeing, device))
    return shared


def _windowed(prefix: Prefix, seeing: list[tuple[int, int]], device: torch.device) -> SharedPrefix:
    """The rows that see something of a prefix, each with the first column that it sees."""
    rows = [row for row, _ in seeing]
    index = torch.tensor(rows, device=device)
    firsts = [first for _, first in seeing]
    start = min(firsts) // PAGE * PAGE
    if max(firsts) == start:
        return SharedPrefix(prefix, rows, index, start)
    columns = torch.arange(start, prefix.num_tokens, device=device)
    hidden = columns < torch.tensor(firsts, device=device)[:, None]  # [R, P - first]
    return SharedPrefix(prefix, rows, index, start, hidden * torch.finfo(torch.float32).min)
