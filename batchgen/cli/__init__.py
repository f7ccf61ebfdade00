"""The command line. Each command turns its options into a record, makes one call and renders; errors end here."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from batchgen import __version__
from batchgen.cli.exit_codes import BROKEN_PIPE
from batchgen.cli.hints import choice_hint, command_hint, option_hint
from batchgen.cli.lazy import COMMANDS, HELP, TYPED
from batchgen.cli.settings import SCREEN, apply_settings, explain_setting, flag_of
from batchgen.cli.signals import Interrupts
from batchgen.errors import BatchgenError, UsageError, first_line, is_panic, lack_of_resources
from batchgen.records import FieldError

TRACEBACK = "BATCHGEN_TRACEBACK"  # if set in the environment, unexpected errors show a traceback
PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
OWN_PROCESS = "own process"  # the context's object in a process that runs one command and exits
REFUSED: Any = typer.BadParameter.__mro__[1]  # the base class of typer's usage errors, which typer does not export

FIRST_WORDS = """batchgen: a file of prompts to a file of answers, with your own language model

  batchgen run prompts.txt                 continue every line, as a table
  batchgen run prompts.txt -o out.jsonl    into a file; --resume after a crash
  batchgen run questions.txt --chat        questions to an instruct model
  batchgen inspect prompts.txt             tokens, padding and masks of a batch
  batchgen demo                            padding and masks, in a minute
  batchgen doctor                          what this machine offers

All commands: batchgen --help. All options of one: batchgen help run"""


class Commands(TyperGroup):
    """Runs every command: handles signals, and is the one place where an error becomes a line and an exit code."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**{**attributes, "commands": dict(COMMANDS)})

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        typed = ("batchgen", *args)
        if len(args) > 1 and args[0] in HELP and args[1] in self.commands:  # `batchgen --help run`
            args = [args[1], args[0]]
        with _usage_in_one_line(self, typed), _reader_may_leave():
            context = super().make_context(info_name, args, parent, **extra)
        context.meta[TYPED] = typed
        return context

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from batchgen.cli.helping import format_help

        formatter.write(format_help(self, ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            hint = command_hint(name, list(self.commands))
            raise UsageError(f"there is no command {name}{hint}; see batchgen --help")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        from batchgen.model.private import spare_imports  # here, because help does not need these
        from batchgen.model.quiet import no_logs

        if ctx.obj == OWN_PROCESS:
            spare_imports()
        _use_utf8()
        with _usage_in_one_line(self, ctx.meta[TYPED], ctx), no_logs(), Interrupts() as interrupts:
            ctx.obj, say = interrupts, partial(_say_error, ctx)
            try:
                apply_settings(ctx, {name: command for name, command in self.commands.items() if name != "help"})
                with _interrupt_not_error(interrupts):
                    return super().invoke(ctx)
            except typer.BadParameter as error:
                if (line := explain_setting(error)) is None:
                    raise
                say(line)
                raise typer.Exit(UsageError.exit_code) from None
            except (BatchgenError, FieldError) as error:
                say(_in_flags(error) if isinstance(error, BatchgenError) else error.named(flag_of))
                raise typer.Exit(getattr(error, "exit_code", UsageError.exit_code)) from None
            except MemoryError:
                say("out of memory: give this process more memory, or free some")
                raise typer.Exit(BatchgenError.exit_code) from None
            except KeyboardInterrupt:
                raise typer.Exit(interrupts.exit_code) from None
            except BrokenPipeError:
                _forget_stdout()
                raise typer.Exit(BROKEN_PIPE) from None
            except OSError as error:
                _forget_stdout()
                say(_describe(error))
                raise typer.Exit(BatchgenError.exit_code) from None
            except BaseException as error:
                if not _is_unforeseen(error):
                    raise
                say(_unforeseen(error))
                raise typer.Exit(BatchgenError.exit_code) from None


@contextmanager
def _interrupt_not_error(interrupts: Interrupts) -> Iterator[None]:
    """Raise the interrupt itself if a library, interrupted during its import, raises an error of its own instead."""
    try:
        yield
    except Exception:
        if interrupts.was_raised:
            raise KeyboardInterrupt from None
        raise


@contextmanager
def _usage_in_one_line(program: Commands, typed: tuple[str, ...], context: Any = None) -> Iterator[None]:
    """Report typer's usage errors in one line, escaped; typer's own box would print the given text raw.

    `context` is known once a command is chosen.
    """
    try:
        yield
    except REFUSED as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(FIRST_WORDS if sys.stderr.isatty() else error.format_message(), err=True)
            raise typer.Exit(UsageError.exit_code) from None
        command = context.invoked_subcommand if context else None
        if unknown := hasattr(error, "possibilities") and getattr(error, "option_name", None):
            flags = {name: [flag for item in each.params for flag in (*item.opts, *item.secondary_opts)]
                     for name, each in program.commands.items()}  # fmt: skip
            reason = error.message + option_hint(unknown, command or "", typed[1:], flags)
        else:
            reason = error.format_message().replace("Value error, ", "").rstrip(".")
            reason += choice_hint(reason)
        _say_error(context, f"{reason}; see {' '.join(['batchgen', *([command] if command else [])])} --help")
        raise typer.Exit(UsageError.exit_code) from None


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Exit quietly if the reader of a pipe closes it, as in `batchgen --help | head -1`."""
    try:
        yield
    except BrokenPipeError:
        _forget_stdout()
        raise typer.Exit(BROKEN_PIPE) from None


def _say_error(context: Any, line: str) -> None:
    """Print an error on the command's screen, once its options are known, or otherwise on a new one."""
    from batchgen.render.screen import Screen

    screen = context.meta.get(SCREEN) if context else None
    (screen or Screen()).error(line)


def _in_flags(error: BatchgenError) -> str:
    """Return the message of an error, with flags for the parameters it mentions."""
    from batchgen.cli.options.values import flag_of_parameter

    return error.named(flag_of_parameter)


def _is_unforeseen(error: BaseException) -> bool:
    """Whether to report an error as unexpected: not typer's own exceptions, and not if BATCHGEN_TRACEBACK is set."""
    is_error = isinstance(error, Exception | SystemExit) and not isinstance(error, REFUSED | typer.Exit | typer.Abort)
    return (is_error or is_panic(error)) and TRACEBACK not in os.environ


def _unforeseen(error: BaseException) -> str:
    """Describe an unexpected error (an odd model, a library that exits, a bug of ours): what happened, and where."""
    if lack := lack_of_resources(error):
        return lack
    import traceback  # here, because few commands need it

    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(PACKAGE)]
    place = f" in {frames[-1].name}, {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"unexpected {first_line(error)}{place}: please report it, with the output of {TRACEBACK}=1"


def _use_utf8() -> None:
    """Write UTF-8 with \\n line ends, whatever the locale says."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", newline="\n")


def _forget_stdout() -> None:
    """Discard what stdout still buffers; otherwise Python would try to write it again at exit and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _describe(error: OSError) -> str:
    if lack := lack_of_resources(error):
        return lack
    fix = ": free some space and run again" if error.errno == errno.ENOSPC else ""
    return f"cannot write {error.filename or 'the output'}: {error.strerror or error}{fix}"


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": list(HELP)},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"batchgen {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", metavar="", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A file of prompts to a file of continuations, with a language model on your own machine.

    [bold]batchgen run prompts.txt[/]            answers every prompt
    [bold]batchgen help run[/]                   shows the options of a command

    Options can also be set in batchgen.toml (max-new-tokens = 20) or in the environment (BATCHGEN_MAX_NEW_TOKENS=20).
    """
