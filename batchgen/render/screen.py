"""Messages to the user on stderr, and the lines and sections that all drawing shares."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.status import Status
from rich.text import Text

from batchgen.records import RunStats
from batchgen.text import clock_text, escape, size_text

T = TypeVar("T")
# A batch's memory is reported if it exceeds the prediction by this factor and by this many bytes.
OVERRUN_TIMES, OVERRUN_BYTES = 1.25, 64 << 20
MIN_WIDTH = 20  # of a section's text, however narrow the terminal


class OutputConsole(Console):
    """stdout; the caller decides what to do if the reader is gone."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Screen:
    """Messages to the user on stderr. `quiet` shows only errors; `as_json` writes each line as a JSON object."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False, console: Console | None = None) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self.console = console or Console(stderr=True, highlight=False)

    @property
    def is_live(self) -> bool:
        """Whether bars and spinners can be shown."""
        return self.console.is_terminal and not self.quiet and not self.as_json

    def say(self, line: str) -> None:
        if self.quiet:
            return
        if self.as_json:
            self.event("message", text=line)
        else:
            self._print(f"batchgen: {line}")

    def error(self, line: str) -> None:
        if self.as_json:
            self.event("error", text=line)
        else:
            self._print(f"batchgen: error: {line}", style="red")

    def error_text(self, line: str) -> str:
        """Return what `error` writes, for a process that writes it later; on a terminal with nothing of ours before."""
        if self.as_json:
            return json.dumps({"event": "error", "text": line}) + "\n"
        wiped = "\r\x1b[2K\x1b[?25h" if self.console.is_terminal else ""  # the bar; and the cursor is shown again
        return f"{wiped}batchgen: error: {escape(line)}\n"

    def event(self, name: str, **facts: object) -> None:
        """Write a line for programs: a JSON object that starts with the event's name."""
        try:
            self.console.file.write(json.dumps({"event": name, **facts}) + "\n")
            self.console.file.flush()
        except OSError:
            _leave_stderr()

    def _print(self, line: str, style: str = "") -> None:
        """Print a line; if stderr is full or closed, stop printing but do not end the run."""
        try:
            print_line(self.console, line, style)
        except OSError:
            _leave_stderr()

    def waiting(self, message: str) -> Waiting:
        """Return a spinner for something that takes time."""
        return Waiting(self.console.status(message) if self.is_live else None)


def _leave_stderr() -> None:
    """Discard stderr: what it still buffers would fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


class Waiting:
    """A spinner with a text on a terminal; elsewhere nothing."""

    EVERY = 256  # rows between two updates

    def __init__(self, status: Status | None) -> None:
        self._status = status

    def __enter__(self) -> Waiting:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._status:
            self._status.stop()

    def show(self, message: str) -> None:
        if self._status:
            self._status.update(message)

    def counted(self, rows: Iterable[T], message: str) -> Iterator[T]:
        """Pass on rows and show after the message how many there were."""
        for number, row in enumerate(rows, 1):
            if number % self.EVERY == 0:
                self.show(f"{message}: {plural(number, 'row')}")
            yield row


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print one line, whatever the text contains; a terminal folds it at words if it is too narrow."""
    console.print(Text(escape(text).replace("\n", " "), style=style), soft_wrap=not console.is_terminal)


def summary(stats: RunStats, model: str, ran_on: str, dtype: str, scores: bool = False) -> str:
    """Return the closing line of a run; `ran_on` names engine, device and threads. `scores`: nothing was generated."""
    made = f"{stats.output_tokens:,} {'scored' if scores else 'new'} tokens"
    read = f"{stats.prompt_tokens:,} {'read' if scores else 'prompt'}"
    parts = [
        plural(stats.rows, "row") + (f" ({stats.rows_kept:,} kept)" if stats.rows_kept else ""),
        *([plural(stats.errors, "error")] if stats.errors else []),
        *([plural(stats.blank_lines, "blank line") + " skipped"] if stats.blank_lines else []),
        f"{read}, {made}" if scores else f"{read} + {made}",
        f"{stats.tokens_per_s:,.1f} tokens/s",
        f"padding {stats.padding_share:.0%}",
        plural(stats.batches, "batch", "es"),
        *([_batch_memory(stats)] if stats.predicted_batch_bytes else []),
        f"model {model}",
        dtype,
        ran_on,
        f"{stats.wall_s:.1f} s" if stats.wall_s < 60 else clock_text(stats.wall_s),
    ]
    return ", ".join(parts)


def _batch_memory(stats: RunStats) -> str:
    measured = stats.measured_batch_bytes
    predicted = size_text(stats.predicted_batch_bytes)
    return f"predicted peak {predicted}" if measured is None else f"peak {size_text(measured)} (predicted {predicted})"


def overrun(stats: RunStats) -> str | None:
    """Return a warning if the batches took much more memory than predicted."""
    predicted, measured = stats.predicted_batch_bytes, stats.measured_batch_bytes
    if not predicted or measured is None:
        return None
    if measured < OVERRUN_TIMES * predicted or measured - predicted < OVERRUN_BYTES:
        return None
    return (
        f"warning: the batches took {measured / predicted:.1f} times the predicted memory; "
        "if memory is scarce, use a smaller --batch-size"
    )


def plural(number: int, noun: str, ending: str = "s") -> str:
    return f"{number:,} {noun}{ending if number != 1 else ''}"


def print_section(console: Console, title: str, lines: Iterable[tuple[str, str]], label_width: int) -> None:
    """Print a title, then lines with a label and a text that folds at words next to it."""
    console.print(Text(title, style="bold"))
    width = max(MIN_WIDTH, console.width - label_width - 3)
    for label, text in lines:
        for part in Text(_one_line(text)).wrap(console, width):
            part.rstrip()
            console.print(Text.assemble("  ", (label.ljust(label_width), "cyan"), " ", part), soft_wrap=True)
            label = ""


def _one_line(text: str) -> str:
    return escape(text).replace("\n", " ").replace("\t", " ")
