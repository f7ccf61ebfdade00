"""Single options that commands share, as annotated types."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from batchgen.cli.options.panels import LENGTH, OUTPUT
from batchgen.cli.settings import tell_settings
from batchgen.records import TooLong

TooLongPolicy = Annotated[
    TooLong,
    typer.Option(
        help="What to do with a prompt that is too long for the model: fail the row, or keep the end of the prompt.",
        rich_help_panel=LENGTH,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print everything as JSON.", rich_help_panel=OUTPUT)]
ProgressForm = Annotated[
    Literal["auto", "json"],
    typer.Option(help="json: write JSON Lines to stderr, for programs.", rich_help_panel=OUTPUT),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        metavar="",
        help="Errors only on stderr.",
        rich_help_panel=OUTPUT,
        callback=tell_settings,
    ),
]
