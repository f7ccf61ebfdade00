"""Everything that is drawn on a terminal: tables, grids of token columns, progress, the summary line.

Decides nothing. No character of a prompt, output, path or error reaches a terminal unescaped.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TextIO

from rich.box import Box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from batchgen.records import Result, RunStats

# What must not reach a terminal raw: C0 but newline and tab, DEL, C1, bidirectional controls, lone surrogates.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Rows drawn with ids and mask before only continuations are shown; columns drawn before the middle is left out.
FULL_ROWS = 20
FULL_COLUMNS = 16
LABEL_WIDTH = len("attention_mask")
PROMPT_TAIL = 160
SHORT_PROMPT_TAIL = 40
BOX_FIRST = Box("╭─┬╮\n│ ││\n├─┼┤\n│ ││\n├─┼┤\n├─┼┤\n│ ││\n╰─┴╯\n")
BOX_NEXT = Box("├─┼┤\n│ ││\n├─┼┤\n│ ││\n├─┼┤\n├─┼┤\n│ ││\n╰─┴╯\n")


def escape(text: str) -> str:
    r"""Text with its dangerous characters written out.

    >>> escape("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


class Screen:
    """stderr: what is said to a person. With `quiet` only errors are."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.quiet = quiet
        self.console = console or Console(stderr=True, highlight=False)

    @property
    def is_live(self) -> bool:
        """Whether bars and spinners have a place."""
        return self.console.is_terminal and not self.quiet

    def say(self, line: str) -> None:
        if not self.quiet:
            print_line(self.console, f"batchgen: {line}")

    def error(self, line: str) -> None:
        print_line(self.console, f"batchgen: error: {line}", style="red")

    def waiting(self, message: str) -> AbstractContextManager[object]:
        """A spinner while something takes time."""
        return self.console.status(message) if self.is_live else nullcontext()


def print_line(console: Console, text: str, style: str = "") -> None:
    """One line, whatever the text holds and however wide the terminal is."""
    console.print(Text(escape(text).replace("\n", " "), style=style), soft_wrap=True)


# A grid of columns, folded to the width.


@dataclass(frozen=True, slots=True)
class GridLine:
    """One labelled line of a grid: a cell and a style for each column."""

    label: str
    cells: list[str]
    styles: list[str]


def fold_grid(lines: list[GridLine], width: int) -> Iterator[tuple[str, Text]]:
    """Lines of equal length as (label, text) rows, columns aligned and folded evenly into `width` characters."""
    num_columns = len(lines[0].cells)
    widths = [max(Text(line.cells[i]).cell_len for line in lines) for i in range(num_columns)]
    for start, end in _folds(widths, width):
        for line in lines:
            text = Text(no_wrap=True)
            for i in range(start, end):
                text.append(" " * (widths[i] - Text(line.cells[i]).cell_len))
                text.append(line.cells[i], style=line.styles[i]).append(" ")
            text.rstrip()
            yield line.label, text


def _folds(widths: list[int], width: int) -> Iterator[tuple[int, int]]:
    start, used = 0, 0
    for i, column in enumerate(widths):
        if i > start and used + column > width:
            yield start, i
            start, used = i, 0
        used += column + 1
    yield start, len(widths)


def _elided(line: GridLine) -> GridLine:
    """At most `FULL_COLUMNS` columns, the middle left out."""
    if len(line.cells) <= FULL_COLUMNS:
        return line
    half = FULL_COLUMNS // 2
    cells = [*line.cells[: half - 1], "…", *line.cells[-half:]]
    styles = [*line.styles[: half - 1], "dim", *line.styles[-half:]]
    return GridLine(line.label, cells, styles)


# The table of a run.


class ResultTable:
    """A table that grows row by row as results arrive: each row's padded ids, mask and continuation."""

    def __init__(self, console: Console, pad_token_id: int, *, all_ids: bool = False) -> None:
        self.console = console
        self.pad_token_id = pad_token_id
        self.all_ids = all_ids
        self.num_rows = 0

    def write(self, results: Iterable[Result]) -> None:
        try:
            for result in results:
                self._draw(self._row(result), BOX_NEXT if self.num_rows else BOX_FIRST)
                self.num_rows += 1
        finally:
            if self.num_rows:
                self._draw_bottom()

    @property
    def _value_width(self) -> int:
        return max(20, self.console.width - LABEL_WIDTH - 7)

    def _row(self, result: Result) -> list[tuple[str, Text]]:
        label = escape(str(result.id)).replace("\n", " ")
        if self.num_rows >= FULL_ROWS and not self.all_ids:
            return [(label, _continuation(result, SHORT_PROMPT_TAIL, self._marker))]
        rows = [(label, Text(_counts(result), style="dim"))]
        if result.padded_length is not None:
            rows += fold_grid(self._grid(result), self._value_width)
        return [*rows, ("text", _continuation(result, PROMPT_TAIL, self._marker))]

    def _grid(self, result: Result) -> list[GridLine]:
        pads = result.num_pads
        ids = [str(self.pad_token_id)] * pads + [str(i) for i in result.input_ids]
        mask = ["0"] * pads + ["1"] * result.num_prompt_tokens
        styles = ["dim"] * pads + [""] * result.num_prompt_tokens
        return [_elided(GridLine("input_ids", ids, styles)), _elided(GridLine("attention_mask", mask, styles))]

    @property
    def _marker(self) -> str:
        """Where there is no highlighting, a mark shows where the prompt ends."""
        return "" if self.console.color_system else "▸"

    def _draw(self, rows: list[tuple[str, Text]], box: Box) -> None:
        self.console.print(Segments(_joined(self._lines(rows, box)[:-1])), end="")
        self.console.file.flush()

    def _draw_bottom(self) -> None:
        self.console.print(Segments(_joined(self._lines([("", Text())], BOX_FIRST)[-1:])), end="")

    def _lines(self, rows: list[tuple[str, Text]], box: Box) -> list[list[Segment]]:
        table = Table(box=box, show_header=False, border_style="dim")
        table.add_column(width=LABEL_WIDTH, no_wrap=True, overflow="ellipsis", style="cyan")
        table.add_column(width=self._value_width, overflow="fold")
        for label, value in rows:
            table.add_row(Text(label), value)
        return self.console.render_lines(table, pad=False)


def _joined(lines: list[list[Segment]]) -> Iterator[Segment]:
    for line in lines:
        yield from line
        yield Segment.line()


def _counts(result: Result) -> str:
    if result.padded_length is None:
        return f"{result.num_prompt_tokens} tokens"
    sample = f", sample {result.sample_index}" if result.sample_index else ""
    return (
        f"{result.num_pads} pads + {result.num_prompt_tokens} tokens = {result.padded_length} columns; "
        f"{result.num_output_tokens} new ({result.finish_reason}){sample}"
    )


def _continuation(result: Result, prompt_tail: int, marker: str) -> Text:
    prompt = result.prompt
    text = Text(escape(prompt if len(prompt) <= prompt_tail else "…" + prompt[-prompt_tail:]))
    if result.error is not None:
        return text.append("  " if prompt else "").append(escape(f"error: {result.error}"), style="bold red")
    return text.append(marker, style="dim").append(escape(result.text), style="bold green")


# The batch view of `inspect`.


class InspectedRow(Protocol):
    """A row of a padded batch: arrays of equal length, pads included."""

    @property
    def id(self) -> object: ...
    @property
    def pieces(self) -> list[str]: ...
    @property
    def input_ids(self) -> list[int]: ...
    @property
    def attention_mask(self) -> list[int]: ...
    @property
    def position_ids(self) -> list[int]: ...
    @property
    def is_eos(self) -> list[bool]: ...
    @property
    def num_pads(self) -> int: ...


def print_batch(console: Console, title: str, rows: Iterable[InspectedRow]) -> None:
    """Each row's tokens, ids, mask and positions over the columns of the padded batch."""
    print_line(console, title, style="bold")
    for row in rows:
        table = Table.grid(padding=(0, 1))
        table.add_column(width=LABEL_WIDTH, style="cyan", no_wrap=True)
        table.add_column()
        for label, text in fold_grid(_inspected_grid(row), console.width - LABEL_WIDTH - 1):
            table.add_row(label, text)
        length = len(row.input_ids)
        real = length - row.num_pads
        print_line(
            console,
            f"\nrow {row.id}: {real} tokens + {row.num_pads} pads = {length} columns, padding {row.num_pads / length:.0%}",
        )
        console.print(table)


def _inspected_grid(row: InspectedRow) -> list[GridLine]:
    styles = ["dim" if not real else "bold red" if eos else "" for real, eos in zip(row.attention_mask, row.is_eos, strict=True)]
    tokens = ["pad" if not real else _visible(piece) for real, piece in zip(row.attention_mask, row.pieces, strict=True)]
    numbers = {"input_ids": row.input_ids, "attention_mask": row.attention_mask, "position_ids": row.position_ids}
    return [
        GridLine("tokens", tokens, styles),
        *(GridLine(label, [str(n) for n in values], styles) for label, values in numbers.items()),
    ]


def _visible(piece: str) -> str:
    """A token on one line, its spaces and line breaks drawn."""
    return escape(piece.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·"))


# Progress and summary.


def summary(stats: RunStats, model: str, device: str, dtype: str) -> str:
    """The one line that a run ends with."""
    parts = [
        _plural(stats.rows, "row"),
        *([_plural(stats.errors, "error")] if stats.errors else []),
        *([_plural(stats.blank_lines, "blank line") + " skipped"] if stats.blank_lines else []),
        f"{stats.prompt_tokens:,} prompt + {stats.output_tokens:,} new tokens",
        f"{stats.tokens_per_s:,.1f} tokens/s",
        f"padding {stats.padding_share:.0%}",
        _plural(stats.batches, "batch", "es"),
        f"model {model}",
        device,
        dtype,
        f"{stats.wall_s:.1f} s",
    ]
    return ", ".join(parts)


def _plural(number: int, noun: str, ending: str = "s") -> str:
    return f"{number:,} {noun}{ending if number != 1 else ''}"


class ProgressReport:
    """How far a run is: a live bar on a terminal, else a plain line every few seconds.

    Progress is counted in tokens, so that it moves at each step and not only when a batch is done.
    """

    EVERY_S = 5.0

    def __init__(
        self,
        screen: Screen,
        total_rows: int | None,
        max_new_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.screen = screen
        self.total_rows = total_rows
        self.max_new_tokens = max_new_tokens
        self.clock = clock
        self.num_rows = self.num_tokens = self._tokens_in_flight = 0
        self._started = self._last_line = clock()
        self._bar = Progress(
            TextColumn("{task.fields[detail]}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=screen.console,
            transient=True,
            disable=not screen.is_live,
            expand=True,
        )
        total = total_rows * max_new_tokens if total_rows else None
        self._task = self._bar.add_task("", total=total, detail="generating")

    def __enter__(self) -> ProgressReport:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_step(self, num_tokens: int) -> None:
        """The engine made one token for each of `num_tokens` rows."""
        self.num_tokens += num_tokens
        self._tokens_in_flight += num_tokens
        self._report()

    def on_result(self, result: Result) -> None:
        self.num_rows += 1
        self._tokens_in_flight = max(0, self._tokens_in_flight - result.num_output_tokens)
        self._report()

    def track(self, results: Iterable[Result], output: TextIO) -> Iterator[Result]:
        """Passes results on; the bar steps aside while the consumer writes to the same terminal."""
        shares_terminal = self.screen.is_live and output.isatty()
        for result in results:
            self.on_result(result)
            with self._aside() if shares_terminal else nullcontext():
                yield result

    @contextmanager
    def _aside(self) -> Iterator[None]:
        self._bar.stop()
        yield
        self._bar.start()

    def _report(self) -> None:
        elapsed_s = max(self.clock() - self._started, 1e-9)
        done = self.num_rows * self.max_new_tokens + self._tokens_in_flight
        rows = f"{self.num_rows:,} of {self.total_rows:,} rows" if self.total_rows else _plural(self.num_rows, "row")
        detail = f"{rows}, {self.num_tokens / elapsed_s:,.0f} tokens/s"
        self._bar.update(self._task, completed=done, detail=detail)
        if not self.screen.console.is_terminal and self.clock() - self._last_line >= self.EVERY_S:
            self._last_line = self.clock()
            self.screen.say(detail + self._time_left(done, elapsed_s))

    def _time_left(self, done: int, elapsed_s: float) -> str:
        if not self.total_rows or not done:
            return ""
        left = self.total_rows * self.max_new_tokens - done
        return f", about {max(0.0, left / done * elapsed_s):.0f} s left"
