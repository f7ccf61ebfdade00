"""Settings from files and the environment as typer's defaults: flags > BATCHGEN_* > files > defaults."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import typer

from batchgen.cli.config_files import Setting, config_files, read_settings
from batchgen.cli.hints import either, near_options
from batchgen.errors import UsageError

ENVIRONMENT = "BATCHGEN"  # BATCHGEN_MAX_NEW_TOKENS sets --max-new-tokens of every command that has it
SETTINGS = "batchgen.settings"  # key in a context's `meta`: the settings in effect, by command and option
NOTES = "batchgen.notes"  # likewise: lines about how options were read
SCREEN = "batchgen.screen"  # likewise: the command's screen
OTHER_VARIABLES = {"BATCHGEN_TRACEBACK"}
NOT_A_SWITCH = "the value must be true or false"


def flag_of(field: str) -> str:
    """Return the flag of a field.

    >>> flag_of("top_p")
    '--top-p'
    """
    return "--" + field.replace("_", "-")


def apply_settings(context: Any, commands: Mapping[str, Any]) -> None:
    """Make the files' settings the commands' defaults.

    Raises `UsageError` naming file and key if no command has the key, or if the value has the wrong type.
    """
    settings = read_settings(config_files(), set(commands))
    # Reading a command's options imports it.
    options = {name: _options(command) for name, command in commands.items()} if settings else {}
    in_force: dict[str, dict[str, Setting]] = {name: {} for name in commands}
    defaults: dict[str, dict[str, Any]] = {name: {} for name in commands}
    # In the order of the files; within a file, a command's own table follows the settings for all commands.
    for setting in settings:
        found = [name for name in commands if setting.command in (None, name) and setting.key in options[name]]
        if not found:
            raise UsageError(f"{setting.place}: unknown option{_of(setting.command)}{_meant(setting, options)}")
        for name in found:
            option = options[name][setting.key]
            defaults[name][option.name] = _as_given(setting, option)
            in_force[name][option.name] = setting
    context.default_map = defaults
    context.meta[SETTINGS] = in_force


def _options(command: Any) -> dict[str, Any]:
    """Return a command's options, keyed by their long flags without the dashes."""
    return {
        flag.removeprefix("--"): parameter
        for parameter in command.params
        for flag in parameter.opts
        if flag.startswith("--") and flag not in ("--help", "--version")
    }


def _meant(setting: Setting, options: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a hint for a key that no command has; often empty."""
    tables = options if setting.command is None else {setting.command: options[setting.command]}
    keys = {key for table in tables.values() for key in table}
    if isinstance(setting.value, dict):
        near = [f"[{name}]" for name in get_close_matches(setting.key, list(options), n=1)]
    elif setting.key.removeprefix("no-") in keys:
        near = [f"{setting.key.removeprefix('no-')} = {str(setting.value is False).lower()}"]
    else:
        near = [flag.removeprefix("--") for flag in near_options(f"--{setting.key}", [f"--{key}" for key in keys])]
    return " ".join(["", *_did_you_mean(near)])


def _did_you_mean(near: Iterable[str]) -> list[str]:
    return [f"(did you mean {either(found)}?)"] if (found := sorted(near)) else []


def _of(command: str | None) -> str:
    return f" of {command}" if command else ""


def _as_given(setting: Setting, option: Any) -> Any:
    """Return the value as the command line would pass it, so that it is checked in the same way."""
    value = setting.value
    if option.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{setting.place}: {NOT_A_SWITCH}")
        return value
    values = value if isinstance(value, list) and option.multiple else [value]
    if not all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in values):
        raise UsageError(
            f"{setting.place}: the value must be a text or a number{', or a list of them' if option.multiple else ''}"
        )
    return [str(item) for item in values] if option.multiple else str(value)


def explain_setting(error: typer.BadParameter) -> str | None:
    """Explain an invalid value that comes from a file or the environment; return None for other values."""
    if error.ctx is None or error.param is None or error.param.name is None:
        return None
    name = error.param.name
    setting = _settings(error.ctx).get(name)
    place = (
        setting.place
        if setting
        else f"{ENVIRONMENT}_{name.upper()}"
        if came_from(error.ctx, name, "ENVIRONMENT")
        else ""
    )
    reason = (
        NOT_A_SWITCH
        if getattr(error.param, "is_flag", False)
        else error.message.removeprefix("Value error, ").rstrip(".")
    )
    return f"{place}: {reason}" if place else None


def unknown_variables(context: Any, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return warnings about BATCHGEN_* variables without effect: unknown ones, and those of repeatable options."""
    given = {name for name in environ if name.startswith(f"{ENVIRONMENT}_")} - OTHER_VARIABLES
    mine = _variables(context.command)
    unread = given - {name for name, is_read in mine.items() if is_read}
    if not unread:
        return []
    all_of_them = [_variables(command) for name, command in context.parent.command.commands.items() if name != "help"]
    known = {name: any(each.get(name, False) for each in all_of_them) for each in all_of_them for name in each}
    return [line for name in sorted(unread) if (line := _useless(name, known))]


def _variables(command: Any) -> dict[str, bool]:
    """Map the variables of a command's options to whether they are read: those of repeatable options are not."""
    return {_variable(key): option.allow_from_autoenv for key, option in _options(command).items()}


def _useless(name: str, known: Mapping[str, bool]) -> str | None:
    """Return a warning about a variable that the command does not read; None if another command reads it."""
    if name in known:
        return None if known[name] else f"{name} has no effect: give {_flag(name)} on the command line"
    near = map(_variable, near_options(_flag(name), [_flag(other) for other, is_read in known.items() if is_read]))
    return " ".join([f"{name} has no effect: there is no such option", *_did_you_mean(near)])


def _variable(flag: str) -> str:
    return f"{ENVIRONMENT}_{flag.removeprefix('--').upper().replace('-', '_')}"


def _flag(variable: str) -> str:
    return flag_of(variable.removeprefix(f"{ENVIRONMENT}_").lower())


def tell_settings(context: typer.Context, quiet: bool) -> bool:
    """Report on stderr what comes from files and how options were read, unless `--quiet` is given.

    If `--quiet` itself comes from a file, the files are still reported, so that a file cannot hide itself. This is the
    callback of `--quiet`, the last of a command's options, so all others are known by then.
    """
    from batchgen.render.screen import Screen

    screen = Screen(as_json=context.params.get("progress") == "json")
    context.meta[SCREEN] = screen
    in_force = _settings(context)
    files = list(dict.fromkeys(setting.file for setting in in_force.values()))
    for file in [] if quiet and "quiet" not in in_force else files:
        keys = ", ".join(setting.key for setting in in_force.values() if setting.file == file)
        screen.say(f"settings from {file}: {keys}")
    for line in [] if quiet else [*unknown_variables(context), *context.meta.get(NOTES, [])]:
        screen.say(line)
    screen.quiet = quiet
    return quiet


def note(context: Any, line: str) -> None:
    """Keep a line to be reported once all options are known."""
    context.meta.setdefault(NOTES, []).append(line)


def _settings(context: Any) -> dict[str, Setting]:
    """Return the options that a command takes from files."""
    settings: dict[str, Setting] = context.meta.get(SETTINGS, {}).get(context.command.name, {})
    return {name: setting for name, setting in settings.items() if came_from(context, name, "DEFAULT_MAP")}


def came_from(context: Any, name: str, source: str) -> bool:
    """Whether an option's value comes from `source`: `COMMANDLINE`, `ENVIRONMENT` or `DEFAULT_MAP`."""
    return getattr(context.get_parameter_source(name), "name", None) == source
