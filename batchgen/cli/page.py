"""`batchgen page`: an output as a web page."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from batchgen.cli import options as opt
from batchgen.errors import OutputError
from batchgen.formats.fields import to_bytes
from batchgen.formats.whole import write_at
from batchgen.proof.answers_page import render_differences, render_results, render_scores
from batchgen.proof.answers_page.scores import facts_of_sums
from batchgen.proof.diff import Comparison, RowDifference
from batchgen.render.diff import headline
from batchgen.render.screen import Screen
from batchgen.runs.checks import check_file, is_same
from batchgen.runs.results import facts_of, read_results
from batchgen.runs.sums import sum_up

MOST_ROWS = 10_000
STDOUT = Path("-")
Item = TypeVar("Item")


def page(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", show_default=False, help="The output of a run, or its store.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Output file. Default: FILE.html."),
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Show the first N rows.")] = MOST_ROWS,
    overwrite: Annotated[bool, typer.Option("--overwrite", metavar="", help="Replace the page if it exists.")] = False,
    quiet: opt.Quiet = False,
) -> None:
    """Write an output as an HTML page.

    [bold]batchgen page out.jsonl[/]               writes out.jsonl.html
    [bold]batchgen page out.parquet -o - > a.html[/]

    The page shows prompts and answers (chats as turns), with search, filters and sorting.
    Tokens are coloured by their log-probability if the run recorded it. The page needs no
    network.
    """
    place = output or file.with_name(f"{file.name}.html")
    check_page(place, [file], overwrite=overwrite)
    write_page(place, page_of(file, limit), overwrite=overwrite)
    if place != STDOUT:
        Screen(quiet=quiet).say(f"wrote {place}")


def check_page(place: Path, others: Iterable[Path], *, overwrite: bool) -> None:
    """Refuse to write a page that exists (without `overwrite`), has no folder, or is one of its inputs."""
    if place == STDOUT:
        return
    check_file("html", place, [], overwrite=overwrite)
    if any(is_same(place, other) for other in others):
        raise OutputError(f"--html {place} is also an input: write to another file")


def write_page(place: Path, text: str, *, overwrite: bool) -> None:
    """Write the page atomically, or to standard output."""
    if place == STDOUT:
        sys.stdout.buffer.write(to_bytes(text))
        sys.stdout.buffer.flush()
    else:
        write_at(place, to_bytes(text), overwrite=overwrite)


def page_of(file: Path, limit: int = MOST_ROWS) -> str:
    """Return the page of an output's rows."""
    rows = First(read_results(file), limit)
    shown = list(rows)
    facts = facts_of(file)
    stats, model = facts.get("stats") or {}, facts.get("model") or {}
    named = {
        "rows": f"{len(shown) + rows.left_out():,}",
        "failed": f"{sum(result.error is not None for result in shown):,}",
        "model": model.get("model") or next((result.model for result in shown), ""),
        "dtype": (facts.get("options") or {}).get("--dtype"),
        "engine": stats.get("engine"),
    }
    known = {name: value for name, value in named.items() if value}
    if any(result.score for result in shown):
        return render_scores(shown, file.name, known | facts_of_sums(sum_up(shown).facts), left_out=rows.left_out())
    return render_results(shown, file.name, known, left_out=rows.left_out())


def page_of_differences(rows: First[RowDifference], comparison: Comparison, a: Path, b: Path) -> str:
    """Return the page of the rows that differ between two outputs."""
    shown = list(rows)
    left_out = rows.left_out()
    facts = {"A": a, "B": b, "over all": headline(comparison)}
    return render_differences(shown, f"{a.name} and {b.name}", facts, left_out=left_out)


class First(Iterator[Item]):
    """Iterates over the first `most` items and counts the rest."""

    def __init__(self, items: Iterator[Item], most: int) -> None:
        self._items = items
        self._first = islice(items, most)
        self._left = 0

    def __next__(self) -> Item:
        return next(self._first)

    def left_out(self) -> int:
        """Consume the remaining items and return their number."""
        self._left += sum(1 for _ in self._items)
        return self._left
