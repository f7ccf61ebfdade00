"""The cost of 8-bit integers: greedy tokens that change, divergence and perplexities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from batchgen.records import RowId


@dataclass(frozen=True, slots=True)
class RowCost:
    """How many of a row's greedy float32 tokens are the same in 8-bit integers, and the first one that is not."""

    id: RowId | None
    index: int
    num_tokens: int
    num_equal: int
    first_difference: int | None

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("id", "index", "num_tokens", "num_equal", "first_difference")}


@dataclass(frozen=True, slots=True)
class QuantizationCost:
    """The cost over all rows. Logit differences and divergences are means over `num_positions` contexts.

    Both models see the same contexts. The divergence is Kullback-Leibler, from float32 to 8-bit integers, in nats.
    Perplexities are of the rows' own prompts, None if no row has two tokens.
    """

    quantize: str
    rows: tuple[RowCost, ...]
    num_positions: int
    mean_difference: float
    divergence: float
    perplexity: float | None
    quantized_perplexity: float | None

    @property
    def equal_share(self) -> float:
        """The share of greedy tokens that are equal, counting each row's tokens before the first difference."""
        total = sum(row.num_tokens for row in self.rows)
        return sum(row.num_equal for row in self.rows) / total if total else 1.0

    @property
    def equal_rows(self) -> int:
        return sum(row.first_difference is None for row in self.rows)

    @property
    def perplexity_change(self) -> float | None:
        if self.perplexity is None or self.quantized_perplexity is None:
            return None
        return self.quantized_perplexity / self.perplexity - 1

    def to_dict(self) -> dict[str, Any]:
        names = ("quantize", "equal_share", "equal_rows", "num_positions", "mean_difference", "divergence")
        texts = ("perplexity", "quantized_perplexity", "perplexity_change")
        facts = {name: getattr(self, name) for name in (*names, *texts)}
        return facts | {"rows": [row.to_dict() for row in self.rows]}
