"""Attention of a prefill: each row is laid out from its first real token, and its queries are processed in blocks.

The shape of every product depends only on a query's position in its row, so a row's result does not depend on the other
rows, on its pads, or on how many of its first tokens were computed before. Pure functions of tensors: B rows, T columns
of the batch, H heads over Hkv key-value heads, G = H / Hkv, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from batchgen.engines.continuous.memory import PAGE
from batchgen.engines.continuous.rowwise import bmm
from batchgen.engines.continuous.slot_attention import PLAIN, Extras
from batchgen.model.layer_rules import LayerRule


@dataclass(frozen=True, slots=True, eq=False)
class RowLayout:
    """Indices from left-padded columns to rows that begin at 0, and back, into flattened B * T and B * width places.

    own `[B * width]` is where each column of a row comes from; after the row's end it repeats its last token. back `[B
    * T]` is the way back; for pads it is the row's first token. `width` is a whole number of pages.
    """

    own: torch.Tensor
    back: torch.Tensor
    width: int
    lengths: torch.Tensor

    def from_start(self, x: torch.Tensor) -> torch.Tensor:
        """Gather `[B, H, T, D]` into `[B, width, H, D]`."""
        rows, heads, _, size = x.shape
        return x.transpose(1, 2).flatten(0, 1)[self.own].view(rows, self.width, heads, size)

    def to_columns(self, x: torch.Tensor) -> torch.Tensor:
        """Gather `[B, width, H, D]` into `[B, T, H, D]`."""
        return x.flatten(0, 1)[self.back].view(len(x), -1, *x.shape[2:])


def lay_out(lengths: list[int], num_columns: int, device: torch.device) -> RowLayout:
    """Return the layout of a batch of `num_columns` columns whose rows end at the last one."""
    width = -(-num_columns // PAGE) * PAGE
    its_lengths = torch.tensor(lengths, device=device)
    length = its_lengths[:, None]  # [B, 1]
    first = torch.arange(len(lengths), device=device)[:, None]
    own = first * num_columns + num_columns - length + torch.minimum(torch.arange(width, device=device), length - 1)
    back = first * width + (torch.arange(num_columns, device=device) - num_columns + length).clamp(min=0)
    return RowLayout(own.flatten(), back.flatten(), width, its_lengths)


def attend_prompts(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    window: int | None = None,
    chunk: int | None = None,
    extras: Extras = PLAIN,
) -> torch.Tensor:
    """Return attention of rows' last T scaled queries `[B, T, H, D]` to S columns `[B, Hkv, S, D]`: `[B, T, H, Dv]`.

    T and S are whole pages. A query sees the columns up to its own: all of them, the last `window`, or those of its
    chunk.
    """
    rule = LayerRule(window=window, chunk=chunk)
    num_before = keys.shape[2] - query.shape[1]
    found = query.new_empty(*query.shape[:3], values.shape[3])
    for first in range(0, query.shape[1], PAGE):
        end = num_before + first + PAGE
        start = rule.first_seen(end - PAGE) // PAGE * PAGE
        seen = slice(start, end)
        found[:, first : first + PAGE] = _attend_block(
            query[:, first : first + PAGE], keys[:, :, seen], values[:, :, seen], rule, start, extras
        )
    return found


def _attend_block(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: LayerRule, start: int, extras: Extras
) -> torch.Tensor:
    """Attend with a page of queries `[B, PAGE, H, D]`, the last of the columns from `start` on."""
    rows, _, heads, _ = query.shape
    kv_heads, num_columns = keys.shape[1:3]
    queries = query.transpose(1, 2).reshape(rows * kv_heads, -1, query.shape[3])  # [B * Hkv, G * PAGE, D]
    products = bmm(queries, keys.flatten(0, 1).mT)  # [B * Hkv, G * PAGE, S]
    scores = extras.bound(products).view(rows, heads, PAGE, num_columns)
    _hide(scores, rule, start)
    if extras.sinks is not None:
        sinks = extras.sinks.to(scores.dtype).view(1, heads, 1, 1).expand(rows, -1, PAGE, 1)
        weights = torch.cat([scores, sinks], -1).softmax(-1)[..., :num_columns]
    else:
        weights = scores.softmax(-1)
    sums = bmm(weights.reshape(rows * kv_heads, -1, num_columns), values.flatten(0, 1))  # [B * Hkv, G * PAGE, Dv]
    return sums.view(rows, heads, PAGE, -1).transpose(1, 2)


def _hide(scores: torch.Tensor, rule: LayerRule, start: int) -> None:
    """Give the lowest score to columns that a query does not see: later ones, and those that its rule hides."""
    num_columns, device = scores.shape[-1], scores.device
    least = torch.finfo(scores.dtype).min
    queries = torch.arange(num_columns - PAGE, num_columns, device=device)[:, None]  # [PAGE, 1]
    last = torch.arange(num_columns - PAGE, num_columns, device=device)
    scores[..., -PAGE:].masked_fill_(last > queries, least)
    if rule.chunk or (rule.window and rule.window < num_columns):
        first = [rule.first_seen(start + query) - start for query in range(num_columns - PAGE, num_columns)]
        hidden = torch.arange(num_columns, device=device) < torch.tensor(first, device=device)[:, None]  # [PAGE, S]
        scores.masked_fill_(hidden, least)
