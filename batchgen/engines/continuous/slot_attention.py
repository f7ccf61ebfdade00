"""Attention of a decode step: each row's query to its pages, and to the prefixes that rows share.

Every row's weights are relative to its own highest score, and its sums run page by page in the order of its columns, so
they do not depend on other rows, on where its pages are, or on whether its first pages are shared. Pure functions of
tensors: B rows, H heads over Hkv key-value heads, G = H / Hkv, D head size, U pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import embedding_bag

from batchgen.engines.continuous.memory import PAGE
from batchgen.engines.continuous.rowwise import bmm, exp_


@dataclass(frozen=True, slots=True, eq=False)
class Extras:
    """What some families do to scores: a soft cap (Gemma 2), or sinks `[H]` that take part of the weight (gpt-oss)."""

    softcap: float | None = None
    sinks: torch.Tensor | None = None

    def bound(self, scores: torch.Tensor) -> torch.Tensor:
        return scores if self.softcap is None else (scores / self.softcap).tanh_().mul_(self.softcap)


PLAIN = Extras()


def extras_of(kwargs: Mapping[str, Any]) -> Extras:
    """Return what an attention function's arguments ask for. Raises `NotImplementedError` for unsupported ones."""
    if kwargs.get("position_bias") is not None:
        raise NotImplementedError("attention with position_bias")
    softcap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    return PLAIN if softcap is None and sinks is None else Extras(softcap, sinks)


@dataclass(frozen=True, slots=True, eq=False)
class Pages:
    """The pages of all rows: keys and values `[U, Hkv, PAGE, D]`, not copied.

    Each page counts Q (`times`) times, once for each row that reads it. row_of_page `[U * Q]` is that row; mask `[U *
    Q, PAGE]` is added to the scores. order `[N]` are the pages that rows read: those of row b, in the order of its
    columns, from first[b] to first[b + 1], `[B + 1]`. Pages of prefixes are numbered after these U * Q, row by row.
    """

    keys: torch.Tensor
    values: torch.Tensor
    row_of_page: torch.Tensor
    mask: torch.Tensor
    order: torch.Tensor
    first: torch.Tensor
    times: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class PrefixPages:
    """Columns that rows `[R]` share: keys and values `[Hkv, P, D]`, P whole pages; mask `[R, P]`, if any, is added."""

    keys: torch.Tensor
    values: torch.Tensor
    rows: torch.Tensor
    mask: torch.Tensor | None = None

    @property
    def pages(self) -> list[slice]:
        return [slice(start, start + PAGE) for start in range(0, self.keys.shape[1], PAGE)]


def attend(
    query: torch.Tensor,
    own: Pages,
    prefixes: list[PrefixPages] | None = None,
    extras: Extras = PLAIN,
    scaling: float = 1.0,
) -> torch.Tensor:
    """Return the attention of one query per row, `[B, Hkv, G, D]`, to its prefix and own pages: `[B, Hkv, G, Dv]`.

    Scaling is part of the exponential, unless something else is done to the scores.
    """
    prefixes = prefixes or []
    if extras is not PLAIN:
        query, scaling = query * scaling, 1.0
    scores = _scores_of_pages(query, own, extras)  # [U * Q, Hkv, G, PAGE]
    shared = [_scores_of_prefix(query, prefix, extras) for prefix in prefixes]  # [R, Hkv, G, P]
    sinks = None if extras.sinks is None else extras.sinks.float().view(1, *query.shape[1:3], 1)
    peak = _peaks(query, own, scores, prefixes, shared, sinks)  # [B, Hkv, G, 1]
    parts = [_parts_of_pages(exp_(scores.sub_(peak.index_select(0, own.row_of_page)), scaling), own)]
    for prefix, its in zip(prefixes, shared, strict=True):
        parts.append(_parts_of_prefix(exp_(its.sub_(peak.index_select(0, prefix.rows)), scaling), prefix))
    # `order` gives the order of summation: a row's sums begin with its first column.
    table = torch.cat(parts) if prefixes else parts[0]  # [U * Q + …, Hkv, G, Dv + 1]
    sums = embedding_bag(own.order, table.flatten(1), own.first, mode="sum", include_last_offset=True).view(
        len(query), *table.shape[1:]
    )
    total = sums[..., -1:]
    return sums[..., :-1] / (total if sinks is None else total + exp_(sinks - peak))


def _scores_of_pages(query: torch.Tensor, own: Pages, extras: Extras) -> torch.Tensor:
    """Return the scores of all rows' pages in float32, by one product over all pages."""
    queries = query.index_select(0, own.row_of_page)  # [U * Q, Hkv, G, D]
    products = _by_page(queries, own.keys.mT, own.times)
    scores = products if extras.softcap is None else extras.bound(products.float())
    return torch.add(scores, own.mask[:, None, None, :])


