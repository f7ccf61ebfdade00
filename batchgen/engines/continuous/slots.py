"""A row's place in the KV cache, and what one forward needs to know of the places that it fills."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

import torch

from batchgen.engines.continuous.memory import PAGE


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


@dataclass(frozen=True, slots=True, eq=False)
class PrefillView:
    """A forward over left-padded prompts: where each real column goes. Or one that `computes` a prefix."""

    prefix: Prefix | None
    real: torch.Tensor | None  # [N], the real ones of the batch's B * T columns, row by row
    page: torch.Tensor | None  # [N]
    column: torch.Tensor | None  # [N]
    computes: Prefix | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StepView:
    """A forward of one token a row: where it goes, and which row each page belongs to."""

    page: torch.Tensor  # [B]
    column: torch.Tensor  # [B]
    row_of_page: torch.Tensor  # [U]
    mask: torch.Tensor  # [U, PAGE]
    prefixes: list[tuple[Prefix, list[int]]]


def pages_by_column(slot: Slot) -> list[int]:
    """The page of each of a slot's columns."""
    return [slot.pages[column // PAGE] for column in range(slot.num_columns)]


def by_prefix(slots: Rows[Slot]) -> list[tuple[Prefix, list[int]]]:
    """Prefixes in use, each with its rows."""
    rows: dict[int, tuple[Prefix, list[int]]] = {}
    for row, slot in enumerate(slots):
        if slot.prefix:
            rows.setdefault(id(slot.prefix), (slot.prefix, []))[1].append(row)
    return list(rows.values())
