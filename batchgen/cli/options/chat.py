"""How prompts become conversations, and how answers are split into parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from batchgen.cli.options.panels import CHAT
from batchgen.errors import InputError, UsageError
from batchgen.records import ChatOptions

LONGEST_SYSTEM = 2**21  # bytes


@dataclass(frozen=True, slots=True)
class ChatFlags:
    """The options for conversations."""

    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="Send each plain prompt as a user message through the model's chat template.",
            rich_help_panel=CHAT,
            show_default=False,
        ),
    ] = None
    system: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="System message for conversations without one; implies --chat.",
            rich_help_panel=CHAT,
        ),
    ] = None
    system_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Read it from a file, without the newline at the end.", rich_help_panel=CHAT),
    ] = None
    chat_template: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="One of the model's chat templates by name, or a file. Default: the model's own.",
            rich_help_panel=CHAT,
        ),
    ] = None
    chat_template_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Argument for the chat template, such as enable_thinking=false. Can be repeated.",
            rich_help_panel=CHAT,
            allow_from_autoenv=False,  # typer would split a list at spaces
        ),
    ] = None
    split_reasoning: Annotated[
        bool,
        typer.Option(
            "--split-reasoning/--no-split-reasoning",
            help="Put the model's reasoning into its own field.",
            rich_help_panel=CHAT,
        ),
    ] = True

    def options(self) -> ChatOptions:
        """Return the chat options. Raises `UsageError` if they conflict, `InputError` if a file cannot be read."""
        if self.system is not None and self.system_file is not None:
            raise UsageError("--system and --system-file both set the system message: choose one")
        flag = "--system-file" if self.system_file is not None else "--system"
        system = self.system if self.system_file is None else _read(self.system_file)
        if self.chat is False and system is not None:
            raise UsageError(f"{flag} turns prompts into conversations, but --no-chat is also given: choose one")
        from batchgen.model.chat.template import read_arguments

        return ChatOptions(
            chat=self.chat,
            system=system,
            template=self.chat_template,
            arguments=read_arguments(self.chat_template_arg or []),
            split_reasoning=self.split_reasoning,
        )


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(LONGEST_SYSTEM + 1)
        if len(content) > LONGEST_SYSTEM:
            raise InputError(f"--system-file {path} is larger than {LONGEST_SYSTEM:,} bytes")
        return content.decode("utf-8").replace("\r\n", "\n").removesuffix("\n")
    except OSError as error:
        raise InputError(f"--system-file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--system-file {path} is not UTF-8 at byte {error.start}") from None