def _scores_of_prefix(query: torch.Tensor, prefix: PrefixPages, extras: Extras) -> torch.Tensor:
    queries = query.index_select(0, prefix.rows)  # [R, Hkv, G, D]
    products = [_by_row(queries, prefix.keys[:, page].mT) for page in prefix.pages]
    scores = extras.bound(torch.cat(products, -1).float())  # [R, Hkv, G, P]
    return scores if prefix.mask is None else scores.add_(prefix.mask[:, None, None, :])


def _parts_of_pages(weights: torch.Tensor, own: Pages) -> torch.Tensor:
    """Multiply weights `[U * Q, Hkv, G, PAGE]` with each page's values; append the weights' total: `[…, Dv + 1]`."""
    sums = _by_page(weights.to(own.values.dtype), own.values, own.times)
    return torch.cat([sums, weights.sum(-1, keepdim=True)], -1)


def _parts_of_prefix(weights: torch.Tensor, prefix: PrefixPages) -> torch.Tensor:
    """Do the same for weights `[R, Hkv, G, P]` of a prefix, per row and page: `[R * P / PAGE, Hkv, G, Dv + 1]`."""
    parts = []
    for page in prefix.pages:
        its = weights[..., page]
        sums = _by_row(its.to(prefix.values.dtype), prefix.values[:, page])
        parts.append(torch.cat([sums, its.sum(-1, keepdim=True)], -1))
    return torch.stack(parts, 1).flatten(0, 1)


def _peaks(
    query: torch.Tensor,
    own: Pages,
    scores: torch.Tensor,
    prefixes: list[PrefixPages],
    shared: list[torch.Tensor],
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Return each row's highest score `[B, Hkv, G, 1]`."""
    peaks = scores.amax(-1, keepdim=True)  # [U * Q, Hkv, G, 1]
    index = own.row_of_page.view(-1, 1, 1, 1).expand_as(peaks)
    lowest = scores.new_full((*query.shape[:3], 1), -torch.inf)
    peak = lowest.scatter_reduce_(0, index, peaks, "amax")
    for prefix, its in zip(prefixes, shared, strict=True):
        peak[prefix.rows] = torch.maximum(peak[prefix.rows], its.amax(-1, keepdim=True))
    return peak if sinks is None else torch.maximum(peak, sinks)


def _by_page(left: torch.Tensor, right: torch.Tensor, times: int) -> torch.Tensor:
    """Multiply `[U * Q, Hkv, G, K]` with the contents of each page, `[U, Hkv, K, N]`: `[U * Q, Hkv, G, N]`.

    Q is `times`.

    All queries of a page are multiplied in one product per head if that gives the same bits.
    """
    pages = right.flatten(0, 1)  # [U * Hkv, K, N]
    if times == 1:
        return bmm(left.flatten(0, 1), pages).view(*left.shape[:3], -1)
    kv_heads, group, inner = left.shape[1:]
    queries = left.view(-1, times, kv_heads, group, inner)  # [U, Q, Hkv, G, K]
    if agree(left.dtype, left.device.type, group, inner, right.shape[3]):
        whole = queries.transpose(1, 2).reshape(len(pages), times * group, inner)  # [U * Hkv, Q * G, K]
        products = bmm(whole, pages).view(len(queries), kv_heads, times, group, -1).transpose(1, 2)
    else:
        each = [bmm(queries[:, nth].flatten(0, 1), pages) for nth in range(times)]
        products = torch.stack(each, 1).view(len(queries), kv_heads, times, group, -1).transpose(1, 2)
    return products.reshape(*left.shape[:3], -1)


def _by_row(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Multiply rows `[R, Hkv, G, K]` with what they share, `[Hkv, K, N]`: `[R, Hkv, G, N]`, each with its own bits.

    All rows are multiplied in one product per head if that gives the same bits, else each row in its own product.
    """
    if agree(left.dtype, left.device.type, left.shape[2], left.shape[3], right.shape[2]):
        return _together(left, right)
    return _apart(left, right)


def _together(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    rows, kv_heads, group, _ = left.shape
    products = bmm(left.transpose(0, 1).flatten(1, 2), right)  # [Hkv, R * G, N]
    return products.view(kv_heads, rows, group, -1).transpose(0, 1)


def _apart(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    heads = [bmm(left[:, head], right[head].expand(len(left), -1, -1)) for head in range(len(right))]
    return torch.stack(heads, 1)


@lru_cache
def agree(dtype: torch.dtype, device_type: str, group: int, inner: int, outer: int) -> bool:
    """Whether products `[G, K] x [K, N]` have the same bits however many rows share one product.

    In float32 MKL sums in a different order below four rows.
    """
    if device_type != "cpu":
        return True
    random = torch.Generator().manual_seed(0)
    left = torch.randn(64, 2, group, inner, generator=random).to(dtype)
    right = torch.randn(2, inner, outer, generator=random).to(dtype)
    alone = _apart(left, right)
    return all(torch.equal(_together(left[:rows], right), alone[:rows]) for rows in (1, 2, 3, 5, 16, 64))
