"""An embedding in 8-bit integers: it looks up rows of an `Int8Weight`, which is the output layer's if they are tied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import nn

from batchgen.engines.int8.linear import Int8Weight

CHECKED_ROWS = 256  # of an embedding, spread over all of its rows
MOST_ROUNDING = 0.51  # steps between a weight and its integer


@dataclass(frozen=True, slots=True)
class EmbeddingRows:
    """Stands where a layer keeps its embedding `[V, H]`, and gives it the rows of its tokens in the same dtype.

    The layer stays: a family's own may scale what it looks up.
    """

    rows: Int8Weight
    dtype: torch.dtype

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> torch.Tensor:
        assert function is F.embedding
        token_ids, weight = args[:2]
        found: torch.Tensor = weight.rows.of_outputs(token_ids.flatten()).to(weight.dtype)
        return found.view(*token_ids.shape, -1)


def look_up_in(rows: Int8Weight, embeddings: Sequence[nn.Embedding]) -> None:
    """Let layers that share an embedding look up its rows in integers; not if this machine has an unknown layout."""
    weight = embeddings[0].weight
    if _are_rows_of(weight, rows):
        for layer in embeddings:
            del layer.weight
            layer.weight = EmbeddingRows(rows, weight.dtype)  # type: ignore[assignment]


def _are_rows_of(weight: torch.Tensor, rows: Int8Weight) -> bool:
    """Whether rows read from the packed weight are those of `[V, H]`, up to rounding."""
    some = torch.arange(0, len(weight), -(-len(weight) // CHECKED_ROWS))
    largest_step = torch.stack([group.scale[some] for group in rows.groups]).amax(0)[:, None]
    try:
        found = rows.of_outputs(some)
        return bool(((found - weight[some].float()).abs() <= MOST_ROUNDING * largest_step).all())
    except (RuntimeError, AttributeError):  # the layout has other sizes, or torch does not give its memory
        return False
