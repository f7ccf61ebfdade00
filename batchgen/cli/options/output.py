"""Where results go, and what happens to an interrupted run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from batchgen.cli.options.panels import DURABLE, OUTPUT


class Format(StrEnum):
    """How results are written."""

    auto = "auto"
    table = "table"
    jsonl = "jsonl"
    text = "text"
    csv = "csv"
    tsv = "tsv"
    parquet = "parquet"
    openai_batch = "openai-batch"
    sqlite = "sqlite"


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What is written, and where."""

    format: Annotated[
        Format, typer.Option(help="auto: a table on a terminal, otherwise JSON Lines.", rich_help_panel=OUTPUT)
    ] = Format.auto
    ids: Annotated[
        bool, typer.Option("--ids", metavar="", help="Add token ids and batch details.", rich_help_panel=OUTPUT)
    ] = False
    csv_raw: Annotated[
        bool,
        typer.Option(
            "--csv-raw",
            metavar="",
            help="Do not escape cells that look like spreadsheet formulas (=1+1).",
            rich_help_panel=OUTPUT,
        ),
    ] = False
    columns: Annotated[
        bool,
        typer.Option(
            "--columns",
            metavar="",
            help="Write each field of the JSON schema to its own column (CSV, TSV, Parquet, SQLite).",
            rich_help_panel=OUTPUT,
        ),
    ] = False
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Output file. Its suffix selects the format.", rich_help_panel=OUTPUT
        ),
    ] = None
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            metavar="FILE",
            help="Write a JSON record of the run: versions, model, options, hashes.",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also write the results as an HTML page.", rich_help_panel=OUTPUT),
    ] = None
    stats: Annotated[
        Path | None,
        typer.Option("--stats", metavar="FILE", help="Write counts and times as JSON.", rich_help_panel=OUTPUT),
    ] = None

    def are_in_kind(self, form: Format) -> bool:
        """Whether OpenAI requests get answers in OpenAI's format: for JSON Lines that was not requested by name."""
        return self.format is Format.auto and form is Format.jsonl and not self.ids


@dataclass(frozen=True, slots=True)
class DurableOptions:
    """What to do with existing output and with rows that fail."""

    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", metavar="", help="Start over, and replace FILE if it exists.", rich_help_panel=DURABLE
        ),
    ] = False
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", metavar="", help="Continue an interrupted run, if there is one.", rich_help_panel=DURABLE
        ),
    ] = False
    retry_errors: Annotated[
        bool,
        typer.Option(
            "--retry-errors", metavar="", help="Like --resume, and also rerun failed rows.", rich_help_panel=DURABLE
        ),
    ] = False
    keep_store: Annotated[
        bool,
        typer.Option(
            "--keep-store",
            metavar="",
            help="Keep FILE.run.db after FILE is written, so that you can add rows later.",
            rich_help_panel=DURABLE,
        ),
    ] = False
    strict: Annotated[
        bool, typer.Option("--strict", metavar="", help="Stop at the first row that fails.", rich_help_panel=DURABLE)
    ] = False
