"""`batchgen results`: print the finished rows of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from batchgen.cli import options as opt
from batchgen.cli.output import OUR_WRITERS, choose_format
from batchgen.errors import UsageError
from batchgen.formats.writing import WriteOptions
from batchgen.runs.results import follow_results, read_results
from batchgen.text import escape


def results(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The output file of the run (its -o).", show_default=False)
    ],
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", metavar="", help="Keep printing rows as they finish, in input order, until the run ends."
        ),
    ] = False,
    form: Annotated[
        opt.Format,
        typer.Option("--format", help="auto: a table on a terminal, otherwise JSON Lines.", rich_help_panel=opt.OUTPUT),
    ] = opt.Format.auto,
    ids: Annotated[
        bool, typer.Option("--ids", metavar="", help="Add token ids and batch details.", rich_help_panel=opt.OUTPUT)
    ] = False,
) -> None:
    """Print the finished rows of a run, even while it is running.

    [bold]batchgen results out.jsonl | head[/]
    [bold]batchgen results out.jsonl --follow | jq -r .text[/]

    Rows come in input order. The run is not disturbed.
    """
    chosen = choose_format(form, None, ids=ids)
    if follow and chosen is opt.Format.parquet:
        raise UsageError("--format parquet cannot be combined with --follow: remove one")
    stdout = sys.stdout.buffer
    options = WriteOptions(ids=ids, escape=escape if stdout.isatty() else str)
    rows = follow_results(file) if follow else read_results(file)
    OUR_WRITERS[chosen.value](rows, stdout, options)
