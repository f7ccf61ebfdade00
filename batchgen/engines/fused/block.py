"""A decoder layer with few operations: norm, one product for query, key and value, attention, norm, MLP.

Knows the slots' cache, and no model family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from batchgen.engines.continuous.slot_attention import Extras


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """How a layer attends: its index in the cache, numbers of query and key heads, their size, scaling and extras."""

    index: int
    queries: int
    keys: int
    size: int
    scaling: float
    extras: Extras


class Rotary:
    """Cosines and sines of the current forward, in the form that blocks multiply with; shared by a network's blocks."""

    def __init__(self) -> None:
        self._given: tuple[torch.Tensor, torch.Tensor] | None = None
        self._made: tuple[torch.Tensor, torch.Tensor] | None = None
        self._rows: tuple[torch.Tensor, torch.Tensor] | None = None

    def tables(self, given: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tables `[B, T, 1, D]` from cosines and sines `[B, T, D]`, sines with the sign of the rotated half."""
        if self._made is None or self._given is None or self._given[0] is not given[0]:
            cosines, sines = given
            half = sines.shape[-1] // 2
            signed = torch.cat([-sines[..., :half], sines[..., half:]], -1)
            self._given, self._made, self._rows = given, (cosines[:, :, None], signed[:, :, None]), None
        return self._made

    def of_rows(self, given: tuple[torch.Tensor, torch.Tensor], num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cosines and sines `[B, D]` of one new token per row, in float32."""
        if self._rows is None or self._given is None or self._given[0] is not given[0]:
            tables = [table.expand(num_rows, 1, -1)[:, 0].float().contiguous() for table in given]
            self._given, self._made, self._rows = given, None, (tables[0], tables[1])
        return self._rows


class Gate(nn.Module):
    """An activation of the first half of `[…, 2 I]` times the second half: `[…, I]`."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, inner: torch.Tensor) -> torch.Tensor:
        gate, through = inner.chunk(2, -1)
        return self.activation(gate).mul_(through)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class StepParts:
    """What a block uses in steps instead of its own parts of the same names, where loops are compiled; and `attend`.

    Loops run in one thread unless they are long, so prefills keep the block's own parts.
    """

    attend: Callable[..., torch.Tensor]
    norm: nn.Module
    norm_out: nn.Module | None
    norm_inner: nn.Module
    norm_down: nn.Module | None
    gate: nn.Module | None


class Block(nn.Module):
    """A decoder layer. Parts that the layer does not have are None."""

    sees_last_only = False  # True for the last layer: only the last column goes on to the MLP

    def __init__(self, heads: AttentionPlan, rotary: Rotary | None) -> None:
        super().__init__()
        self.heads = heads
        self.rotary = rotary
        self.in_steps: StepParts | None = None
        self.norm: nn.Module
        self.mixed: nn.Module  # query, key and value projections side by side
        self.norm_queries: nn.Module | None = None
        self.norm_keys: nn.Module | None = None
        self.out: nn.Module
        self.norm_out: nn.Module | None = None
        self.norm_inner: nn.Module
        self.up: nn.Module  # with `gate`, the gate and up projections side by side
        self.gate: nn.Module | None = None
        self.down: nn.Module
        self.norm_down: nn.Module | None = None
        self.gives_tuple = False

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Take hidden_states `[B, T, E]` and transformers' other arguments; only the cache and positions are used."""
        cache = next(value for value in (*kwargs.values(), *args) if isinstance(value, Cache))
        positions = kwargs.get("position_embeddings")
        parts: Block | StepParts = self
        if self.in_steps is not None and cache.layers[self.heads.index].is_stepping:
            parts = self.in_steps
            found = self._step(self.mixed(parts.norm(hidden_states)), cache, positions)
        else:
            found = self._attend(self.norm(hidden_states), cache, positions)
        found = found.flatten(2)
        columns = found.shape[1]
        if self.sees_last_only:
            found, hidden_states = found[:, -1:], hidden_states[:, -1:]
        hidden = _added(self.out, found, parts.norm_out, hidden_states)
        inner = self.up(parts.norm_inner(hidden))
        if parts.gate is not None:
            inner = parts.gate(inner)
        hidden = _added(self.down, inner, parts.norm_down, hidden)
        hidden = hidden.expand(-1, columns, -1)  # the other columns are never read
        return (hidden,) if self.gives_tuple else hidden

    def _step(
        self, mixed: torch.Tensor, cache: Cache, positions: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        assert self.in_steps is not None
        turn = self.rotary.of_rows(positions, len(mixed)) if self.rotary is not None and positions is not None else None
        return self.in_steps.attend(mixed, turn, cache.layers[self.heads.index])

    def _attend(
        self, x: torch.Tensor, cache: Cache, positions: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        """Return the attention `[B, T, H, Dv]`."""
        its = self.heads
        mixed = self.mixed(x).unflatten(-1, (its.queries + 2 * its.keys, -1))  # [B, T, H + 2 Hkv, D]
        turned, values = mixed[:, :, : -its.keys], mixed[:, :, -its.keys :]
        if self.norm_queries is not None and self.norm_keys is not None:
            normed = [self.norm_queries(turned[:, :, : its.queries]), self.norm_keys(turned[:, :, its.queries :])]
            turned = torch.cat(normed, 2)
        if self.rotary is not None and positions is not None:
            cosines, sines = self.rotary.tables(positions)
            turned = _turn(turned, cosines, sines)
        query, keys = turned[:, :, : its.queries].transpose(1, 2), turned[:, :, its.queries :].transpose(1, 2)
        layer, _ = cache.update(keys, values.transpose(1, 2), its.index)
        return layer.attend(query, its.scaling, its.extras)  # type: ignore[no-any-return]


def _turn(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotate heads `[B, T, N, D]` by their positions, in halves (arXiv:2104.09864).

    Does not use `addcmul`, whose rounding depends on where in memory a number is.
    """
    half = x.shape[-1] // 2
    swapped = torch.cat([x[..., half:], x[..., :half]], -1)
    return (x * cosines).add_(swapped.mul_(sines))


def _added(product: nn.Module, x: torch.Tensor, norm: nn.Module | None, hidden: torch.Tensor) -> torch.Tensor:
    return product(x, hidden) if norm is None else hidden + norm(product(x))  # type: ignore[no-any-return]
