"""Records of options: the help text of each field, and the values that it accepts.

The command line, a row's `sampling` and the Python API are built from these facts. This module knows none of them:
errors name fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from typing import Any, get_type_hints

from batchgen.records.constraint import Grammar, JsonSchema, read_expression, read_grammar, read_schema
from batchgen.records.field_error import FieldError

MOST_INT = 2**63 - 1  # the largest number in an int64 tensor
MOST_BIAS = 100.0  # as in OpenAI's API
LogitBias = tuple[tuple[int, float], ...]  # (token id, what is added to its logit), sorted by id


@dataclass(frozen=True, slots=True)
class Option:
    """The help text of a field, and the limits of its values.

    `value` is the placeholder in the help (switches have none), `panel` the heading in the help. `none` is the word for
    None. `above` is an exclusive lower bound, `least` and `most` are inclusive. With `only_sampled`, the option has no
    effect in greedy decoding; with `of_run`, rows cannot have their own value. With `escapes`, backslash escapes are
    interpreted on the command line.
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
        """The bounds in interval notation; only for options with a lower and an upper bound."""
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
    """Declare a field of a record that users can set; `facts` are further fields of `Option`."""
    return field(default=default, metadata={"option": Option(help, **facts)})


def options_of(record: type) -> dict[str, OptionField]:
    """The fields of a record that users can set, by name, in order."""
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
    """The options of a record as JSON values, by name: what results depend on, to be stored and compared."""
    return {name: _as_json(item.kind, getattr(record, name)) for name, item in options_of(type(record)).items()}


def _as_json(kind: Any, value: Any) -> Any:
    if kind == LogitBias:
        return {str(token): bias for token, bias in value}
    return list(value) if isinstance(value, tuple) else value


def check_values(record: Any) -> None:
    """Check each option of a new record, and convert it to the field's type: a list to a tuple, 1 to 1.0.

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
    """Read a whole number that fits in an int64 tensor, not a bool. Raises `FieldError`, as all readers here do."""
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
    """Read a list of texts; a single text is a list of one."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise FieldError(f"{{{name}}} must be a string or a list of strings")
    if not all(texts):
        raise FieldError(f"{{{name}}} needs a non-empty text")
    if any("\ud800" <= sign <= "\udfff" for text in texts for sign in text):
        raise FieldError(f"{{{name}}} has a lone surrogate (half a character)")
    return tuple(texts)


def read_token_ids(name: str, value: object) -> tuple[int, ...]:
    """Read a list of token ids without duplicates; a single id is a list of one."""
    ids = value if isinstance(value, list | tuple) else (value,)
    if not all(_is_token_id(token) for token in ids):
        raise FieldError(f"{{{name}}} must be a token id or a list of token ids (whole numbers of at least 0)")
    return tuple(dict.fromkeys(map(int, ids)))


def _is_token_id(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and 0 <= int(value) <= MOST_INT


def read_bias(name: str, value: object) -> LogitBias:
    """Read what is added to logits: a mapping from token ids (or strings of digits, as JSON keys are) to numbers."""
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


# The reader for each type. Values of other types are used unchanged.
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
