"""An embedding in 8-bit integers: it looks up rows of a quantized weight, the output layer's if they are tied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import nn

from batchgen.engines.int8.linear import QuantizedWeight


@dataclass(frozen=True, slots=True)
class EmbeddingRows:
    """Stands where a layer keeps its embedding `[V, H]`, and gives it the rows of its tokens in the same dtype.

    The layer stays: a family's own may scale what it looks up.
    """

    rows: QuantizedWeight
    dtype: torch.dtype

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> torch.Tensor:
        assert function is F.embedding
        token_ids, weight = args[:2]
        found: torch.Tensor = weight.rows.of_outputs(token_ids.flatten()).to(weight.dtype)
        return found.view(*token_ids.shape, -1)


def look_up_in(rows: QuantizedWeight, embeddings: Sequence[nn.Embedding]) -> None:
    """Let layers that share an embedding look up its rows in integers; not if this machine has an unknown layout."""
    weight = embeddings[0].weight
    if rows.gives_outputs_of(weight):
        for layer in embeddings:
            del layer.weight
            layer.weight = EmbeddingRows(rows, weight.dtype)  # type: ignore[assignment]
