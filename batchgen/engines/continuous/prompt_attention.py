"""Attention of a prefill: each row is laid out from its first real token, and its queries are taken in blocks.

The shape of every product depends on a query's place in its row alone, so what a row gets does not depend on the rows
beside it, on its pads, or on how many of its first tokens were computed before. Pure functions of tensors: B rows, T
columns of the batch, H heads over Hkv key-value heads, G = H / Hkv, D head size.
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
    """From left-padded columns to rows that begin at 0, and back; places count in B * T and B * width.

    own `[B * width]` is where each column of a row comes from, behind its end its last token again; back `[B * T]`, for
    pads the row's first token. `width` is whole pages.
    """

    own: torch.Tensor
    back: torch.Tensor
    width: int

    def from_start(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, H, T, D]` to `[B, width, H, D]`."""
        rows, heads, _, size = x.shape
        return x.transpose(1, 2).flatten(0, 1)[self.own].view(rows, self.width, heads, size)

    def to_columns(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, width, H, D]` to `[B, T, H, D]`."""
        return x.flatten(0, 1)[self.back].view(len(x), -1, *x.shape[2:])


def lay_out(lengths: list[int], num_columns: int, device: torch.device) -> RowLayout:
    """For a batch of so many columns, whose rows end at the last one."""
    width = -(-num_columns // PAGE) * PAGE
    length = torch.tensor(lengths, device=device)[:, None]  # [B, 1]
    first = torch.arange(len(lengths), device=device)[:, None]
    own = first * num_columns + num_columns - length + torch.minimum(torch.arange(width, device=device), length - 1)
    back = first * width + (torch.arange(num_columns, device=device) - num_columns + length).clamp(min=0)
    return RowLayout(own.flatten(), back.flatten(), width)


def attend_prompts(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    window: int | None = None,
    chunk: int | None = None,
    extras: Extras = PLAIN,
) -> torch.Tensor:
    """Attention of rows' last T scaled queries `[B, T, H, D]` to S columns `[B, Hkv, S, D]`: `[B, T, H, Dv]`.

    T and S are whole pages. A query sees the columns up to its own: all, `window` of them, or those of its chunk.
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
    """A page of queries `[B, PAGE, H, D]`, the last of the columns from `start` on."""
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
    """Gives the columns that a query does not see the least score: those behind it, and those that its rule hides."""
    num_columns, device = scores.shape[-1], scores.device
    least = torch.finfo(scores.dtype).min
    queries = torch.arange(num_columns - PAGE, num_columns, device=device)[:, None]  # [PAGE, 1]
    last = torch.arange(num_columns - PAGE, num_columns, device=device)
    scores[..., -PAGE:].masked_fill_(last > queries, least)
    if rule.chunk or (rule.window and rule.window < num_columns):
        first = [rule.first_seen(start + query) - start for query in range(num_columns - PAGE, num_columns)]
        hidden = torch.arange(num_columns, device=device) < torch.tensor(first, device=device)[:, None]  # [PAGE, S]
        scores.masked_fill_(hidden, least)
