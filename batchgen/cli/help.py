"""`batchgen help`: show the help of one command or of all."""

from __future__ import annotations

from typing import Annotated

import typer

from batchgen.cli.hints import command_hint
from batchgen.errors import UsageError


def help(
    context: typer.Context,
    command: Annotated[str | None, typer.Argument(metavar="COMMAND", help="The command to show help for.")] = None,
) -> None:
    """Show the help of a command, like `batchgen COMMAND --help`.

    [bold]batchgen help[/]
    [bold]batchgen help run[/]
    """
    program = context.parent
    assert program
    if command is None:
        typer.echo(program.get_help())
        return
    commands = program.command.commands  # type: ignore[attr-defined]
    if command not in commands:
        raise UsageError(f"there is no command {command}{command_hint(command, list(commands))}; see batchgen --help")
    commands[command].make_context(command, ["--help"], parent=program)
