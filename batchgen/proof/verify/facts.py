"""The results of a verification: each row's verdict, the dtype's own error, the negative controls, and a summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import floor, isfinite, log10
from typing import Any, Literal

from batchgen.proof.verify.bit_check import BitCheck
from batchgen.proof.verify.cost import QuantizationCost
from batchgen.records import RowId, precision_of
from batchgen.text import short_number

Verdict = Literal["identical", "rounding", "bug"]
VERDICTS: tuple[Verdict, ...] = ("identical", "rounding", "bug")


@dataclass(frozen=True, slots=True)
class ErrorBound:
    """How far logits may differ from the oracle's and still count as rounding.

    `measured` is the largest difference caused by the dtype and the shape of a forward on rows without any padding;
    `allowed` includes a safety factor.
    """

    measured: float
    allowed: float


@dataclass(frozen=True, slots=True)
class RowCheck:
    """One row in its batch, compared with the same row alone and unpadded.

    `differences` has the largest logit difference of each step. It is empty if no logits were seen: for a row that was
    answered with an identical row's tokens, or for the caller's own loop. At the first step that differs, `margin` is
    the gap between the oracle's two best logits, `token` is the row's token, and `expected` is the oracle's. `bits` is
    set if `check_padding` compares bits: "bit-identical", or where the row first differs in another batch.
    """

    id: RowId | None
    index: int
    prompt: str
    verdict: Verdict
    num_steps: int
    num_pads: int = 0
    differences: tuple[float, ...] = ()
    first_differing_step: int | None = None
    margin: float | None = None
    token: str | None = None
    expected: str | None = None
    bits: str | None = None

    @property
    def first_step_difference(self) -> float | None:
        return self.differences[0] if self.differences else None

    @property
    def max_difference(self) -> float | None:
        return max(self.differences, default=None)

    @property
    def tokens_equal(self) -> bool:
        return self.first_differing_step is None

    def to_dict(self) -> dict[str, Any]:
        names = ("id", "index", "prompt", "verdict", "num_steps", "num_pads", "tokens_equal", "first_differing_step")
        differences = {
            "first_step_difference": _finite(self.first_step_difference),
            "max_difference": _finite(self.max_difference),
            "differences": [_finite(difference) for difference in self.differences],
        }
        where = {"margin": _finite(self.margin), "token": self.token, "expected": self.expected}
        where |= {"bits": self.bits} if self.bits else {}
        return {**{name: getattr(self, name) for name in names}, **where, **differences}


def _finite(number: float | None) -> float | None:
    """The number if it is finite, otherwise None: JSON has no infinity."""
    return number if number is not None and isfinite(number) else None


@dataclass(frozen=True, slots=True)
class Control:
    """One way of padding a few rows, compared with the same rows alone: how the next token changes.

    Total variation is half the sum of absolute differences of the two distributions, from 0 to 1, averaged over the
    rows with padding; `flips` is the share of these rows whose most likely token changes. `must` is the expectation: a
    mistake must break the batch, correct or harmless padding must not, and some mistakes may or may not.
    """

    name: str
    must: Literal["break", "hold", "may break"]
    total_variation: float
    flips: float
    max_difference: float
    broke: bool

    @property
    def is_as_expected(self) -> bool:
        return self.must == "may break" or self.broke == (self.must == "break")

    def to_dict(self) -> dict[str, Any]:
        names = ("name", "must", "total_variation", "flips", "max_difference", "broke", "is_as_expected")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Controls:
    """All controls, on `num_rows` rows of which `num_padded` have padding; `positions` is the model's kind of them."""

    num_rows: int
    num_padded: int
    positions: str
    controls: tuple[Control, ...]

    @property
    def can_see_mistakes(self) -> bool:
        """Whether every mistake is visible on these rows, and correct padding changes nothing."""
        return self.num_padded > 0 and all(control.is_as_expected for control in self.controls)

    def to_dict(self) -> dict[str, Any]:
        facts = {name: getattr(self, name) for name in ("num_rows", "num_padded", "positions", "can_see_mistakes")}
        return {**facts, "controls": [control.to_dict() for control in self.controls]}


@dataclass(frozen=True, slots=True)
class ScoreCheck:
    """How `score`'s log-probabilities of `num_tokens` tokens in padded batches compare with each row alone."""

    num_rows: int
    num_tokens: int
    max_difference: float
    allowed: float

    @property
    def has_bug(self) -> bool:
        return self.max_difference > self.allowed

    def to_dict(self) -> dict[str, Any]:
        facts = {name: getattr(self, name) for name in ("num_rows", "num_tokens", "allowed", "has_bug")}
        return {**facts, "max_difference": _finite(self.max_difference)}


