"""batchgen.1, the manual page, from the help screens of all commands.

    python tools/man_page.py > share/man/man1/batchgen.1

`make docs` runs it, and a test compares the page with the commands' help. The wheel installs it: `man batchgen`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import typer.main

from batchgen.cli import app
from batchgen.cli.helping import help_screen
from batchgen.render.help import EXAMPLE, HelpScreen

NAME = "batchgen \\- turn a file of prompts into a file of answers with a language model"
ORDER = "Flags override environment variables, which override config files."


def man_page() -> str:
    """The page, written with the macros of man(7)."""
    program: Any = typer.main.get_command(app)
    top = program.make_context("batchgen", [], resilient_parsing=True)
    lines = ['.TH BATCHGEN 1 "" "batchgen" "User commands"', ".SH NAME", NAME, ".SH SYNOPSIS"]
    lines += [
        ".B batchgen",
        "COMMAND [OPTIONS]",
        ".SH DESCRIPTION",
        *_text(help_screen(program, top)),
        ".PP",
        _plain(ORDER),
    ]
    for name, command in program.commands.items():
        context = command.make_context(name, [], parent=top, resilient_parsing=True)
        lines += [f".SH BATCHGEN {name.upper()}", *_command(help_screen(command.command, context))]
    return "\n".join(lines) + "\n"


def _command(screen: HelpScreen) -> Iterator[str]:
    """Usage, text and options of one command."""
    yield f".B {_plain(screen.usage)}"
    yield from _text(screen)
    for section in screen.sections:
        yield f".SS {_plain(section.title)}"
        for label, text in section.lines:
            yield from (".TP", f".B {_plain(label.strip())}", _plain(text) or "\\&")


def _text(screen: HelpScreen) -> Iterator[str]:
    for block in screen.text.split("\n\n"):
        examples = [EXAMPLE.fullmatch(line.strip()) for line in block.splitlines()]
        if examples and all(examples):
            for example in examples:
                assert example
                yield from (".TP", f".B {_plain(example[1])}", _plain(example[2].strip()) or "\\&")
        else:
            yield from (".PP", _plain(" ".join(block.split())))


def _plain(text: str) -> str:
    """Escape text for roff, which interprets backslashes, dashes, and a dot or quote at the start."""
    shown = re.sub(r"\[/?(bold)?\]", "", text).replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{shown}" if shown.startswith((".", "'")) else shown


if __name__ == "__main__":
    sys.stdout.write(man_page())
