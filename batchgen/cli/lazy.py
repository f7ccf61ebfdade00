"""Commands by name and summary, imported when they are used; and help without what only Markdown would need."""

from __future__ import annotations

import sys
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any

import typer
from typer.core import TyperCommand

from batchgen.cli.settings import ENVIRONMENT

# First lines of the commands' docstrings: `batchgen --help` imports none of them.
SUMMARIES = {
    "run": "Continue every prompt with a language model.",
    "status": "Say how far a run is, or was.",
    "results": "Print the finished rows of a run that goes on, was interrupted, or is done.",
    "inspect": "Show prompts as one left-padded batch: tokens, ids, attention mask, positions.",
    "plan": "Say what `run` would do with these prompts: batches, padding, memory, time.",
    "verify": "Prove that a padded batch gives each prompt what it gets alone.",
    "bench": "Measure engines, dtypes and rows on this machine, and recommend settings.",
    "doctor": "Show what this machine offers: devices, fast dtypes, memory limits, models at hand, versions.",
}
MARKDOWN = "rich.markdown"


class LazyCommand(TyperCommand):
    """A command whose module, `batchgen.cli.NAME`, is imported for its options or to run it."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, help=SUMMARIES[name], rich_markup_mode="rich")

    @cached_property
    def command(self) -> Any:
        """The command itself."""
        home = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        function = getattr(import_module(f"batchgen.cli.{self.name}"), str(self.name))
        home.command(self.name, context_settings={"auto_envvar_prefix": ENVIRONMENT})(function)
        command = typer.main.get_command(home)
        for parameter in command.params:
            vars(parameter)["show_envvar"] = False  # each has one, of the same form: the help says so once
        return command

    @property
    def params(self) -> Any:
        return self.command.params

    @params.setter
    def params(self, _: object) -> None:
        """The base class sets none."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        return self.command.make_context(*args, **options)


class LateMarkdown:
    """Makes rich's Markdown, which is imported now."""

    def __new__(cls, *args: Any, **options: Any) -> Any:
        return import_module(MARKDOWN).Markdown(*args, **options)


def spare_markdown() -> None:
    """Imports typer's help without rich's Markdown, which only help in Markdown needs."""
    if MARKDOWN in sys.modules:
        return
    stand_in = ModuleType(MARKDOWN)
    vars(stand_in)["Markdown"] = LateMarkdown
    sys.modules[MARKDOWN] = stand_in
    try:
        import_module("typer.rich_utils")
    finally:
        del sys.modules[MARKDOWN]
