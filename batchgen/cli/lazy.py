"""Commands by name and summary, imported when used."""

from __future__ import annotations

from functools import cached_property
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand

from batchgen.cli.settings import ENVIRONMENT
from batchgen.errors import UsageError

HELP = ("-h", "--help")
TYPED = "batchgen.typed"  # in a context's `meta`: the words of the command line
# First lines of the commands' docstrings, so that `batchgen --help` need not import them.
SUMMARIES = {
    "run": "Generate an answer for every prompt.",
    "status": "Show the progress of a run.",
    "results": "Print the finished rows of a run, even while it is running.",
    "diff": "Show what differs between two outputs: rows, tokens, scores, and why.",
    "rerun": "Repeat a run from its manifest and show what differs.",
    "score": "Score how likely given texts are: continuations, choices, whole texts.",
    "page": "Write an output as an HTML page.",
    "inspect": "Show prompts as one left-padded batch: tokens, ids, attention mask, positions.",
    "plan": "Show what `run` would do with these prompts: batches, padding, memory, time.",
    "verify": "Prove that each prompt gets the same tokens in a padded batch as alone.",
    "bench": "Measure engines, dtypes and batch sizes on this machine, and recommend settings.",
    "demo": "Show on three prompts what padding and masks do, step by step.",
    "doctor": "Show what this machine offers: devices, fast dtypes, memory limits, cached models, versions.",
    "help": "Show the help of a command, like `batchgen COMMAND --help`.",
}


# Parameters that accept any text, or whose empty value is rejected elsewhere.
MAY_BE_EMPTY = {"inputs", "model", "prompt", "system", "stop", "regex", "choice", "chat_template_arg"}


class CommandWithHelp(TyperCommand):
    """A command with our own help, because typer's shows Python types and leaves little room for the text.

    Rejects an empty value with the option's name; an empty path would mean the working directory.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
            for parameter in self.params:
                value = given.get(parameter.name)
                if parameter.name not in MAY_BE_EMPTY and "" in (value if isinstance(value, list) else [value]):
                    name = min(parameter.opts, key=len)
                    raise UsageError(
                        f"{name if name.startswith('-') else name.upper()} is empty: is a shell variable unset?"
                    )
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from batchgen.cli.helping import format_help

        formatter.write(format_help(self, ctx))


class LazyCommand(CommandWithHelp):
    """A command whose module, `batchgen.cli.NAME`, is imported only for its options or to run it."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, help=SUMMARIES[name], rich_markup_mode=None)

    @cached_property
    def command(self) -> Any:
        """The real command."""
        home = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        function = getattr(import_module(f"batchgen.cli.{self.name}"), str(self.name))
        settings = {"auto_envvar_prefix": ENVIRONMENT, "help_option_names": list(HELP)}
        home.command(self.name, cls=CommandWithHelp, context_settings=settings)(function)
        return typer.main.get_command(home)

    @property
    def params(self) -> Any:
        return self.command.params

    @params.setter
    def params(self, _: object) -> None:
        """Ignore the assignment that the base class makes."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        return self.command.make_context(*args, **options)


# Made once in a process, because typer takes 10 ms to read the options of `run`.
COMMANDS = {name: LazyCommand(name) for name in SUMMARIES}
