"""The compiled loops on tensors: norms, the gate of an MLP, and the attention of a step."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import nn

from batchgen.engines.compiled.attention import attention
from batchgen.engines.compiled.rows import entry, gate, norm
from batchgen.engines.compiled.threads import in_parts
from batchgen.engines.continuous.memory import PAGE
from batchgen.engines.continuous.slot_attention import PLAIN, Extras, Pages, PrefixPages
from batchgen.engines.continuous.slots import StepView

if TYPE_CHECKING:
    from batchgen.engines.continuous.layer import SlotLayer
    from batchgen.engines.fused.block import AttentionPlan

# Nanoseconds of one thread, roughly, to decide how many threads to use: per number of a norm and of a gate, and per
# product of two numbers in attention.
NORM_COST, GATE_COST, PRODUCT_COST = 0.2, 0.6, 0.06


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
        given = (x.data_ptr(), self.weight.data_ptr(), address(self.bias), out.data_ptr())
        in_parts(self._loop, x.numel() // size, size * NORM_COST, given, (size, self.eps))
        return out


class CompiledGate(nn.Module):
    """An activation of the first half of `[…, 2 I]` times the second half: `[…, I]`."""

    def __init__(self, activation: str, dtype: torch.dtype) -> None:
        super().__init__()
        self._loop = gate(name_of(dtype), activation)

    def forward(self, inner: torch.Tensor) -> torch.Tensor:
        inner, size = inner.contiguous(), inner.shape[-1] // 2
        out = inner.new_empty(*inner.shape[:-1], size)
        in_parts(self._loop, out.numel() // size, size * GATE_COST, (inner.data_ptr(), out.data_ptr()), (size,))
        return out


class CompiledAttention:
    """The attention of a step, from one product of queries, keys and values to the heads' results."""

    def __init__(
        self,
        plan: AttentionPlan,
        norms: tuple[CompiledNorm, CompiledNorm] | None,
        *,
        is_turned: bool,
        dtype: torch.dtype,
    ) -> None:
        """Take the norms of queries and keys, if they have any."""
        self.plan = plan
        self.norms = norms
        self._enter = entry(name_of(dtype), plan.size, is_normed=norms is not None, is_turned=is_turned)

    def __call__(
        self, mixed: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor] | None, layer: SlotLayer
    ) -> torch.Tensor:
        """Write the keys and values in `mixed` `[B, 1, (H + 2 Hkv) D]` to their pages; return `[B, 1, H, D]`.

        `turn` are cosines and sines `[B, D]`. Rows beyond those of the view are fillers, and get the last row's result.
        """
        view, plan = layer.pool.view, self.plan
        assert isinstance(view, StepView)
        mixed, rows = mixed.contiguous(), len(view.page)
        query = mixed.new_empty(len(mixed), 1, plan.queries, plan.size)
        found = torch.empty_like(query)
        keys, values = layer.keys.data_ptr(), layer.values.data_ptr()
        cosines, sines = turn or (None, None)
        norms = self.norms or (None, None)
        self._enter(
            mixed.data_ptr(), address(cosines), address(sines), *(norm and norm.weight.data_ptr() for norm in norms),
            query.data_ptr(), keys, values, view.page.data_ptr(), view.column.data_ptr(), rows, plan.queries, plan.keys,
            norms[0].eps if norms[0] else 0.0,
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
        name_of(query.dtype), size, group, has_cap=extras.softcap is not None, has_sinks=extras.sinks is not None
    )
    num_own = len(own.row_of_page)
    sinks = None if extras.sinks is None else extras.sinks.float()
    described = _described(prefixes, num_own) if prefixes else None
    given = (
        query.data_ptr(), own.keys.data_ptr(), own.values.data_ptr(), own.mask.data_ptr(), own.order.data_ptr(),
        own.first.data_ptr(), address(described), address(sinks), out.data_ptr(),
    )  # fmt: skip
    sizes = (kv_heads, num_own, own.times, len(prefixes), scaling, extras.softcap or 0.0)
    cost = 2 * PRODUCT_COST * PAGE * len(own.order) / rows * kv_heads * group * size
    in_parts(loop, rows, cost, given, sizes)
    return out


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


@lru_cache
def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
