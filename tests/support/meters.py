"""A peak meter with given measurements."""

from __future__ import annotations

from collections.abc import Iterator

from batchgen.machine.meter import PeakMeter


class FakeMeter(PeakMeter):
    """Returns the given measurements."""

    def __init__(self, growths: list[int | None]) -> None:
        self.growths: Iterator[int | None] = iter(growths)

    def start(self) -> None:
        pass

    def growth_bytes(self) -> int | None:
        return next(self.growths)
