"""Records of options: what a person is told of a field, and which values it takes.

A command line, a row's `sampling` and the Python API are made from these facts. Knows none of them: errors name fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from typing import Any, get_type_hints

from batchgen.records.constraint import Grammar, JsonSchema, read_expression, read_grammar, read_schema
from batchgen.records.field_error import FieldError

MOST_INT = 2**63 - 1  # what a tensor holds
MOST_BIAS = 100.0  # OpenAI's
LogitBias = tuple[tuple[int, float], ...]  # token ids and what is added to their logits, by id


@dataclass(frozen=True, slots=True)
class Option:
    """What a person is told of a field, and the bounds of its values.

    `value` is what help calls the value (a switch has none), `panel` the heading that it stands under. `none` is the
    word for None. `above` is a lower bound that is itself left out. Where `only_sampled`, greedy decoding has no use
    for it; where `of_run`, rows cannot have their own. With `escapes`, backslashes mean something on a command line.
    """

    help: str
    value: str = ""
    panel: str = ""
    least: float | None = None
    above: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    none: str | None = None
    only_sampled: bool = False
    of_run: bool = False
    escapes: bool = False

    @property
    def interval(self) -> str:
        """The bounds as mathematics writes them, where there are two."""
        low = f"({self.above:g}" if self.above is not None else f"[{self.least:g}"
        return f"{low}, {self.most:g}]"

    def holds(self, number: float) -> bool:
        """Whether a number is within the bounds."""
        is_low = (self.least is not None and number < self.least) or (self.above is not None and number <= self.above)
        return not (is_low or (self.most is not None and number > self.most))


@dataclass(frozen=True, slots=True)
class OptionField:
    """A field of a record, and its option."""

    name: str
    kind: Any
    default: Any
    option: Option


def option(default: Any, help: str, **facts: Any) -> Any:
    """A field of a record that people can set; `facts` are those of `Option`."""
    return field(default=default, metadata={"option": Option(help, **facts)})


def options_of(record: type) -> dict[str, OptionField]:
    """The fields of a record that people can set, by name, in order."""
    kind: Any = record
    return _options_of(kind)


@cache
def _options_of(record: Any) -> dict[str, OptionField]:
    kinds = get_type_hints(record)
    return {
        item.name: OptionField(item.name, kinds[item.name], item.default, item.metadata["option"])
        for item in fields(record)
        if "option" in item.metadata
    }


def values_of(record: Any) -> dict[str, Any]:
    """The options of a record as JSON has them, by name: what its results depend on, to be kept and compared."""
    return {name: _as_json(item.kind, getattr(record, name)) for name, item in options_of(type(record)).items()}


def _as_json(kind: Any, value: Any) -> Any:
    if kind == LogitBias:
        return {str(token): bias for token, bias in value}
    return list(value) if isinstance(value, tuple) else value


def check_values(record: Any) -> None:
    """Checks each option of a new record, and keeps it in its own type: a list as a tuple, 1 as 1.0.

    Raises `FieldError`.
    """
    for name, item in options_of(type(record)).items():
        given = getattr(record, name)
        value = READERS[item.kind](name, given) if item.kind in READERS else given
        _check_bounds(item, value)
        if value is not given:
            object.__setattr__(record, name, value)


def _check_bounds(item: OptionField, value: object) -> None:
    option = item.option
    is_unset = value is None and item.default is None
    if option.choices and value not in option.choices and not is_unset:
        raise FieldError(f"{{{item.name}}} {value} is not one of {', '.join(option.choices)}")
    if isinstance(value, int | float) and not isinstance(value, bool) and not option.holds(value):
        problem = f"less than {option.least:g}" if option.most is None else f"not in {option.interval}"
        raise FieldError(f"{{{item.name}}} {value} is {problem}")


def read_whole(name: str, value: object) -> int:
    """A whole number that a tensor holds, no bool. Raises `FieldError`, as all these do."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise FieldError(f"{{{name}}} must be a whole number such as 20")
    if abs(int(value)) > MOST_INT:
        raise FieldError(f"{{{name}}} is larger than {MOST_INT}")
    return int(value)


def read_number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or value != value:
        raise FieldError(f"{{{name}}} must be a number such as 0.7")
    try:
        return float(value)
    except OverflowError:
        raise FieldError(f"{{{name}}} is larger than {MOST_INT}") from None


def read_switch(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise FieldError(f"{{{name}}} must be true or false")
    return value


def read_texts(name: str, value: object) -> tuple[str, ...]:
    """Texts; one alone is a list of one."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise FieldError(f"{{{name}}} must be a string or a list of strings")
    if not all(texts):
        raise FieldError(f"{{{name}}} needs a non-empty text")
    if any("\ud800" <= sign <= "\udfff" for text in texts for sign in text):
        raise FieldError(f"{{{name}}} has a lone surrogate (half a character)")
    return tuple(texts)


def read_token_ids(name: str, value: object) -> tuple[int, ...]:
    """Token ids, each once; one alone is a list of one."""
    ids = value if isinstance(value, list | tuple) else (value,)
    if not all(_is_token_id(token) for token in ids):
        raise FieldError(f"{{{name}}} must be a token id or a list of token ids (whole numbers of at least 0)")
    return tuple(dict.fromkeys(map(int, ids)))


def _is_token_id(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and 0 <= int(value) <= MOST_INT


def read_bias(name: str, value: object) -> LogitBias:
    """What is added to logits, from token ids (as JSON has keys, too: texts of digits) to numbers."""
    pairs: Iterable[Any] = value.items() if isinstance(value, Mapping) else value  # type: ignore[assignment]
    if not isinstance(value, Mapping | tuple):
        raise FieldError(f'{{{name}}} must map token ids to what is added to their logits, such as {{"50256": -100}}')
    bias: dict[int, float] = {}
    for key, amount in pairs:
        token = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() else key
        if not _is_token_id(token):
            raise FieldError(
                f"{{{name}}} has {str(key)[:40]!r}, which is not a token id: give whole numbers of at least 0"
            )
        bias[int(token)] = number = read_number(name, amount)
        if abs(number) > MOST_BIAS:
            raise FieldError(f"{{{name}}} {number:g} of token {token} is not in [{-MOST_BIAS:g}, {MOST_BIAS:g}]")
    return tuple(sorted(bias.items()))


# How a value of each type is read. Types that are not here are taken as they come.
READERS: dict[Any, Callable[[str, Any], Any]] = {
    int: read_whole,
    float: read_number,
    bool: read_switch,
    tuple[str, ...]: read_texts,
    tuple[int, ...]: read_token_ids,
    LogitBias: read_bias,
    int | None: lambda name, value: None if value is None else read_whole(name, value),
    JsonSchema | None: read_schema,
    Grammar | None: read_grammar,
    str | None: read_expression,
}
