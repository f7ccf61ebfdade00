"""`batchgen diff`: what differs between two outputs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from batchgen.cli import options as opt
from batchgen.cli.exit_codes import DIFFERENT
from batchgen.cli.page import MOST_ROWS, First, check_page, page_of_differences, write_page
from batchgen.errors import InputError, UsageError
from batchgen.formats.delimited import plain_cell, tsv_text
from batchgen.formats.fields import to_json, whole_characters
from batchgen.proof.diff import Comparison, RowDifference, diff_results, likely_causes
from batchgen.render.diff import print_comparison, print_difference
from batchgen.render.screen import OutputConsole
from batchgen.runs.results import facts_of, form_of_output_file, read_results

SHOWN = 10
OutputFile = Annotated[Path, typer.Argument(show_default=False, help="The output of a run, or its store.")]


def diff(
    a: OutputFile,
    b: OutputFile,
    tolerance: Annotated[
        float, typer.Option(metavar="X", min=0.0, help="Largest difference in log-probabilities that counts as equal.")
    ] = 0.0,
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="Show the first N rows that differ.")] = SHOWN,
    as_json: opt.AsJson = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page that shows the rows that differ, side by side.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", metavar="", help="Replace the page if it exists.")] = False,
) -> None:
    """Show what differs between two outputs: rows, tokens, scores, and why.

    [bold]batchgen diff before.jsonl after.jsonl[/]
    [bold]batchgen diff float32.parquet bfloat16.csv --json[/]

    The two formats can differ. Rows are matched by id (as text) and sample, or, without an id,
    by index. The exit code is 0 if all rows are the same, 4 if not, and 2 if the
    two cannot be compared.
    """
    for file in (a, b):
        if not file.exists():
            raise InputError(f"{file} does not exist")
    if html:
        check_page(html, [a, b], overwrite=overwrite)
        if as_json:
            raise UsageError("--json and --html cannot be combined: choose one")
    exit_code = show_diff(a, b, tolerance=tolerance, limit=limit, as_json=as_json)
    if html:
        comparison = Comparison()
        rows = First(compare_files(a, b, comparison, tolerance), MOST_ROWS)
        write_page(html, page_of_differences(rows, comparison, a, b), overwrite=overwrite)
    raise typer.Exit(exit_code)


def show_diff(a: Path, b: Path, *, tolerance: float, limit: int, as_json: bool) -> int:
    """Print the differences and return the exit code."""
    comparison = Comparison()
    try:
        rows = diff_results(read_results(a), read_results(b), comparison, tolerance=tolerance, normal=_normal_of(a, b))
        _print_json(rows, comparison, a, b) if as_json else _draw(rows, comparison, a, b, limit)
    except InputError as error:
        raise UsageError(f"not comparable: {error}") from None
    if comparison.problem:
        raise UsageError(f"{a} and {b} cannot be compared: {comparison.problem}")
    return 0 if comparison.is_same else DIFFERENT


def compare_files(a: Path, b: Path, comparison: Comparison, tolerance: float) -> Iterator[RowDifference]:
    """Yield the rows that differ between two outputs; counts go into `comparison`."""
    return diff_results(read_results(a), read_results(b), comparison, tolerance=tolerance, normal=_normal_of(a, b))


def _normal_of(a: Path, b: Path) -> Callable[[str], str]:
    """Return a function that removes from texts what one of the two formats cannot represent.

    These are halves of characters, a leading apostrophe, and line breaks in TSV.
    """
    forms = {form_of_output_file(file) for file in (a, b)}
    if len(forms) == 1:
        return str
    if "tsv" in forms:
        return lambda text: tsv_text(plain_cell(whole_characters(text)))
    if "csv" in forms:
        return lambda text: plain_cell(whole_characters(text))
    return whole_characters


def _print_json(rows: Iterator[RowDifference], comparison: Comparison, a: Path, b: Path) -> None:
    """Print one JSON object, written as rows come, because there may be a million."""
    out = sys.stdout
    out.write('{"differences": [')
    for number, row in zip(count(), rows, strict=False):
        out.write((", " if number else "") + "\n" + to_json(row.to_dict()))
    causes = [{"name": cause.name, "a": cause.a, "b": cause.b} for cause in likely_causes(facts_of(a), facts_of(b))]
    counts = {**comparison.to_dict(), "causes": causes, "a": str(a), "b": str(b)}
    out.write(f"\n], {to_json(counts)[1:]}\n")
    out.flush()


def _draw(rows: Iterator[RowDifference], comparison: Comparison, a: Path, b: Path, limit: int) -> None:
    console = OutputConsole(file=sys.stdout, highlight=False)
    num_shown = 0
    for row in rows:
        if num_shown < limit:
            print_difference(console, row)
            num_shown += 1
    if comparison.problem is None:
        print_comparison(console, comparison, likely_causes(facts_of(a), facts_of(b)), num_shown)
