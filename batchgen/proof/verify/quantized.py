"""Measure what 8-bit integers change: greedy tokens of the same rows, and distributions after the same tokens."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING

from batchgen.proof.verify.cost import QuantizationCost, RowCost
from batchgen.proof.verify.oracle import Oracle
from batchgen.records import Sequence

if TYPE_CHECKING:
    import torch

MOST_COLUMNS = 512  # last columns of a row whose distributions are compared


def measure_cost(
    quantize: str, plain: Oracle, quantized: Oracle, rows: Rows[Sequence], answers: Rows[Sequence]
) -> QuantizationCost:
    """Compare `rows`, finished in float32, with `answers`, the same rows in 8-bit integers, in any order."""
    others = {answer.request.index: answer.output_ids for answer in answers}
    sums = _Contexts()
    costs = []
    for row in sorted(rows, key=lambda row: row.request.index):
        if row.request.index in others:
            costs.append(_row_cost(row, others[row.request.index]))
            sums.add(row, plain, quantized)
    return QuantizationCost(quantize, tuple(costs), sums.positions, *sums.means(), *sums.perplexities())


def _row_cost(row: Sequence, other: Rows[int]) -> RowCost:
    own = row.output_ids
    pairs = enumerate(zip(own, other, strict=False))
    shorter = min(len(own), len(other))
    first = next((place for place, (one, two) in pairs if one != two), shorter)
    is_equal = first == len(own) == len(other)
    return RowCost(row.request.id, row.request.index, len(own), min(first, len(own)), None if is_equal else first)


@dataclass(slots=True)
class _Contexts:
    """Sums over the contexts of all rows so far."""

    positions: int = 0
    difference: float = 0.0
    divergence: float = 0.0
    texts: int = 0  # contexts whose next token is in the row's own prompt
    plain_surprise: float = 0.0
    surprise: float = 0.0

    def add(self, row: Sequence, plain: Oracle, quantized: Oracle) -> None:
        """Add the contexts of a row and its float32 answer."""
        import torch

        token_ids = row.token_ids[:-1] if row.output_ids else row.token_ids
        last = min(len(token_ids), MOST_COLUMNS)
        wanted, found = plain.logits(token_ids, last), quantized.logits(token_ids, last)  # [last, V]
        self.positions += last
        self.difference += float((found - wanted).abs().mean(-1).sum())
        one, other = wanted.log_softmax(-1), found.log_softmax(-1)
        self.divergence += float(torch.nn.functional.kl_div(other, one, reduction="sum", log_target=True))
        self._read(row, len(token_ids) - last, one, other)

    def _read(self, row: Sequence, skipped: int, one: torch.Tensor, other: torch.Tensor) -> None:
        """Add the surprise of the prompt's tokens, except the first and those in the `skipped` columns."""
        import torch

        following = torch.tensor(row.input_ids[skipped + 1 :])[:, None]  # [N, 1]
        self.texts += len(following)
        if len(following):
            self.plain_surprise -= float(one[: len(following)].gather(-1, following).sum())
            self.surprise -= float(other[: len(following)].gather(-1, following).sum())

    def means(self) -> tuple[float, float]:
        number = max(self.positions, 1)
        return self.difference / number, self.divergence / number

    def perplexities(self) -> tuple[float | None, float | None]:
        if not self.texts:
            return None, None
        return exp(self.plain_surprise / self.texts), exp(self.surprise / self.texts)
