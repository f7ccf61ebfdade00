"""What a query attends to: scores, masked scores and weights of a forward pass, and weights without the mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from batchgen.errors import ModelError, UsageError
from batchgen.model import Model
from batchgen.proof.inspector.batch import Inspection
from batchgen.proof.inspector.heads import Heads, check_heads
from batchgen.proof.inspector.watch import Seen, watch_attention
from batchgen.records import RowId


@dataclass(frozen=True, slots=True)
class QueryAttention:
    """What one query of one row attends to; every list has one entry for each of its T key columns.

    `scores` are before the mask, `masked_scores` after it; a mean over heads has neither, because the softmax of mean
    scores is not the mean of the softmaxes. `weights_without_mask` is the softmax of the same scores with padding
    visible, still causal.
    """

    id: RowId | None
    query: int
    attention_mask: list[int]
    scores: list[float] | None
    masked_scores: list[float] | None
    weights: list[float]
    weights_without_mask: list[float]

    @property
    def is_pad(self) -> bool:
        return not self.attention_mask[self.query]

    @property
    def pad_weight(self) -> float:
        return self._on_pads(self.weights)

    @property
    def pad_weight_without_mask(self) -> float:
        return self._on_pads(self.weights_without_mask)

    def _on_pads(self, weights: list[float]) -> float:
        return sum(weight for weight, real in zip(weights, self.attention_mask, strict=True) if not real)

    def to_dict(self) -> dict[str, Any]:
        names = ("id", "query", "scores", "masked_scores", "weights", "weights_without_mask")
        return {
            **{name: getattr(self, name) for name in names},
            "pad_weight": self.pad_weight,
            "pad_weight_without_mask": self.pad_weight_without_mask,
        }


@dataclass(slots=True)
class _Sums:
    """The query's weights with and without the mask, summed over heads and layers, and the scores of a single head."""

    number: int = 0
    weights: list[torch.Tensor] = field(default_factory=list)  # [B, T] each
    unmasked: list[torch.Tensor] = field(default_factory=list)
    scores: torch.Tensor | None = None  # [B, T]
    masked: torch.Tensor | None = None


def inspect_attention(model: Model, inspection: Inspection, heads: Heads, query: int = -1) -> list[QueryAttention]:
    """Each row's attention for the query at column `query` (negative: from the right), in one forward pass.

    Raises `UsageError` if there is no such column, layer or head, `ModelError` if the attention cannot be watched.
    """
    assert inspection.batch is not None
    columns = inspection.num_columns
    if not -columns <= query < columns:
        raise UsageError(f"--query {query}: the batch has columns 0 to {columns - 1} (or -1 to {-columns})")
    config = model.checkpoint.config.get_text_config()
    num_heads = getattr(config, "num_attention_heads", None)
    if not isinstance(num_heads, int):  # a recurrent model, or one with a number per layer
        raise ModelError(
            f"the attention of {model.checkpoint.name} cannot be shown: a {config.model_type} has no heads"
        )
    check_heads(heads, config.num_hidden_layers, num_heads)
    sums = _Sums()
    is_pad = inspection.batch.attention_mask == 0  # [B, T]
    place = query % columns
    watch_attention(model, inspection.batch, lambda seen: _add(sums, seen, heads, place, is_pad.to(seen.scores.device)))
    if not sums.number:
        raise UsageError(
            f"--attention: {heads} cannot be shown, because it adds no mask to scores: try mean, or another layer"
        )
    return [_query_attention(inspection, row, place, sums) for row in range(len(inspection.rows))]


def _add(sums: _Sums, seen: Seen, heads: Heads, query: int, is_pad: torch.Tensor) -> None:
    if heads.layer not in (None, seen.layer):
        return
    chosen = slice(None) if heads.head is None else slice(heads.head, heads.head + 1)
    weights = seen.weights[:, chosen, query].float()  # [B, H, T]
    unmasked = without_pad_mask(seen, is_pad)[:, chosen, query].softmax(-1)
    sums.number += weights.shape[1]
    sums.weights.append(weights.sum(1).cpu())
    sums.unmasked.append(unmasked.sum(1).cpu())
    if heads.is_one:
        sums.scores = seen.scores[:, heads.head, query].float().cpu()  # [B, T]
        sums.masked = (seen.scores + seen.mask)[:, heads.head, query].float().cpu()


def without_pad_mask(seen: Seen, is_pad: torch.Tensor) -> torch.Tensor:
    """Scores `[B, H, T, T]` with padding (`[B, T]`) visible to later columns; future columns stay hidden."""
    columns = is_pad.shape[-1]
    causal = torch.ones(columns, columns, dtype=torch.bool, device=is_pad.device).tril()
    visible = (seen.mask == 0) | (is_pad[:, None, None, :] & causal)  # [B, 1, T, T]
    return seen.scores.float().masked_fill(~visible, -torch.inf)


def _query_attention(inspection: Inspection, row: int, query: int, sums: _Sums) -> QueryAttention:
    return QueryAttention(
        id=inspection.rows[row].id,
        query=query,
        attention_mask=inspection.rows[row].attention_mask,
        scores=None if sums.scores is None else sums.scores[row].tolist(),
        masked_scores=None if sums.masked is None else sums.masked[row].tolist(),
        weights=_mean(sums.weights, sums.number, row),
        weights_without_mask=_mean(sums.unmasked, sums.number, row),
    )


def _mean(parts: list[torch.Tensor], number: int, row: int) -> list[float]:
    mean: list[float] = (torch.stack(parts).sum(0)[row] / number).tolist()
    return mean
