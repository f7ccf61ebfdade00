"""Keys and values that are kept compressed (multi-head latent attention, DeepSeek-V2, arXiv:2405.04434).

A column is a latent `[R]` and a rotary key `[Dr]` for all heads; a family's `expand_kv` computes keys and values from
them. A step does not expand them: since `expand_kv` is linear, it projects the query to the latents' space instead, and
the weighted sum of latents to the values' space.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from batchgen.engines.continuous.layer import SlotLayer
from batchgen.engines.continuous.row_counts import in_pieces, kept_counts
from batchgen.engines.continuous.slot_attention import PLAIN, Extras


def keep_latents(network: nn.Module, *, is_exact: bool = True) -> None:
    """Let a network's layers take a slot layer where they would otherwise expand all of its columns.

    With `is_exact`, a row's products have the same bits whatever other rows are in the batch.
    """
    for module in network.modules():
        if hasattr(type(module), "expand_kv"):
            module.expand_kv = Expansion(module, is_exact)  # type: ignore[assignment]


class HeadProduct:
    """One matrix per head, `[H, I, O]`: maps rows `[B, H, I]` to `[B, H, O]`."""

    def __init__(self, matrices: torch.Tensor, is_exact: bool) -> None:
        self._matrices = matrices
        heads, inputs, outputs = matrices.shape
        sizes = heads * inputs, heads * outputs
        self._counts = kept_counts(self._product, f"{heads} heads", *sizes, matrices.dtype) if is_exact else None

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        flat = rows.flatten(1)  # [B, H * I]
        found = in_pieces(self._product, self._counts, flat) if self._counts else self._product(flat)
        return found.view(*rows.shape[:2], -1)

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        by_head = rows.view(len(rows), len(self._matrices), -1).transpose(0, 1)  # [H, B, I]
        return torch.bmm(by_head, self._matrices).transpose(0, 1).flatten(1)


@dataclass(frozen=True, slots=True)
class Expanded:
    """A layer's `expand_kv` as matrices: from queries to latents and rotary keys, and from latents to values."""

    keys: HeadProduct  # [H, D, R]
    rotary: HeadProduct  # [H, D, Dr]
    values: HeadProduct  # [H, R, Dv]


class Expansion:
    """Replaces one layer's `expand_kv`."""

    def __init__(self, module: nn.Module, is_exact: bool) -> None:
        self._module = weakref.proxy(module)  # a proxy, because the module holds this object
        self._is_exact = is_exact
        self._expand = type(module).expand_kv  # type: ignore[attr-defined]
        self._matrices: Expanded | None = None

    def __call__(self, latents: Any, rotary: Any) -> tuple[Any, Any]:
        """Return keys `[B, H, T, D]` and values `[B, H, T, Dv]` of tensors.

        Of a slot layer, what attends to it, twice.
        """
        if isinstance(latents, SlotLayer):
            attends: Any = LatentPrompts(latents, self.expanded)
            if latents.is_stepping:
                attends = LatentStep(latents, self._as_matrices(latents))
            return attends, attends
        return self.expanded(latents, rotary)

    def expanded(self, latents: torch.Tensor, rotary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._expand(self._module, latents, rotary)  # type: ignore[no-any-return]

    def _as_matrices(self, layer: SlotLayer) -> Expanded:
        if self._matrices is None:
            latents, rotary = (torch.eye(of.shape[-1], dtype=of.dtype)[None, None] for of in (layer.keys, layer.values))
            latents, rotary = latents.to(layer.keys.device), rotary.to(layer.keys.device)
            none, zero = torch.zeros_like(latents), rotary.new_zeros(1, 1, latents.shape[2], rotary.shape[3])
            if any(bool(of.any()) for of in self._expand(self._module, none, zero)):
                raise NotImplementedError("latents with a bias")
            keys, values = self._expand(self._module, latents, zero)  # [1, H, R, D], [1, H, R, Dv]
            rotary_keys, _ = self._expand(self._module, none[:, :, : rotary.shape[2]], rotary)  # [1, H, Dr, D]
            its = (keys[0].mT, rotary_keys[0].mT, values[0])
            self._matrices = Expanded(*(HeadProduct(matrix.contiguous(), self._is_exact) for matrix in its))
        return self._matrices


@dataclass(frozen=True, slots=True)
class LatentColumns:
    """What attention gets instead of keys and values: the slot layer that holds the latents."""

    layer: SlotLayer

    @property
    def window(self) -> int | None:
        return self.layer.window

    @property
    def index(self) -> int:
        return self.layer.index


@dataclass(frozen=True, slots=True)
class LatentPrompts(LatentColumns):
    """The latents of a prefill: keys and values are expanded from them."""

    expand: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

    def attend(self, query: torch.Tensor, scaling: float, extras: Extras = PLAIN) -> torch.Tensor:
        """Return the attention of queries `[B, H, T, D]`: `[B, T, H, Dv]`."""
        return self.layer.attend(query, scaling, extras, of=self.expand)


@dataclass(frozen=True, slots=True)
class LatentStep(LatentColumns):
    """The latents of a step: the query is projected to the latents' space."""

    matrices: Expanded

    def attend(self, query: torch.Tensor, scaling: float, extras: Extras = PLAIN) -> torch.Tensor:
        """Return the attention of one query per row, `[B, H, 1, D]`: `[B, 1, H, Dv]`."""
        its = self.matrices
        heads = query[:, :, 0]  # [B, H, D]
        query = torch.cat([its.keys(heads), its.rotary(heads)], -1)  # [B, H, R + Dr]
        sums = self.layer.attend(query[:, :, None], scaling, extras, of=_as_one_head)  # [B, 1, H, R]
        return its.values(sums[:, 0])[:, None]


def _as_one_head(latents: torch.Tensor, rotary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([latents, rotary], -1), latents
