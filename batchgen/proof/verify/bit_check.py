"""What a comparison of bits found: the ways in which rows were run, and where the first row that differs parts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from batchgen.text import short_number


@dataclass(frozen=True, slots=True)
class Parting:
    """Where a row first got other numbers: behind which layer, in the forward for which of its tokens, by how much."""

    layer: str
    token: int
    max_difference: float | None

    def __str__(self) -> str:
        moved = "" if self.max_difference is None else f", by up to {short_number(self.max_difference)}"
        return f"first at {self.layer} for token {self.token}{moved}"


@dataclass(frozen=True, slots=True)
class Way:
    """Another way to run the rows: how many got other bits in it, and by how much a logit moved at most.

    `parting` is where the first of these rows did.
    """

    name: str
    num_different: int
    max_difference: float | None
    parting: Parting | None = None


@dataclass(frozen=True, slots=True)
class BitCheck:
    """What became of a few rows in several ways, against the engine as it was asked for.

    With `is_promised`, runs of this model say that its rows have the same bits in any batch.
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
