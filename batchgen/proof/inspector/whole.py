"""The whole attention of a batch, every layer and head, and each row's next token: the content of the page."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from batchgen.model import Model
from batchgen.proof.inspector.attention import without_pad_mask
from batchgen.proof.inspector.batch import Inspection
from batchgen.proof.inspector.watch import Seen, watch_attention
from batchgen.proof.mistakes import last_logits, without_mask

MOST_COLUMNS = 64
NUM_NEXT = 10


@dataclass(frozen=True, slots=True)
class NextToken:
    """A candidate for the next token."""

    token_id: int
    piece: str
    probability: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most likely next tokens of a row, from the batch as it is and from the batch without its mask."""

    with_mask: list[NextToken]
    without_mask: list[NextToken]


@dataclass(frozen=True, slots=True, eq=False)
class WholeAttention:
    """Scores before the mask of all layers and heads: one `[B, H, C, K]` per layer, -inf for keys in the future.

    C are the last columns of the batch, from `first_column` on. K is C, or C + 2 if columns are omitted: the first two
    keys then stand for all omitted padding and all omitted real tokens, each as one score (log-sum-exp).
    """

    scores: list[torch.Tensor]
    first_column: int

    @property
    def num_folded(self) -> int:
        """How many of the K keys stand for omitted columns: 0 or 2."""
        return 2 if self.first_column else 0


def inspect_all(
    model: Model, inspection: Inspection, most_columns: int = MOST_COLUMNS
) -> tuple[WholeAttention, list[Prediction]]:
    """Attention and next tokens of the batch, from one forward pass with the mask and one without it."""
    assert inspection.batch is not None
    is_pad = inspection.batch.attention_mask == 0  # [B, T]
    first = max(0, inspection.num_columns - most_columns)
    layers: list[torch.Tensor] = []

    def keep(seen: Seen) -> None:
        scores = without_pad_mask(seen, is_pad.to(seen.scores.device))
        layers.append(fold_left(scores.cpu(), is_pad, first))

    logits = watch_attention(model, inspection.batch, keep)
    blind = last_logits(model, without_mask(inspection.batch))
    predictions = [
        Prediction(with_mask, without)
        for with_mask, without in zip(_next_tokens(model, logits), _next_tokens(model, blind), strict=True)
    ]
    return WholeAttention(layers, first), predictions


def fold_left(scores: torch.Tensor, is_pad: torch.Tensor, first: int) -> torch.Tensor:
    """Scores `[B, H, T, T]` from column `first` on, with all earlier keys folded into two: padding and real tokens.

    A softmax over the result gives every remaining key the same weight as a softmax over all keys.
    """
    if not first:
        return scores
    left = scores[:, :, first:, :first]  # [B, H, C, first]
    pads = left.masked_fill(~is_pad[:, None, None, :first], -torch.inf).logsumexp(-1, keepdim=True)
    real = left.masked_fill(is_pad[:, None, None, :first], -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([pads, real, scores[:, :, first:, first:]], -1)


def _next_tokens(model: Model, logits: torch.Tensor) -> list[list[NextToken]]:
    """The most likely tokens of each row of `[B, V]`."""
    probabilities, token_ids = logits.softmax(-1).topk(min(NUM_NEXT, logits.shape[-1]))
    tokenizer = model.checkpoint.codec
    return [
        [
            NextToken(token_id, str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False)), probability)
            for token_id, probability in zip(ids, shares, strict=True)
        ]
        for ids, shares in zip(token_ids.tolist(), probabilities.tolist(), strict=True)
    ]
