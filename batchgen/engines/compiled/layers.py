"""The compiled loops on tensors: norms, the gate of an MLP, and the attention of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from batchgen.engines.compiled.attention import attention
from batchgen.engines.compiled.rows import entry, gate, norm
from batchgen.engines.compiled.threads import in_parts
from batchgen.engines.continuous.memory import PAGE
from batchgen.engines.continuous.slots import SharedPrefix, StepView

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
        self._loop = norm(_name_of(dtype), is_centered=bias is not None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, size = x.contiguous(), x.shape[-1]
        out = torch.empty_like(x)
        given = (x.data_ptr(), self.weight.data_ptr(), _address(self.bias), out.data_ptr())
        in_parts(self._loop, x.numel() // size, size * NORM_COST, given, (size, self.eps))
        return out


class CompiledGate(nn.Module):
    """An activation of the first half of `[…, 2 I]` times the second half: `[…, I]`."""

    def __init__(self, activation: str, dtype: torch.dtype) -> None:
        super().__init__()
        self._loop = gate(_name_of(dtype), activation)

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
        name, extras = _name_of(dtype), plan.extras
        has = {"has_cap": extras.softcap is not None, "has_sinks": extras.sinks is not None}
        self._sinks = None if extras.sinks is None else extras.sinks.detach().float().contiguous()
        self._enter = entry(name, plan.size, is_normed=norms is not None, is_turned=is_turned)
        self._attend = attention(name, plan.size, plan.queries // plan.keys, **has)

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
            mixed.data_ptr(), _address(cosines), _address(sines), *(norm and norm.weight.data_ptr() for norm in norms),
            query.data_ptr(), keys, values, view.page.data_ptr(), view.column.data_ptr(), rows, plan.queries, plan.keys,
            norms[0].eps if norms[0] else 0.0,
        )  # fmt: skip
        num_own = len(view.row_of_page)
        prefixes = _described(view.prefixes, num_own, layer.index) if view.prefixes else None
        given = (
            query.data_ptr(), keys, values, view.mask.data_ptr(), view.order.data_ptr(), view.first.data_ptr(),
            _address(prefixes), _address(self._sinks), found.data_ptr(),
        )  # fmt: skip
        sizes = (plan.keys, num_own, view.times, len(view.prefixes), plan.scaling, plan.extras.softcap or 0.0)
        cost = 2 * PRODUCT_COST * PAGE * len(view.order) / rows * plan.queries * plan.size
        in_parts(self._attend, rows, cost, given, sizes)
        if len(mixed) > rows:
            found[rows:] = found[rows - 1]
        return found


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _described(prefixes: list[SharedPrefix], first: int, index: int) -> torch.Tensor:
    """Return what `attention` reads about prefixes in a layer, `[K, PREFIX_FIELDS]`; their pages begin at `first`."""
    described = []
    for shared in prefixes:
        keys, values = (each[index][:, shared.first :] for each in (shared.prefix.keys, shared.prefix.values))
        mask = (0, 0) if shared.mask is None else (shared.mask.data_ptr(), shared.mask.shape[1])
        described.append((first, shared.num_pages, keys.data_ptr(), values.data_ptr(), shared.prefix.num_tokens, *mask))
        first += shared.num_pages * len(shared.rows)
    return torch.tensor(described, dtype=torch.int64)