@dataclass(frozen=True, slots=True)
class DifferenceBin:
    """The number of steps whose logit difference is in [low, high)."""

    low: float
    high: float
    steps: int


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Everything that `verify` found; `most_rows` is the maximum number of rows that ran together."""

    model: str
    engine: str
    device: str
    dtype: str
    most_rows: int
    bound: ErrorBound
    controls: Controls
    rows: tuple[RowCheck, ...] = ()
    num_failed: int = 0
    scores: ScoreCheck | None = None
    bits: BitCheck | None = None
    cost: QuantizationCost | None = None

    @property
    def precision(self) -> str:
        """The dtype, preceded by what linear layers are quantised to."""
        return precision_of(self.dtype, self.cost.quantize if self.cost else None)

    def count(self, verdict: Verdict) -> int:
        return sum(row.verdict == verdict for row in self.rows)

    @property
    def has_bug(self) -> bool:
        """Whether rounding cannot explain a row's tokens, logits or scores, or correct padding broke a batch.

        Different bits are a bug if the engine promises the same ones.
        """
        if (self.scores and self.scores.has_bug) or (self.bits and self.bits.has_bug):
            return True
        return self.count("bug") > 0 or any(c.must == "hold" and c.broke for c in self.controls.controls)

    @property
    def max_difference(self) -> float:
        return max((difference for row in self.rows for difference in row.differences), default=0.0)

    @property
    def histogram(self) -> list[DifferenceBin]:
        return histogram(difference for row in self.rows for difference in row.differences)

    @property
    def summary(self) -> str:
        """One sentence that sums up the report."""
        rows, batch = len(self.rows), self.most_rows
        counts = {verdict: self.count(verdict) for verdict in VERDICTS}
        verdicts = ", ".join(
            f"{number:,} {verdict}" for verdict, number in counts.items() if number or verdict == "identical"
        )
        return (
            f"{rows:,} {'row' if rows == 1 else 'rows'}, batches of {batch:,}, "
            f"{self.precision}: {verdicts}, "
            f"max logit difference {short_number(self.max_difference)}"
        )

    def to_dict(self) -> dict[str, Any]:
        names = ("summary", "model", "engine", "device", "dtype", "most_rows", "num_failed", "has_bug")
        bins = [{"low": _finite(bin.low), "high": _finite(bin.high), "steps": bin.steps} for bin in self.histogram]
        return {
            **{name: getattr(self, name) for name in names},
            "counts": {verdict: self.count(verdict) for verdict in VERDICTS},
            "max_difference": _finite(self.max_difference),
            "error": {"measured": self.bound.measured, "allowed": self.bound.allowed},
            "histogram": bins,
            "scores": self.scores and self.scores.to_dict(),
            "negative_controls": self.controls.to_dict(),
            "bits": self.bits and self.bits.to_dict(),
            "rows": [row.to_dict() for row in self.rows],
            "quantization": self.cost.to_dict() if self.cost else None,
        }


def histogram(differences: Iterable[float]) -> list[DifferenceBin]:
    """Count differences in bins of half a power of ten, without gaps; exactly 0 has its own bin.
    >>> [(bin.low, bin.high, bin.steps) for bin in histogram([0.0, 2e-6, 4e-6, 2e-5])]
    [(0.0, 0.0, 1), (1e-06, 3e-06, 1), (3e-06, 1e-05, 1), (1e-05, 3e-05, 1)]
    """
    halves: Counter[int] = Counter()
    zeros = infinite = 0
    for difference in differences:
        if not isfinite(difference):
            infinite += 1
        elif difference == 0:
            zeros += 1
        else:
            power = floor(log10(difference))
            halves[2 * power + (difference >= _border(2 * power + 1))] += 1
    bins = [DifferenceBin(0.0, 0.0, zeros)] if zeros else []
    if halves:
        range_ = range(min(halves), max(halves) + 1)
        bins += [DifferenceBin(_border(half), _border(half + 1), halves[half]) for half in range_]
    return bins + ([DifferenceBin(float("inf"), float("inf"), infinite)] if infinite else [])


def _border(half: int) -> float:
    """The border of a bin: 1 or 3 times a power of ten, because the square root of ten is about 3."""
    return float(f"{3 if half % 2 else 1}e{half // 2}")
