"""The compiled loops on tensors: norms, the gate of an MLP, and the attention of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from batchgen.engines.compiled.attention import attention
from batchgen.engines.compiled.dots import REGISTER
from batchgen.engines.compiled.rows import entry, gate, norm, turn
from batchgen.engines.compiled.tensors import address, has_tiles, name_of
from batchgen.engines.compiled.writer import LANES
from batchgen.engines.continuous.memory import PAGE
from batchgen.engines.continuous.slot_attention import PLAIN, Extras, Pages, PrefixPages
from batchgen.engines.continuous.slots import StepView

if TYPE_CHECKING:
    from batchgen.engines.continuous.layer import SlotLayer
    from batchgen.engines.fused.block import AttentionPlan, Positions, Rotary

# Nanoseconds of one thread, roughly, to decide whether threads share the rows: per number of a norm, of a gate and on
# the way into the cache, and per product of two numbers in attention.
NORM_COST, GATE_COST, ENTRY_COST, PRODUCT_COST = 0.2, 0.6, 0.4, 0.06


class CompiledNorm(nn.Module):
    """RMS norm (arXiv:1910.07467) of `[…, E]`; with a bias, layer norm (arXiv:1607.06450)."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, dtype: torch.dtype) -> None:
        """Take weight and bias `[E]`."""
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", weight.detach().float().contiguous(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().float().contiguous(), persistent=False)
        self._loop = norm(name_of(dtype), is_centered=bias is not None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, size = x.contiguous(), x.shape[-1]
        out = torch.empty_like(x)
        rows, given = x.numel() // size, (x.data_ptr(), self.weight.data_ptr(), address(self.bias), out.data_ptr())
        self._loop(rows, size * NORM_COST, *given, size, self.eps)
        return out


class CompiledGate(nn.Module):
    """An activation of the first half of `[…, 2 I]` times the second half: `[…, I]`."""

    def __init__(self, activation: str, dtype: torch.dtype) -> None:
        super().__init__()
        self._loop = gate(name_of(dtype), activation)

    def forward(self, inner: torch.Tensor) -> torch.Tensor:
        inner, size = inner.contiguous(), inner.shape[-1] // 2
        out = inner.new_empty(*inner.shape[:-1], size)
        self._loop(out.numel() // size, size * GATE_COST, inner.data_ptr(), out.data_ptr(), size)
        return out


class CompiledHeadTurn(nn.Module):
    """Queries and keys on their way into attention: normed and rotated, as far as a layer does that."""

    def __init__(
        self, plan: AttentionPlan, norms: Sequence[CompiledNorm], rotary: Rotary | None, dtype: torch.dtype
    ) -> None:
        """Take the norms of queries and keys, if they have any."""
        super().__init__()
        self.plan, self.norms, self.rotary = plan, list(norms), rotary
        self.eps = norms[0].eps if norms else 0.0
        self._turn = turn(name_of(dtype), plan.size, is_normed=bool(norms), is_turned=rotary is not None)

    def forward(self, mixed: torch.Tensor, positions: Positions) -> torch.Tensor:
        """Take queries, keys and values `[B, T, H + 2 Hkv, D]`; return queries and keys `[B, T, H + Hkv, D]`."""
        plan, mixed = self.plan, mixed.contiguous()
        out = mixed.new_empty(*mixed.shape[:2], plan.queries + plan.keys, plan.size)
        cost = (plan.queries + plan.keys) * plan.size * ENTRY_COST
        tables, num_tables = self.tables(positions)
        self._turn(
            len(mixed) * mixed.shape[1], cost, mixed.data_ptr(), *tables, out.data_ptr(), num_tables, plan.queries,
            plan.keys, self.eps,
        )  # fmt: skip
        return out

    def tables(self, positions: Positions) -> tuple[list[int | None], int]:
        """Return where cosines, sines and the weights of norms are; and for how many columns there are cosines."""
        tables = self.rotary.of_rows(positions) if self.rotary is not None and positions is not None else (None, None)
        weights: tuple[torch.Tensor | None, ...] = tuple(norm.weight for norm in self.norms) or (None, None)
        return [address(tensor) for tensor in (*tables, *weights)], 1 if tables[0] is None else len(tables[0])


class CompiledAttention:
    """The attention of a step, from one product of queries, keys and values to the heads' results."""

    def __init__(self, heads: CompiledHeadTurn, dtype: torch.dtype) -> None:
        """Take what the layer does to queries and keys."""
        self._heads = heads
        self._enter = entry(
            name_of(dtype), heads.plan.size, is_normed=bool(heads.norms), is_turned=heads.rotary is not None
        )

    def __call__(self, mixed: torch.Tensor, positions: Positions, layer: SlotLayer) -> torch.Tensor:
        """Write the keys and values in `mixed` `[B, 1, (H + 2 Hkv) D]` to their pages; return `[B, 1, H, D]`.

        Rows beyond those of the view are fillers, and get the last row's result.
        """
        view, plan = layer.pool.view, self._heads.plan
        assert isinstance(view, StepView)
        mixed, rows = mixed.contiguous(), len(view.page)
        query = mixed.new_empty(len(mixed), 1, plan.queries, plan.size)
        found = torch.empty_like(query)
        tables, num_tables = self._heads.tables(positions)
        self._enter(
            rows, mixed.shape[-1] * ENTRY_COST, mixed.data_ptr(), *tables, query.data_ptr(), layer.keys.data_ptr(),
            layer.values.data_ptr(), view.page.data_ptr(), view.column.data_ptr(), num_tables, plan.queries, plan.keys,
            self._heads.eps,
        )  # fmt: skip
        by_head = query[:rows].view(rows, plan.keys, -1, plan.size)
        attend(by_head, *layer.step_pages(view), plan.extras, plan.scaling, found)
        if len(mixed) > rows:
            found[rows:] = found[rows - 1]
        return found


def attend(
    query: torch.Tensor,
    own: Pages,
    prefixes: list[PrefixPages] | None = None,
    extras: Extras = PLAIN,
    scaling: float = 1.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Do what `slot_attention.attend` does, `[B, Hkv, G, D]` -> `[B, Hkv, G, D]`, rounded to the dtype of `query`."""
    prefixes = prefixes or []
    rows, kv_heads, group, size = query.shape
    out = torch.empty_like(query) if out is None else out
    loop = attention(
        name_of(query.dtype), size, group, has_cap=extras.softcap is not None, has_sinks=extras.sinks is not None,
        in_registers=scores_in_registers(query.dtype, size) and all(x.keys.shape[1] % LANES == 0 for x in prefixes),
    )  # fmt: skip
    num_own = len(own.row_of_page)
    sinks = None if extras.sinks is None else extras.sinks.float()
    described = _described(prefixes, num_own) if prefixes else None
    given = (
        query.data_ptr(), own.keys.data_ptr(), own.values.data_ptr(), own.mask.data_ptr(), own.order.data_ptr(),
        own.first.data_ptr(), address(described), address(sinks), out.data_ptr(),
    )  # fmt: skip
    cost = 2 * PRODUCT_COST * PAGE * len(own.order) / rows * kv_heads * group * size
    loop(rows, cost, *given, kv_heads, num_own, own.times, len(prefixes), scaling, extras.softcap or 0.0)
    return out


def scores_in_registers(dtype: torch.dtype, head_size: int) -> bool:
    """Whether `dots` can multiply heads `[D]` on this processor."""
    return head_size * dtype.itemsize % REGISTER == 0 and has_tiles(name_of(dtype))


def _described(prefixes: list[PrefixPages], first: int) -> torch.Tensor:
    """Return what the loop reads about prefixes, `[K, PREFIX_FIELDS]`; their pages are numbered from `first` on."""
    described = []
    for prefix in prefixes:
        keys, values, num_pages = prefix.keys, prefix.values, len(prefix.pages)
        length = keys.stride(0) // keys.shape[2]  # of the whole prefix
        mask = (0, 0) if prefix.mask is None else (prefix.mask.data_ptr(), prefix.mask.stride(0))
        described.append((first, num_pages, keys.data_ptr(), values.data_ptr(), length, keys.shape[1], *mask))
        first += num_pages * len(prefix.rows)
    return torch.tensor(described, dtype=torch.int64)
