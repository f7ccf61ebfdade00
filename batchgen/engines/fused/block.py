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
from batchgen.engines.fused.product import gated


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """How a layer attends: its index in the cache, numbers of query and key heads, their size, scaling and extras."""

    index: int
    queries: int
    keys: int
    size: int
    scaling: float
    extras: Extras


Positions = tuple[torch.Tensor, torch.Tensor] | None  # cosines and sines `[B, T, D]`
# From queries, keys and values `[B, 1, (H + 2 Hkv) D]`, positions and a layer's cache to `[B, 1, H, D]`.
StepAttention = Callable[[torch.Tensor, Positions, Any], torch.Tensor]
PromptAttention = Callable[[torch.Tensor, Any], torch.Tensor]  # from queries `[B, H, T, D]` and the cache's layer


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

    def of_rows(self, given: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cosines and sines of all columns in float32, `[B T, D]`; `[T, D]` if rows have the same."""
        if self._rows is None or self._given is None or self._given[0] is not given[0]:
            tables = [table.flatten(0, 1).float().contiguous() for table in given]
            self._given, self._made, self._rows = given, None, (tables[0], tables[1])
        return self._rows


class HeadTurn(nn.Module):
    """Queries and keys on their way into attention: normed and rotated, as far as a layer does that."""

    def __init__(self, plan: AttentionPlan, rotary: Rotary | None) -> None:
        super().__init__()
        self.plan = plan
        self.rotary = rotary
        self.norms: nn.ModuleList | None = None  # of queries and of keys

    def forward(self, mixed: torch.Tensor, positions: Positions) -> torch.Tensor:
        """Take queries, keys and values `[B, T, H + 2 Hkv, D]`; return queries and keys `[B, T, H + Hkv, D]`."""
        turned = mixed[:, :, : -self.plan.keys]
        if self.norms is not None:
            parts = turned[:, :, : self.plan.queries], turned[:, :, self.plan.queries :]
            turned = torch.cat([norm(part) for norm, part in zip(self.norms, parts, strict=True)], 2)
        if self.rotary is not None and positions is not None:
            turned = _turn(turned, *self.rotary.tables(positions))
        return turned


class Gate(nn.Module):
    """An activation of the first half of `[…, 2 I]` times the second half: `[…, I]`."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, inner: torch.Tensor) -> torch.Tensor:
        return gated(self.activation, inner)


class Block(nn.Module):
    """A decoder layer. Parts that the layer does not have are None."""

    sees_last_only = False  # True for the last layer: only the last column goes on to the MLP

    def __init__(self, plan: AttentionPlan, rotary: Rotary | None) -> None:
        super().__init__()
        self.plan = plan
        self.norm: nn.Module
        self.mixed: nn.Module  # query, key and value projections side by side
        self.heads: nn.Module = HeadTurn(plan, rotary)
        self.attend_in_steps: StepAttention | None = None
        self.attend_in_prefills: PromptAttention | None = None
        self.out: nn.Module
        self.norm_out: nn.Module | None = None
        self.norm_inner: nn.Module
        self.up: nn.Module  # with a gate, the gate and up projections side by side
        self.gate: nn.Module | None = None  # also None if `up` computes it
        self.down: nn.Module
        self.norm_down: nn.Module | None = None
        self.gives_tuple = False

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Take hidden_states `[B, T, E]` and transformers' other arguments; only the cache and positions are used."""
        cache = next(value for value in (*kwargs.values(), *args) if isinstance(value, Cache))
        found = self._attend(self.mixed(self.norm(hidden_states)), cache, kwargs.get("position_embeddings")).flatten(2)
        columns = found.shape[1]
        if self.sees_last_only:
            found, hidden_states = found[:, -1:], hidden_states[:, -1:]
        hidden = _added(self.out, found, self.norm_out, hidden_states)
        inner = self.up(self.norm_inner(hidden))
        if self.gate is not None:
            inner = self.gate(inner)
        hidden = _added(self.down, inner, self.norm_down, hidden)
        hidden = hidden.expand(-1, columns, -1)  # the other columns are never read
        return (hidden,) if self.gives_tuple else hidden

    def _attend(self, mixed: torch.Tensor, cache: Cache, positions: Positions) -> torch.Tensor:
        """Return the attention `[B, T, H, Dv]` of queries, keys and values `[B, T, (H + 2 Hkv) D]`."""
        its = self.plan
        if self.attend_in_steps is not None and cache.layers[its.index].is_stepping:
            return self.attend_in_steps(mixed, positions, cache.layers[its.index])
        mixed = mixed.view(*mixed.shape[:2], its.queries + 2 * its.keys, -1)  # [B, T, H + 2 Hkv, D]
        turned, values = self.heads(mixed, positions).transpose(1, 2), mixed[:, :, -its.keys :].transpose(1, 2)
        layer, _ = cache.update(turned[:, its.queries :], values, its.index)
        query = turned[:, : its.queries]
        if self.attend_in_prefills is not None and not layer.is_stepping:
            return self.attend_in_prefills(query, layer)
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
