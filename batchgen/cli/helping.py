"""Collects a command's help from the options that typer knows; `render.help` draws it."""

from __future__ import annotations

import inspect
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from batchgen.render.help import HelpScreen, HelpSection, draw_help

# The exit codes of each command, for scripts; commands not in MORE_CODES have only these three.
EXIT_CODES = {0: "success", 1: "error (one line on stderr)", 2: "invalid options (one line on stderr)"}
MORE_CODES = {
    "run": {3: "some rows failed; their error records say why", 130: "stopped by Ctrl-C",
            141: "the reader of the pipe exited", 143: "stopped by SIGTERM"},
    "score": {3: "some rows failed; their error records say why", 130: "stopped by Ctrl-C", 143: "stopped by SIGTERM"},
    "status": {3: "the run is complete, but some rows failed"},
    "diff": {2: "invalid options, or outputs that cannot be compared", 4: "the outputs differ"},
    "rerun": {3: "some rows failed", 4: "the outputs differ"},
    "inspect": {3: "some rows could not be shown"},
    "verify": {4: "a padded row gets other tokens than it gets alone: a bug"},
}  # fmt: skip
LONGEST_CHOICE = 24  # longest list of choices in a label; longer ones go into the text


def format_help(command: Any, context: Any) -> str:
    """Return the help of a command, as wide as the terminal."""
    return draw_help(help_screen(command, context), shutil.get_terminal_size().columns, has_colors=_has_colors())


def help_screen(command: Any, context: Any) -> HelpScreen:
    """Return the content of a command's help, before it is drawn; also used for the manual page and the site."""
    sections = [HelpSection(title, tuple(lines)) for title, lines in _panels(command, context).items()]
    if commands := getattr(command, "commands", None):
        sections.insert(0, HelpSection("Commands", tuple((name, _plain(each.help)) for name, each in commands.items())))
    else:
        codes = EXIT_CODES | MORE_CODES.get(command.name, {})
        sections.append(HelpSection("Exit codes", tuple((str(code), text) for code, text in codes.items())))
    usage = " ".join([context.command_path, *(piece.strip("{}") for piece in command.collect_usage_pieces(context))])
    return HelpScreen(usage, inspect.cleandoc(command.help or ""), sections)


def _has_colors() -> bool:
    wanted = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return wanted and bool(sys.stdout and sys.stdout.isatty())


def _panels(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    """Return the labels and texts of the options by heading; the panel with --help comes last."""
    panels: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for parameter in command.get_params(context):
        if not getattr(parameter, "hidden", False):
            default = "Inputs" if parameter.param_type_name == "argument" else "Other options"
            panels[getattr(parameter, "rich_help_panel", None) or default].append(
                (_label(parameter), " ".join(_text(parameter, context)))
            )
    if "Other options" in panels:
        panels["Other options"] = panels.pop("Other options")
    return panels


def _label(parameter: Any) -> str:
    """Return `-o, --output FILE`; long flags line up whether or not there is a short one."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    short = [flag for flag in parameter.opts if not flag.startswith("--")]
    long = [flag for flag in parameter.opts if flag.startswith("--")]
    flags = ", ".join([*short, *long]) if short else "    " + ", ".join(long)
    others = "".join(f"/{flag}" for flag in parameter.secondary_opts)
    return " ".join(filter(None, [flags + others, _value(parameter)]))


def _value(parameter: Any) -> str:
    """Return the placeholder for an option's value."""
    if parameter.is_flag or parameter.metavar == "":
        return ""
    if parameter.metavar:
        return str(parameter.metavar)
    choices = "|".join(_choices(parameter))
    return choices if 0 < len(choices) <= LONGEST_CHOICE else str(parameter.name).rpartition("_")[2].upper()


def _text(parameter: Any, context: Any) -> Iterator[str]:
    """Yield the help text, the choices if the label does not list them, and the default."""
    yield _plain(parameter.help)
    if (choices := _choices(parameter)) and "|".join(choices) not in _value(parameter):
        yield f"[{', '.join(choices)}]"
    if default := _default(parameter, context):
        yield f"[default: {default}]"


def _choices(parameter: Any) -> list[str]:
    """Return the values that an option accepts, if it has choices; typer before 0.25 keeps them in `type`."""
    for home in ("type_descriptor", "type"):
        if found := getattr(getattr(parameter, home, None), "choices", None):
            return [str(getattr(choice, "value", choice)) for choice in found]
    return []


def _default(parameter: Any, context: Any) -> str:
    """Return the effective default including settings, or nothing if the help text states it."""
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    value = parameter.get_default(context, call=False)
    if value is None or value is False or value == [] or not parameter.show_default or callable(value):
        return "" if value is not False or not parameter.secondary_opts else str(parameter.secondary_opts[0])
    if parameter.is_flag:
        return str(parameter.opts[0])
    values = value if isinstance(value, list | tuple) else [value]
    return ", ".join(str(getattr(each, "value", each)) for each in values)


def _plain(text: str | None) -> str:
    return " ".join((text or "").split())
