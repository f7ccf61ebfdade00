"""The results, as one JSON file and as a section of docs/benchmarks.md."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.gpu.parity import NotNumbers, Parity
from benchmarks.gpu.speed import BackedOff, Memory, Speed, Syncs

MIB = 2**20


@dataclass(slots=True)
class Report:
    """`machine` is what ran it; `skipped` names the parts that there was no time for."""

    machine: dict[str, Any]
    parity: list[Parity] = field(default_factory=list)
    not_numbers: list[NotNumbers] = field(default_factory=list)
    speed: list[Speed] = field(default_factory=list)
    syncs: list[Syncs] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    backed_off: list[BackedOff] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def faults(self) -> list[str]:
        found = [*self.parity, *self.not_numbers, *self.speed, *self.syncs, *self.memory, *self.backed_off]
        return [*self.crashed, *(one.fault for one in found if one.fault)]

    def as_json(self) -> str:
        return json.dumps(asdict(self) | {"faults": self.faults}, indent=1) + "\n"

    def as_markdown(self) -> str:
        machine = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        lines = [f"{machine}; {self.seconds:.0f} s.", ""]
        lines += ["Faults:", "", *(f"- {fault}" for fault in self.faults), ""] if self.faults else ["No faults.", ""]
        if self.skipped:
            lines += [f"No time for: {', '.join(self.skipped)}.", ""]
        lines += self._parity() + self._rates() + self._syncs() + self._memory()
        return "\n".join(lines)

    def _parity(self) -> list[str]:
        kinds: dict[tuple[str, str, str], list[Parity]] = {}
        for one in self.parity:
            kinds.setdefault((one.model, one.dtype, one.engine), []).append(one)
        rows = [
            [*kind, max(p.rows for p in all_), max(p.longest for p in all_), f"{max(p.difference for p in all_):.1e}",
             f"{sum(p.equal_rows for p in all_)} of {sum(p.rows for p in all_)}"]
            for kind, all_ in kinds.items()
        ]  # fmt: skip
        head = ["model", "dtype", "engine", "rows to", "tokens to", "logits differ by", "rows as `generate`'s"]
        nans = sum(one.broken for one in self.not_numbers), sum(one.tried for one in self.not_numbers)
        return [*_table(head, rows, 3), f"NaN in {nans[0]} of {nans[1]} left-padded rows.", ""]

    def _rates(self) -> list[str]:
        rows = [
            [one.model, one.dtype, one.rows, *map(_rate, (one.continuous, one.reference, one.generate)),
             f"{one.continuous / one.generate:.2f}" if one.continuous and one.generate else ""]
            for one in self.speed
        ]  # fmt: skip
        return _table(["model", "dtype", "rows", *RATES, "continuous / generate"], rows, 2)

    def _syncs(self) -> list[str]:
        rows = [[s.model, s.engine, s.sampling, s.counted, "" if s.seen is None else s.seen] for s in self.syncs]
        return _table(["model", "engine", "sampling", "syncs a step, counted", "seen by torch"], rows, 3)

    def _memory(self) -> list[str]:
        rows = [
            [m.model, m.dtype, m.engine, m.sampling, m.rows, m.predicted // MIB,
             "" if m.measured is None else m.measured // MIB]
            for m in self.memory
        ]  # fmt: skip
        head = ["model", "dtype", "engine", "sampling", "rows", "predicted, MiB", "measured, MiB"]
        ran_out = [
            f"- {b.model}, {b.engine}, {b.rows} rows: {b.equal} right; {'; '.join(b.said)}" for b in self.backed_off
        ]
        return [*_table(head, rows, 4), "Out of memory:", "", *ran_out, ""]


RATES = ["continuous, tokens/s", "reference, tokens/s", "`generate`, tokens/s"]


def _rate(rate: float | None) -> str:
    return "out of memory" if rate is None else f"{rate:,.0f}"


def _table(head: list[str], rows: list[list[Any]], num_names: int) -> list[str]:
    """Return the lines of a Markdown table whose first columns are names and whose other columns are numbers."""
    marks = ["---"] * num_names + ["--:"] * (len(head) - num_names)
    return [f"| {' | '.join(map(str, cells))} |" for cells in (head, marks, *rows)] + [""]
