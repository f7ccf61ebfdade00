"""Pack scores into text for the page: one or two characters each, depending on the space.

Only the distance of a score below the largest one of its query matters, because the softmax depends on nothing else.
Distances are stored in quadratic steps, which are finest where the weights are largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
DEPTH = 12.0  # scores further below their largest count as zero: a weight of 6e-6
MOST_CHARACTERS = 4_800_000  # leaves room for the rest of a page of 5 MB


@dataclass(frozen=True, slots=True)
class Packed:
    """The text, the characters per score, and the number of rows in it (counted from the first)."""

    text: str
    digits: int
    num_rows: int


def pack(
    layers: Sequence[torch.Tensor],
    attention_mask: Sequence[Sequence[int]],
    num_folded: int = 0,
    most_characters: int = MOST_CHARACTERS,
) -> Packed:
    """Pack scores `[B, H, C, K]` of each layer by row, layer, head, query and key; padding queries are omitted.

    A query at column c has its first `num_folded` + c + 1 keys; all others are in its future. `attention_mask` has the
    0/1 masks of the rows, of which the last C columns count. Uses two characters per score if all rows fit, otherwise
    one, and as many rows as fit.
    """
    if not layers:
        return Packed("", 2, 0)
    num_heads, columns = layers[0].shape[1:3]
    shown = [list(mask)[-columns:] for mask in attention_mask]
    sizes = [len(layers) * num_heads * num_scores(mask, num_folded) for mask in shown]
    digits = 2 if 2 * sum(sizes) <= most_characters else 1
    num_rows = _rows_that_fit(sizes, most_characters // digits)
    parts = [_pack_row([layer[row] for layer in layers], shown[row], num_folded, digits) for row in range(num_rows)]
    return Packed("".join(parts), digits, num_rows)


def num_scores(mask: Sequence[int], num_folded: int) -> int:
    """The number of scores of one head in a row with this mask.
    >>> num_scores([0, 1, 1], 0)
    5
    """
    return sum(num_folded + column + 1 for column, real in enumerate(mask) if real)


def _rows_that_fit(sizes: Sequence[int], room: int) -> int:
    used = 0
    for row, size in enumerate(sizes):
        used += size
        if used > room:
            return row
    return len(sizes)


def _pack_row(layers: Sequence[torch.Tensor], mask: Sequence[int], num_folded: int, digits: int) -> str:
    import torch

    scores = torch.stack(list(layers))  # [L, H, C, K]
    columns, keys = scores.shape[-2:]
    is_past = torch.arange(keys) <= num_folded + torch.arange(columns)[:, None]  # [C, K]
    is_kept = is_past & torch.tensor(mask, dtype=torch.bool)[:, None]
    depths = scores.amax(-1, keepdim=True) - scores  # 0 for the largest, inf for masked ones
    codes = encode(depths[:, :, is_kept], digits)  # [L, H, N]
    letters = torch.tensor(list(ALPHABET.encode()), dtype=torch.uint8)
    places = [64**place for place in reversed(range(digits))]
    text = torch.stack([letters[codes // place % 64] for place in places], -1)  # [L, H, N, digits]
    return bytes(text.numpy()).decode("ascii")


def encode(depths: torch.Tensor, digits: int) -> torch.Tensor:
    """Encode distances below the largest score: the highest code is distance 0, code 0 is beyond `DEPTH` or masked.
    >>> import torch
    >>> encode(torch.tensor([0.0, 3.0, 100.0]), 1).tolist()
    [63, 32, 0]
    """
    most = 64**digits - 1
    steps = ((depths / DEPTH).clamp(0, 1).sqrt() * (most - 1)).round().long()
    codes: torch.Tensor = (most - steps).masked_fill(~(depths <= DEPTH), 0)
    return codes
