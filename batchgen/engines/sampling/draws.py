"""Keyed draws: which token a row's random numbers choose, and whether rounding could change the choice.

A row walks down the binary tree over the vocabulary's ids. At each node its own random number decides between the two
halves, in proportion to their probabilities: an inverse CDF one bit at a time. With one number for the whole CDF, every
tenth draw would fall within rounding of one of its 50,257 steps; a walk meets only 16 (docs/decisions.md). Pure
functions.
"""

from __future__ import annotations

from hashlib import shake_128
from struct import unpack

import torch

from batchgen.records import RowId

# Batching moves float32 logits by about 2e-5, and so the log-odds of two tokens, or of two halves of the vocabulary, by
# at most twice that. A decision between halves that is closer than this margin, in log-odds, is repeated from the row
# alone.
DRAW_MARGIN = 1e-4


def num_levels(vocab_size: int) -> int:
    """Return the number of nodes from the root to a token.

    >>> num_levels(50257)
    16
    """
    return max(1, (vocab_size - 1).bit_length())


def uniforms(
    seed: int, row_id: RowId | None, sample_index: int, step: int, count: int, *, occurrence: int = 0
) -> list[float]:
    """Return the random numbers in (0, 1) of this row, sample and step: a keyed hash, not a stream.

    `occurrence` distinguishes rows with the same id: the first one, 0, gets the numbers that it would get alone.

    >>> uniforms(0, "a", 0, 0, 2) == uniforms(0, "a", 0, 0, 3)[:2] != uniforms(1, "a", 0, 0, 2)
    True
    >>> uniforms(0, "a", 0, 0, 2) == uniforms(0, "a", 0, 0, 2, occurrence=1)
    False
    """
    keyed = f"{seed}#{occurrence}" if occurrence else str(seed)
    key = "\0".join((keyed, str(sample_index), str(step), str(row_id)))
    digest = shake_128(key.encode("utf-8", "surrogatepass")).digest(4 * count)
    return [(number + 0.5) * 2.0**-32 for number in unpack(f">{count}I", digest)]


def running_mass(logits: torch.Tensor) -> torch.Tensor:
    """Return the running sum `[B, V]` of exp(logits) along the vocabulary, float64, not divided by its last value.

    Computed in place, because float64 of the whole vocabulary is the largest part of a step's workspace.
    """
    weights = logits.double()
    weights -= weights.amax(-1, keepdim=True)
    return weights.exp_().cumsum_(-1)


def draw(
    kept: torch.Tensor, numbers: torch.Tensor, margin: torch.Tensor, scaled: torch.Tensor, unsure: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token `[B]` at the end of each row's walk, and whether `[B]` it was too close to call at some node.

    kept `[B, V]` are the logits with -inf where cut; numbers `[B, levels]` are in [0, 1), float64. If logits move by
    `margin` `[B]` against each other, a half's share p moves by margin * p (1 - p). If such a movement lets `unsure`
    tokens in or out of the cut, the share also moves by their mass: `scaled` has their logits before the cut.
    """
    rows, vocab_size = kept.shape
    mass = running_mass(kept)
    doubtful = unsure.any(-1).nonzero()[:, 0]  # [R]
    doubt = _unsure_mass(kept[doubtful], scaled[doubtful], unsure[doubtful])  # [R, V]
    start = torch.zeros(rows, dtype=torch.int64, device=kept.device)
    close = torch.zeros(rows, dtype=torch.bool, device=kept.device)
    low, high = mass.new_zeros(rows), mass[:, -1].clone()
    for level, number in enumerate(numbers.unbind(-1)):
        half = 1 << (numbers.shape[1] - level - 1)
        middle = start + half
        split = _before(mass, middle)
        share = (split - low) / (high - low)
        reach = margin * share * (1 - share)
        if len(doubtful):
            inside = _before(doubt, (middle + half)[doubtful]) - _before(doubt, start[doubtful])
            reach[doubtful] += inside / (high - low)[doubtful]
        close |= (number - share).abs() < reach
        is_left = number < share
        start = torch.where(is_left, start, middle)
        low, high = torch.where(is_left, low, split), torch.where(is_left, split, high)
    return start.clamp(max=vocab_size - 1), close


def _unsure_mass(kept: torch.Tensor, scaled: torch.Tensor, unsure: torch.Tensor) -> torch.Tensor:
    """Return the running sum `[R, V]` of the unsure tokens' mass, on the scale of `running_mass`."""
    weights = scaled.double()
    weights -= kept.amax(-1, keepdim=True)
    return weights.exp_().mul_(unsure).cumsum_(-1)


def _before(running: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Return the mass `[B]` of the tokens below `end` `[B]`."""
    last = (end - 1).clamp(max=running.shape[-1] - 1)
    return running.gather(-1, last.clamp(min=0)[:, None])[:, 0].where(last >= 0, 0.0)
