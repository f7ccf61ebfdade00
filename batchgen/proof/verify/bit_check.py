"""The results of a comparison of bits: the ways in which rows ran, and where the first row begins to differ."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from batchgen.text import short_number


@dataclass(frozen=True, slots=True)
class Parting:
    """Where a row first got different numbers: after which layer, in the forward for which token, and by how much."""

    layer: str
    token: int
    max_difference: float | None

    def __str__(self) -> str:
        moved = "" if self.max_difference is None else f", by up to {short_number(self.max_difference)}"
        return f"first at {self.layer} for token {self.token}{moved}"


@dataclass(frozen=True, slots=True)
class Way:
    """Another way to run the rows: how many got different bits, and the largest difference of a logit.

    `parting` is where the first of these rows began to differ.
    """

    name: str
    num_different: int
    max_difference: float | None
    parting: Parting | None = None


@dataclass(frozen=True, slots=True)
class BitCheck:
    """A few rows run in several other ways, compared with the engine as requested.

    With `is_promised`, the engine promises that a row gets the same bits in any batch.
    """

    num_rows: int
    ways: tuple[Way, ...]
    is_promised: bool = False

    @property
    def is_identical(self) -> bool:
        return not any(way.num_different for way in self.ways)

    @property
    def has_bug(self) -> bool:
        return self.is_promised and not self.is_identical

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "is_identical": self.is_identical}
