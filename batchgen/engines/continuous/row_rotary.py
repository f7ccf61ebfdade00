"""LongRoPE by row: each row of a forward gets the factors that it gets alone, whatever rows are beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class RowRotary(nn.Module):
    """Rotary tables from a family's own module, which gives short or long factors to all rows of a call.

    Rows of one side get the tables of one call. If both sides are in a forward, two calls are merged.
    """

    def __init__(self, own: nn.Module, limit: int) -> None:
        super().__init__()
        self.own = own
        self.limit = limit  # tokens; a longer row gets the long factors
        self._has_short = self._has_long = True

    def begin(self, position_ids: torch.Tensor, *, is_long: bool = False) -> None:
        """Begin a forward over positions `[B, T]` on the CPU; `is_long` if they are the start of longer rows."""
        are_long = (position_ids.amax(-1) >= self.limit) | is_long  # [B]
        self._has_short, self._has_long = not bool(are_long.all()), bool(are_long.any())

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor, **more: Any) -> tuple[torch.Tensor, ...]:
        """Return cosines and sines `[B, T, D]`."""
        short = self._tables(x, position_ids.clamp(max=self.limit - 1), more) if self._has_short else ()
        if not self._has_long:
            return short
        beyond = torch.full_like(position_ids[:1], self.limit)  # [1, T], a row that makes the call a long one
        long = self._tables(x, torch.cat([position_ids, beyond]), more)
        if not self._has_short:
            return tuple(table[:-1] for table in long)
        are_long = (position_ids.amax(-1) >= self.limit)[:, None, None]
        return tuple(torch.where(are_long, table[:-1], other) for table, other in zip(long, short, strict=True))

    def _tables(self, x: torch.Tensor, position_ids: torch.Tensor, more: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        tables: tuple[torch.Tensor, ...] = self.own(x, position_ids, **more)
        return tables


def rotate_by_row(network: nn.Module, limit: int) -> int:
    """Wrap a network's LongRoPE modules in `RowRotary`; return how many there are."""
    found = [name for name, module in network.named_modules() if getattr(module, "rope_type", None) == "longrope"]
    for name in found:
        network.set_submodule(name, RowRotary(network.get_submodule(name), limit))
    return len(found)
