"""Records as parameters of commands: each field of a record becomes an option.

A command declares `sampling: SamplingParams` and gets one made from its flags. Records are those of `batchgen.records`,
whose fields declare how they are set, and dataclasses of the command line with fields annotated for typer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from batchgen.cli.options.values import as_value, to_parameter, with_numbers
from batchgen.records import options_of


class Pick:
    """Which fields of a record a command takes.

    `Annotated[SamplingParams, Pick("seed", seed=1)]` takes only its seed, by default 1.
    """

    def __init__(self, *only: str, without: tuple[str, ...] = (), **defaults: Any) -> None:
        self.only = only
        self.without = without
        self.defaults = defaults

    def takes(self, field: str) -> bool:
        return field not in self.without and (not self.only or field in self.only)


@dataclass(frozen=True, slots=True)
class Group:
    """A record that a command takes, and the parameters made from its fields."""

    record: type
    parameters: tuple[Parameter, ...]

    def make(self, given: dict[str, Any]) -> Any:
        """Make the record from typer's values, removing those that belong to it.

        Raises `FieldError` if values are invalid.
        """
        values = {parameter.name: given.pop(parameter.name) for parameter in self.parameters}
        return self.record(**{name: self._read(name, value) for name, value in values.items() if value is not None})

    def _read(self, name: str, value: Any) -> Any:
        item = options_of(self.record).get(name)
        return as_value(item, value) if item else value


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command for typer, with an option for each field of its records."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[Parameter] = []
    groups: dict[str, Group] = {}
    for parameter in signature(command).parameters.values():
        hint = hints[parameter.name]
        kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if isinstance(kind, type) and is_dataclass(kind):
            pick = next((extra for extra in extras if isinstance(extra, Pick)), Pick())
            groups[parameter.name] = group = Group(kind, tuple(_expand(kind, pick)))
            parameters += group.parameters
        else:
            parameters.append(with_numbers(parameter.replace(annotation=hint, kind=Parameter.KEYWORD_ONLY)))

    @wraps(command)
    def expanded(**given: Any) -> None:
        records = {name: group.make(given) for name, group in groups.items()}
        command(**given, **records)

    vars(expanded)["__signature__"] = Signature(parameters)
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded


def _expand(record: Any, pick: Pick) -> Iterator[Parameter]:
    """Yield a parameter for each field that can be set and that the command takes."""
    hints, options = get_type_hints(record, include_extras=True), options_of(record)
    for field in fields(record):
        default = pick.defaults.get(field.name, field.default)
        if not pick.takes(field.name):
            continue
        if field.name in options:
            yield to_parameter(replace(options[field.name], default=default))
        elif get_origin(hints[field.name]) is Annotated:
            hint = hints[field.name]
            yield with_numbers(Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=hint))
