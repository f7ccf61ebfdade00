"""The reference of the command line, from the same help screens as `--help`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer.main

from batchgen.cli import app
from batchgen.cli.helping import help_screen
from batchgen.render.help import EXAMPLE, HelpSection
from website.markdown import code, fence, prose, table

INTRODUCTION = """# Commands

This page has what `batchgen COMMAND --help` prints. Options can also be set in
[a config file or the environment](../formats.md#settings).
"""


def commands_page() -> str:
    """All commands, with their options and exit codes."""
    root = typer.main.get_command(app)
    context = root.context_class(root, info_name="batchgen")  # type: ignore[attr-defined]
    commands = root.commands  # type: ignore[attr-defined]
    parts = [INTRODUCTION, table(["command", "does"], [_row_of(name, commands[name]) for name in commands])]
    for name, command in commands.items():
        child = command.context_class(command, info_name=name, parent=context)
        parts += _command(name, command, child)
    return "\n\n".join(parts) + "\n"


def _row_of(name: str, command: Any) -> list[str]:
    return [f"[`{name}`](#{name})", prose(_first_paragraph(command.help))]


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def _command(name: str, command: Any, context: Any) -> Iterator[str]:
    screen = help_screen(command, context)
    yield f"## {name}"
    yield fence(screen.usage)
    for block in screen.text.split("\n\n"):
        yield _block(block)
    for section in screen.sections:
        yield f"### {section.title} {{ #{name}-{_slug(section.title)} }}"
        yield _section(section)


def _block(block: str) -> str:
    """A paragraph, or a block of example commands."""
    examples = [EXAMPLE.fullmatch(line.strip()) for line in block.splitlines()]
    if examples and all(examples):
        return fence("\n".join(f"{found[1]}{_comment(found[2])}" for found in examples if found), "sh")
    return prose(" ".join(block.split()))


def _comment(text: str) -> str:
    return f"   # {text.strip()}" if text.strip() else ""


def _section(section: HelpSection) -> str:
    first = "code" if section.title == "Exit codes" else "option"
    return table([first, "meaning"], [[code(label.strip()), _meaning(text)] for label, text in section.lines])


def _meaning(text: str) -> str:
    """The sentence, with words in brackets at its end, such as choices and the default, as code."""
    sentence, *notes = re.split(r" (?=\[(?:default: |[a-z0-9-]+(?:, |\]$|\] )))", text)
    return " ".join([prose(sentence), *(code(note.strip("[]")) for note in notes)])


def _slug(title: str) -> str:
    return re.sub(r"[^a-z]+", "-", title.lower()).strip("-")
