"""Commands by name and summary, imported when they are used."""

from __future__ import annotations

from functools import cached_property
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand

from batchgen.cli.settings import ENVIRONMENT

TYPED = "batchgen.typed"  # in a context's `meta`: the words of the command line
# First lines of the commands' docstrings: `batchgen --help` imports none of them.
SUMMARIES = {
    "run": "Continue every prompt with a language model.",
    "status": "Say how far a run is, or was.",
    "results": "Print the finished rows of a run that goes on, was interrupted, or is done.",
    "diff": "Show what differs between two outputs: rows, tokens, scores, and why.",
    "rerun": "Do a run again as its manifest says, and show what differs.",
    "score": "Say how likely given texts are: continuations, choices, whole texts.",
    "page": "Write an output as a page for a browser.",
    "inspect": "Show prompts as one left-padded batch: tokens, ids, attention mask, positions.",
    "plan": "Say what `run` would do with these prompts: batches, padding, memory, time.",
    "verify": "Prove that a padded batch gives each prompt what it gets alone.",
    "bench": "Measure engines, dtypes and rows on this machine, and recommend settings.",
    "demo": "Show on three prompts what padding and masks do, step by step.",
    "doctor": "Show what this machine offers: devices, fast dtypes, memory limits, models at hand, versions.",
    "help": "Show the help of a command, as `batchgen COMMAND --help` does.",
}


class CommandWithHelp(TyperCommand):
    """A command whose help is drawn by us: typer's has types of Python and leaves few columns for words."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from batchgen.cli.helping import format_help

        formatter.write(format_help(self, ctx))


class LazyCommand(CommandWithHelp):
    """A command whose module, `batchgen.cli.NAME`, is imported for its options or to run it."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, help=SUMMARIES[name], rich_markup_mode=None)

    @cached_property
    def command(self) -> Any:
        """The command itself."""
        home = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        function = getattr(import_module(f"batchgen.cli.{self.name}"), str(self.name))
        settings = {"auto_envvar_prefix": ENVIRONMENT}
        home.command(self.name, cls=CommandWithHelp, context_settings=settings)(function)
        return typer.main.get_command(home)

    @property
    def params(self) -> Any:
        return self.command.params

    @params.setter
    def params(self, _: object) -> None:
        """The base class sets none."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        return self.command.make_context(*args, **options)
