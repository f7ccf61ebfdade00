"""Options that commands share: records that a command asks for whole, and annotated types of single ones."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from batchgen.cli.options.chat import ChatFlags
from batchgen.cli.options.expand import Pick, with_groups
from batchgen.cli.options.model import ManyDevices, ModelOptions
from batchgen.cli.options.output import DurableOptions, Format, OutputOptions
from batchgen.cli.options.panels import BATCHES, INPUT, LENGTH, MODEL, OUTPUT
from batchgen.cli.options.prompts import PromptOptions
from batchgen.cli.options.ray import ClusterOptions
from batchgen.cli.settings import tell_settings
from batchgen.records import TooLong

__all__ = [
    "BATCHES",
    "INPUT",
    "LENGTH",
    "MODEL",
    "OUTPUT",
    "AsJson",
    "ChatFlags",
    "ClusterOptions",
    "DurableOptions",
    "Format",
    "ManyDevices",
    "ModelOptions",
    "OutputOptions",
    "Pick",
    "ProgressForm",
    "PromptOptions",
    "Quiet",
    "TooLongPolicy",
    "with_groups",
]

TooLongPolicy = Annotated[
    TooLong,
    typer.Option(help="A prompt too long for the model: fail that row, or keep its right end.", rich_help_panel=LENGTH),
]
AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print all of it as JSON.", rich_help_panel=OUTPUT)]
ProgressForm = Annotated[
    Literal["auto", "json"],
    typer.Option(help="json: everything on stderr is JSON, one object a line, for programs.", rich_help_panel=OUTPUT),
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
