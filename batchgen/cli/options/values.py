"""Values on the command line: how a record's field is written as an option and read back from text."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import copy
from inspect import Parameter
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.models import ParameterInfo

from batchgen.cli.options.constraint import read_grammar_file, read_schema_argument
from batchgen.cli.options.escapes import read_escapes
from batchgen.cli.settings import flag_of
from batchgen.machine.limits import MemoryLimit, parse_memory
from batchgen.records.constraint import Grammar, JsonSchema
from batchgen.records.json_object import object_of_members
from batchgen.records.options import MOST_INT, LogitBias, Option, OptionField

# Flags with other names than their parameters.
OTHER_FLAGS = {"output": "-o", "chat_template_args": "--chat-template-arg"}
# Types with a text format of their own.
READERS: dict[Any, Callable[[str], Any]] = {
    MemoryLimit: parse_memory,
    JsonSchema: read_schema_argument,
    Grammar: read_grammar_file,
}


def read_bias(text: Any) -> dict[str, Any]:
    """Parse token ids and biases from one text: `50256=-100`, or a JSON object of them.

    >>> read_bias("13=2.5"), read_bias('{"13": 2.5, "7": -1}')
    ({'13': 2.5}, {'13': 2.5, '7': -1})
    """
    if isinstance(text, dict):
        return text
    token, is_pair, bias = str(text).partition("=")
    try:
        read = {token.strip(): float(bias)} if is_pair else json.loads(text, object_pairs_hook=object_of_members)
    except ValueError:
        read = None
    if not isinstance(read, dict):
        raise typer.BadParameter(f'{text!r} is neither ID=BIAS nor a JSON object such as {{"50256": -100}}')
    return read


def flag_of_parameter(text: str) -> str:
    """Return the flag of a parameter of the Python functions, as messages mention it.

    >>> flag_of_parameter("overwrite=True"), flag_of_parameter("output")
    ('--overwrite', '-o')
    """
    name = text.removesuffix("=True")
    return OTHER_FLAGS.get(name) or flag_of(name)


def to_parameter(item: OptionField) -> Parameter:
    """Return the command parameter for a field of a record."""
    option, default, names = item.option, item.default, []
    kind = _alone(item.kind)
    facts: dict[str, Any] = {"metavar": option.value, "help": option.help, "rich_help_panel": option.panel}
    if kind is bool:
        names = [flag_of(item.name) + (f"/--no-{flag_of(item.name)[2:]}" if default else "")]
    elif get_origin(kind) is tuple:
        kind, default = list[int] | None if int in get_args(kind) else list[str] | None, list(default) or None
        facts["allow_from_autoenv"] = False  # typer would split a list at spaces
        facts["callback"] = read_escapes if option.escapes else None
        facts["parser"] = read_bias if item.kind == LogitBias else None
    elif option.choices:
        kind = Literal[option.choices]
        del facts["metavar"]
    elif option.none:
        facts["parser"] = _number_or_word(option)
        default = option.none if default is None else default
    elif kind in READERS:
        facts["parser"] = READERS[kind]
    elif kind in (int, float) and option.most is None:
        facts["min"] = option.least
    info = typer.Option(*names, **facts)
    return with_numbers(Parameter(item.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]))


def _alone(kind: Any) -> Any:
    """Return a type without its None."""
    others = [part for part in get_args(kind) if part is not type(None)]
    return others[0] if type(None) in get_args(kind) else kind


def as_value(item: OptionField, given: Any) -> Any:
    """Convert typer's value to what the record takes."""
    if item.kind == LogitBias:
        return {token: bias for part in given for token, bias in part.items()}
    return given


def with_numbers(parameter: Parameter) -> Parameter:
    """Return the parameter with a number parser that gives plain error messages."""
    kind, *extras = get_args(parameter.annotation) if get_origin(parameter.annotation) is Annotated else (None,)
    info = next((extra for extra in extras if isinstance(extra, ParameterInfo)), None)
    plain = _alone(kind)
    plain = get_args(plain)[0] if get_origin(plain) is list else plain
    if info is None or info.parser or plain not in (int, float):
        return parameter
    info = copy(info)
    info.parser = _number(plain, info.min)
    return parameter.replace(annotation=Annotated[kind, info])


def _number(kind: type, least: float | None) -> Callable[[Any], Any]:
    def read(text: Any) -> Any:
        try:
            number = kind(text)
        except ValueError:
            noun = "whole number" if kind is int else "number"
            raise typer.BadParameter(f"{text!r} is not a {noun}") from None
        if kind is int and abs(number) > MOST_INT:
            raise typer.BadParameter(f"{text} is larger than {MOST_INT}")
        if least is not None and number < least:
            raise typer.BadParameter(f"{text} is less than {least:g}")
        return number

    return read


def _number_or_word(option: Option) -> Callable[[Any], int | None]:
    """Return a parser for a whole number of at least `least`, or the word for None."""

    def read(text: Any) -> int | None:
        if text == option.none:
            return None
        if str(text).isascii() and str(text).isdigit() and int(text) >= (option.least or 0):
            return int(text)
        raise typer.BadParameter(f"{text!r} is neither {option.none} nor a whole number of at least {option.least:g}")

    return read
