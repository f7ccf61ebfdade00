"""The screen of `bench`: a table of rates, charts of rates against rows below the ceilings, what failed, and advice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor, log2, log10
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batchgen.render.screen import plural, print_line, print_section

if TYPE_CHECKING:
    from batchgen.bench.facts import BenchReport, Ceiling, Point

HEIGHT = 9
WIDEST_STEP = 12
BAR_WIDTH = 3
MARGIN = 8  # columns left of the vertical axis
EIGHTHS = " ▁▂▃▄▅▆▇█"
MATMUL, BANDWIDTH = "─", "·"
WORKLOADS = ("fixed", "ragged")
STYLES = {"fixed": "green", "ragged": "blue", "ceiling": "yellow"}
# Problems that are shown in the cell of a point without a rate; others are listed below the table.
SHORT_PROBLEMS = ("no time", "memory")


def print_report(console: Console, report: BenchReport, advice: Sequence[str]) -> None:
    """Print table, charts and advice; fits 80 columns."""
    parts = [f"model {report.model}", report.device, plural(report.max_new_tokens, "new token") + " a row"]
    print_line(console, ", ".join(parts))
    console.print(Text("New tokens/s", style="bold"))
    console.print(_table(report))
    for ceiling in report.ceilings:
        _print_chart(console, report, ceiling)
    if problems := _problems(report.points):
        print_section(console, "What failed", [("-", problem) for problem in problems], 1)
    print_section(console, "Advice", [("-", line) for line in advice], 1)


def _table(report: BenchReport) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 1), show_edge=False, pad_edge=True, header_style="")
    engines = list(dict.fromkeys(point.task.engine for point in report.points))
    table.add_column("", style="cyan")
    table.add_column("rows", justify="right")
    for engine in engines:
        table.add_column(f"{engine}:\nfixed", justify="right", min_width=len("continuous:"))
        table.add_column("\nragged", justify="right", min_width=len("no time"))
    table.add_column("ceiling", justify="right")
    cells = {_place(point): _cell(point) for point in report.points}
    ceilings = {ceiling.dtype: ceiling for ceiling in report.ceilings}
    label = ""
    for dtype, rows in dict.fromkeys((point.task.dtype, point.task.rows) for point in _by_dtype(report.points)):
        found = [cells[dtype, engine, workload, rows] for engine in engines for workload in WORKLOADS]
        top = f"{ceilings[dtype].rate(rows):,.0f}" if dtype in ceilings else "-"
        table.add_row("" if dtype == label else dtype, f"{rows:,}", *found, top)
        label = dtype
    return table


def _by_dtype(points: Sequence[Point]) -> list[Point]:
    order = list(dict.fromkeys(point.task.dtype for point in points))
    return sorted(points, key=lambda point: order.index(point.task.dtype))


def _place(point: Point) -> tuple[str, str, str, int]:
    return point.task.dtype, point.task.engine, point.task.workload, point.task.rows


def _cell(point: Point) -> str:
    if point.rate is not None:
        return f"{point.rate:,.0f}"
    return point.problem if point.problem in SHORT_PROBLEMS else "failed"


def _problems(points: Sequence[Point]) -> list[str]:
    """Return each problem once, with the first point that had it."""
    first: dict[str, str] = {}
    for point in points:
        if point.problem and point.problem not in SHORT_PROBLEMS:
            task = point.task
            where = f"{task.engine}, {task.dtype}, {plural(task.rows, 'row')}, {task.workload}"
            first.setdefault(point.problem, f"{where}: {point.problem}")
    return list(first.values())


def _print_chart(console: Console, report: BenchReport, ceiling: Ceiling) -> None:
    engine = next((best.engine for best in report.bests if best.dtype == ceiling.dtype), None)
    mine = [p for p in report.points if (p.task.dtype, p.task.engine) == (ceiling.dtype, engine)]
    bars = {(point.task.rows, point.task.workload): point.rate for point in mine if point.rate}
    if not bars:
        return
    console.print(Text(f"Against rows: {engine}, {ceiling.dtype}", style="bold"))
    rows = sorted({point.task.rows for point in mine})
    spacing = max(3, min(WIDEST_STEP, (console.width - MARGIN - 1) // len(rows)))
    for line in Chart(rows, bars, ceiling, spacing).lines():
        console.print(line, soft_wrap=True)
    console.print(_legend(ceiling), soft_wrap=True)


def _legend(ceiling: Ceiling) -> Text:
    return Text.assemble(
        " " * (MARGIN + 1),
        ("███", STYLES["fixed"]), " fixed  ",
        ("▒▒▒", STYLES["ragged"]), " ragged  ",
        (MATMUL * 3, STYLES["ceiling"]), f" matmul {ceiling.gflops:,.0f} GFLOP/s  ",
        (BANDWIDTH * 3, STYLES["ceiling"]), f" reads {ceiling.gbytes_per_s:,.0f} GB/s",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chart:
    """Two bars of tokens/s for each number of rows, starting at zero, below two ceilings; the row axis is log."""

    rows: Sequence[int]
    bars: dict[tuple[int, str], float]
    ceiling: Ceiling
    spacing: int  # columns from one number of rows to the next

    def lines(self) -> Iterator[Text]:
        """Yield the lines from the top down; the axis and its labels last."""
        step = round_up(max(self.ceiling.matmul_rate, *self.bars.values()) / HEIGHT)
        for line in range(HEIGHT, -1, -1):
            text = Text.assemble(f"{line * step:{MARGIN - 1},.6g} ", ("│", "dim"))
            for column in range(self.spacing * len(self.rows)):
                text.append(*self._sign(column, line * step, step))
            text.rstrip()
            if line < HEIGHT or len(text) > MARGIN + 1:
                yield text
        yield Text.assemble(" " * MARGIN, ("└" + "─" * self.spacing * len(self.rows), "dim"))
        yield Text(" " * (MARGIN + 1) + "".join(f"{n}".center(self.spacing) for n in self.rows).rstrip())

    def _sign(self, column: int, low: float, step: float) -> tuple[str, str]:
        """Return one character and its style: a bar, or else a ceiling that passes here."""
        workload = self._workload_at(column)
        rate = self.bars.get((self.rows[column // self.spacing], workload), 0.0)
        eighths = round(8 * (rate - low) / step)
        if eighths > 0:
            return EIGHTHS[min(8, eighths)] if workload == "fixed" or eighths < 8 else "▒", STYLES[workload]
        if low <= self.ceiling.matmul_rate < low + step:
            return MATMUL, STYLES["ceiling"]
        if low <= self.ceiling.bandwidth_rate(1) * self._rows_at(column) < low + step:
            return BANDWIDTH, STYLES["ceiling"]
        return " ", ""

    def _workload_at(self, column: int) -> str:
        """Return the workload whose bar is at a column: two bars in the middle of each step; empty next to them."""
        width = min(BAR_WIDTH, (self.spacing - 1) // 2)
        place = column % self.spacing - (self.spacing // 2 - width)
        return "fixed" if 0 <= place < width else "ragged" if width <= place < 2 * width else ""

    def _rows_at(self, column: int) -> float:
        """Return the number of rows at a column, interpolated logarithmically between the labels."""
        place = (column + 0.5) / self.spacing - 0.5
        left = min(max(int(place), 0), max(0, len(self.rows) - 2))
        low, high = log2(self.rows[left]), log2(self.rows[min(left + 1, len(self.rows) - 1)])
        return float(2 ** (low + (place - left) * (high - low)))


def round_up(value: float) -> float:
    """Return the next round number, for an axis.

    >>> round_up(282), round_up(0.7)
    (300.0, 0.8)
    """
    power = 10.0 ** floor(log10(value))
    return next((round(n * power, 9) for n in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8) if n * power >= value), 10 * power)
