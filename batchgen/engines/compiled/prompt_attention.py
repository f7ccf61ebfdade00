"""The compiled attention of a prefill, on tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from batchgen.engines.compiled.prompts import attention, lay_out, queries_of
from batchgen.engines.compiled.tensors import address, name_of
from batchgen.engines.compiled.tile import WIDE
from batchgen.engines.continuous.slot_attention import PLAIN, Extras
from batchgen.engines.continuous.slots import PrefillView

if TYPE_CHECKING:
    from batchgen.engines.continuous.layer import SlotLayer
    from batchgen.engines.fused.block import AttentionPlan
    from batchgen.model.layer_rules import LayerRule

# Nanoseconds of one thread, roughly: per number of keys and values to lay out, and per product of two numbers.
LAYOUT_COST, PRODUCT_COST = 0.5, 0.02


class CompiledPromptAttention:
    """The attention of a prefill to the columns that a layer has just been given."""

    def __init__(self, plan: AttentionPlan) -> None:
        self._plan = plan

    def __call__(self, query: torch.Tensor, layer: SlotLayer) -> torch.Tensor:
        """Take queries `[B, H, T, D]`; return `[B, T, H, D]`."""
        view, plan = layer.pool.view, self._plan
        assert isinstance(view, PrefillView)
        assert layer.prompts is not None
        prefix = (view.prefix.keys[layer.index], view.prefix.values[layer.index]) if view.prefix else None
        laid = lay_out_prompts(*layer.prompts, view.layout.lengths, prefix)
        return attend_prompts(query, laid, layer.pool.rule, plan.extras, plan.scaling)


@dataclass(frozen=True, slots=True, eq=False)
class LaidOut:
    """Keys and values as `lay_out` in `prompts` writes them.

    Each of B rows has P columns of a prefix and lengths[b] of its own, in so many panels.
    """

    keys: torch.Tensor
    values: torch.Tensor
    kv_heads: int
    lengths: torch.Tensor
    before: int
    panels: int


def lay_out_prompts(
    keys: torch.Tensor,
    values: torch.Tensor,
    lengths: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> LaidOut:
    """Lay out left-padded keys and values `[B, Hkv, T, D]` of rows of `lengths` `[B]`, after a prefix `[Hkv, P, D]`."""
    keys, values = (x if x.stride(3) == 1 else x.contiguous() for x in (keys, values))
    rows, kv_heads, columns, size = keys.shape
    before, item = prefix[0].shape[1] if prefix else 0, keys.element_size()
    own = torch.tensor([[x.data_ptr(), *(item * step for step in x.stride()[:3])] for x in (keys, values)])
    shared = torch.tensor([[x.data_ptr(), item * x.stride(0)] for x in prefix or ()])
    panels = -(-(before + columns) // WIDE)
    numbers = rows * kv_heads * panels * WIDE
    laid = LaidOut(
        keys.new_empty(numbers, size), keys.new_empty(numbers, -(-size // WIDE) * WIDE), kv_heads, lengths, before,
        panels,
    )  # fmt: skip
    lay_out(name_of(keys.dtype), size)(
        rows * kv_heads * panels, 2 * WIDE * size * LAYOUT_COST, own.data_ptr(), shared.data_ptr(), lengths.data_ptr(),
        laid.keys.data_ptr(), laid.values.data_ptr(), kv_heads, columns, before, panels,
    )  # fmt: skip
    return laid


def attend_prompts(
    query: torch.Tensor, laid: LaidOut, rule: LayerRule, extras: Extras = PLAIN, scaling: float = 1.0
) -> torch.Tensor:
    """Return the attention `[B, T, H, D]` of left-padded queries `[B, H, T, D]`; pads get 0."""
    query = query.transpose(1, 2)
    query = query if query.stride()[2:] == (query.shape[3], 1) else query.contiguous()  # heads side by side
    rows, columns, heads, size = query.shape
    group, item, has_pads = heads // laid.kv_heads, query.element_size(), int(laid.lengths.min()) < columns
    sinks = None if extras.sinks is None else extras.sinks.float()
    out = (query.new_zeros if has_pads else query.new_empty)(query.shape)
    loop = attention(name_of(query.dtype), size, group, has_cap=extras.softcap is not None, has_sinks=sinks is not None)
    block = queries_of(group)
    loop(
        rows * laid.kv_heads * -(-columns // block), block * group * laid.panels * WIDE * size * PRODUCT_COST,
        query.data_ptr(), item * query.stride(0), item * query.stride(1), laid.keys.data_ptr(), laid.values.data_ptr(),
        laid.lengths.data_ptr(), address(sinks), out.data_ptr(), laid.kv_heads, columns, laid.before, laid.panels,
        rule.window or 0, rule.chunk or 0, scaling, extras.softcap or 0.0,
    )  # fmt: skip
    return out
