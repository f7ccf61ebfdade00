"""Attention of ragged rows. In a decode step in parts: one for each page of a row, one for each prefix that rows share.

Each part has weights and a weighted sum at a scale of its own; a row's parts are brought to a common scale and added
(online softmax, arXiv:1805.02867). Pure functions of tensors: B rows, H heads over Hkv key-value heads, G = H / Hkv, D
head size, U pages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

LOG2_E = math.log2(math.e)
SCORES_BYTES = 64 * 2**20  # of a block of queries, where all scores are computed at once


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """Attention of some rows to some of their columns: the highest score, the sum of exp(score - it), the weighted sum.

    rows `[U]` says whose each is; peak and total `[U, Hkv, G, 1]`, sums `[U, Hkv, G, D]`, all float32.
    """

    rows: torch.Tensor
    peak: torch.Tensor
    total: torch.Tensor
    sums: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Extras:
    """What some families do to scores: a soft bound (Gemma 2), sinks `[H]` that take a part of the weight (gpt-oss)."""

    softcap: float | None = None
    sinks: torch.Tensor | None = None

    def bound(self, scores: torch.Tensor) -> torch.Tensor:
        return scores if self.softcap is None else (scores / self.softcap).tanh_().mul_(self.softcap)


PLAIN = Extras()


def extras_of(kwargs: Mapping[str, Any]) -> Extras:
    """What the arguments of an attention function ask for. Raises NotImplementedError for what is not known here."""
    if kwargs.get("position_bias") is not None:
        raise NotImplementedError("attention with position_bias")
    softcap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    return PLAIN if softcap is None and sinks is None else Extras(softcap, sinks)


def attend_pages(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    row_of_page: torch.Tensor,
    mask: torch.Tensor,
    extras: Extras = PLAIN,
) -> Share:
    """One product over all pages of all rows.

    query `[B, Hkv, G, D]`, keys and values `[U, Hkv, PAGE, D]`, row_of_page `[U]`; mask `[U, PAGE]` is added to the
    scores.
    """
    used, kv_heads, page, _ = keys.shape
    queries = query[row_of_page].flatten(0, 1)  # [U * Hkv, G, D]
    scores = extras.bound(torch.bmm(queries, keys.flatten(0, 1).mT).view(used, kv_heads, -1, page).float())
    scores += mask[:, None, None, :]
    peak = scores.amax(-1, keepdim=True)  # [U, Hkv, G, 1]
    weights = _exp_(scores.sub_(peak))
    total = weights.sum(-1, keepdim=True)
    sums = torch.bmm(weights.to(values.dtype).flatten(0, 1), values.flatten(0, 1))  # [U * Hkv, G, D]
    return Share(row_of_page, peak, total, sums.unflatten(0, (used, kv_heads)).float())  # type: ignore[no-untyped-call]


def attend_prefix(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sharing: list[int],
    mask: torch.Tensor | None = None,
    extras: Extras = PLAIN,
) -> Share:
    """One product for all R rows that share a prefix: query `[B, Hkv, G, D]`, keys and values `[Hkv, P, D]`.

    mask `[R, P]` is added to the scores.
    """
    rows = torch.tensor(sharing, device=query.device)
    kv_heads, group = query.shape[1:3]
    queries = query[rows].transpose(0, 1).flatten(1, 2)  # [Hkv, R * G, D]
    scores = extras.bound(torch.bmm(queries, keys.mT).float())  # [Hkv, R * G, P]
    if mask is not None:
        scores += mask.repeat_interleave(group, 0)
    peak = scores.amax(-1, keepdim=True)
    weights = _exp_(scores.sub_(peak))
    total = weights.sum(-1, keepdim=True)
    sums = torch.bmm(weights.to(values.dtype), values).float()  # [Hkv, R * G, D]

    def by_row(part: torch.Tensor) -> torch.Tensor:
        return part.view(kv_heads, len(sharing), group, -1).transpose(0, 1)

    return Share(rows, by_row(peak), by_row(total), by_row(sums))


def sink_share(sinks: torch.Tensor, like: Share, num_rows: int) -> Share:
    """Sinks `[H]` as a part of every row's attention beside `like`: a score for each head, and no value."""
    kv_heads, group, size = like.sums.shape[1:]
    peak = sinks.float().view(1, kv_heads, group, 1).expand(num_rows, -1, -1, -1)
    no_value = peak.new_zeros(num_rows, kv_heads, group, size)
    return Share(torch.arange(num_rows, device=sinks.device), peak, torch.ones_like(peak), no_value)


def merge(parts: list[Share], rows: int) -> torch.Tensor:
    """The rows' attention `[B, Hkv, G, D]`, from parts that were each scaled by a peak of their own."""
    part = parts[0]
    if len(parts) > 1:
        part = Share(*(torch.cat([getattr(p, name) for p in parts]) for name in ("rows", "peak", "total", "sums")))
    shape = (rows, *part.peak.shape[1:])
    index = part.rows.view(-1, 1, 1, 1).expand_as(part.peak)
    peak = part.peak.new_full(shape, -torch.inf).scatter_reduce_(0, index, part.peak, "amax")  # [B, Hkv, G, 1]
    scale = _exp_(part.peak - peak[part.rows])  # [U, Hkv, G, 1]
    total = part.total.new_zeros(shape).index_add_(0, part.rows, part.total * scale)
    sums = part.sums.new_zeros(rows, *part.sums.shape[1:]).index_add_(0, part.rows, part.sums * scale)
    return sums.div_(total)


def attend_prompts(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    extras: Extras = PLAIN,
) -> torch.Tensor:
    """Attention of T queries a row to S columns, all scores of a block of queries at once: `[B, T, H, Dv]`.

    query `[B, H, T, D]`, keys `[B, Hkv, S, D]` and values `[B, Hkv, S, Dv]`; mask `[B, 1, T, S]` is true where a query
    sees a column, None where it sees all up to its own.
    """
    rows, heads, num_queries, _ = query.shape
    if mask is None:
        mask = torch.ones(num_queries, keys.shape[2], dtype=torch.bool, device=query.device)[None, None]
        mask = mask.tril(keys.shape[2] - num_queries)
    at_once = max(1, SCORES_BYTES // (rows * heads * keys.shape[2] * query.element_size()))
    blocks = [slice(start, start + at_once) for start in range(0, num_queries, at_once)]
    parts = [_attend_block(query[:, :, its], keys, values, mask[:, :, its], scaling, extras) for its in blocks]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _attend_block(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scaling: float, extras: Extras
) -> torch.Tensor:
    rows, heads, num_queries, size = query.shape
    kv_heads = keys.shape[1]
    queries = (query * scaling).reshape(rows, kv_heads, -1, size)  # [B, Hkv, G * T, D]
    scores = extras.bound(queries @ keys.mT).view(rows, heads, num_queries, -1)
    hidden = torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device)
    scores += hidden.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    if extras.sinks is not None:
        sinks = extras.sinks.to(scores.dtype).view(1, heads, 1, 1).expand(rows, -1, num_queries, 1)
        scores = torch.cat([scores, sinks], -1)
    weights = scores.softmax(-1)[..., : keys.shape[2]].reshape(rows, kv_heads, -1, keys.shape[2])
    return (weights @ values).view(rows, heads, num_queries, -1).transpose(1, 2).contiguous()


def _exp_(x: torch.Tensor) -> torch.Tensor:
    """exp in place, as a power of two: on a CPU torch's exp is MKL's, which takes eight times as long to reach 0."""
    return x.mul_(LOG2_E).exp2_()
