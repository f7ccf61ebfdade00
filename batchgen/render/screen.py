"""stderr: what is said to a person; and the lines and sections that all drawing shares."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console
from rich.text import Text

from batchgen.records import RunStats
from batchgen.text import escape, size_text

MIN_WIDTH = 20  # of a section's text, on however narrow a terminal


class OutputConsole(Console):
    """stdout; a reader that went away is the caller's to judge."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


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
            self._print(f"batchgen: {line}")

    def error(self, line: str) -> None:
        self._print(f"batchgen: error: {line}", style="red")

    def _print(self, line: str, style: str = "") -> None:
        """A log that is full or closed ends no run: nothing more is said then."""
        try:
            print_line(self.console, line, style)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what is still buffered would fail again at exit

    def waiting(self, message: str) -> AbstractContextManager[object]:
        """A spinner while something takes time."""
        return self.console.status(message) if self.is_live else nullcontext()


def print_line(console: Console, text: str, style: str = "") -> None:
    """One line whatever the text holds; a terminal too narrow for it gets it folded at words."""
    console.print(Text(escape(text).replace("\n", " "), style=style), soft_wrap=not console.is_terminal)


def summary(stats: RunStats, model: str, ran_on: str, dtype: str) -> str:
    """The one line that a run ends with; `ran_on` is engine, device and threads."""
    parts = [
        plural(stats.rows, "row") + (f" ({stats.rows_kept:,} kept)" if stats.rows_kept else ""),
        *([plural(stats.errors, "error")] if stats.errors else []),
        *([plural(stats.blank_lines, "blank line") + " skipped"] if stats.blank_lines else []),
        f"{stats.prompt_tokens:,} prompt + {stats.output_tokens:,} new tokens",
        f"{stats.tokens_per_s:,.1f} tokens/s",
        f"padding {stats.padding_share:.0%}",
        plural(stats.batches, "batch", "es"),
        *([_batch_memory(stats)] if stats.predicted_batch_bytes else []),
        f"model {model}",
        dtype,
        ran_on,
        f"{stats.wall_s:.1f} s",
    ]
    return ", ".join(parts)


def _batch_memory(stats: RunStats) -> str:
    measured = stats.measured_batch_bytes
    predicted = size_text(stats.predicted_batch_bytes)
    return f"{predicted} predicted" if measured is None else f"{size_text(measured)} of {predicted} predicted"


def plural(number: int, noun: str, ending: str = "s") -> str:
    return f"{number:,} {noun}{ending if number != 1 else ''}"


def print_section(console: Console, title: str, lines: Iterable[tuple[str, str]], label_width: int) -> None:
    """A title, and lines of a label and a text that folds at words beside it."""
    console.print(Text(title, style="bold"))
    width = max(MIN_WIDTH, console.width - label_width - 3)
    for label, text in lines:
        for part in Text(_one_line(text)).wrap(console, width):
            part.rstrip()
            console.print(Text.assemble("  ", (label.ljust(label_width), "cyan"), " ", part), soft_wrap=True)
            label = ""


def _one_line(text: str) -> str:
    return escape(text).replace("\n", " ").replace("\t", " ")
