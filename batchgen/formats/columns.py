"""Choose the columns of a table of results before all rows are known.

They are the fields of a Result, one column for each metadata column of the first row that did not fail, and `metadata`
with whatever else other rows have, as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any

from batchgen.formats.fields import CHAT_FIELDS, LOGPROBS, PARSED, SOURCE, SUM, names_of_fields, to_json, value_of
from batchgen.formats.score_fields import score_dict
from batchgen.records import Result

REST = "metadata"
MOST_HELD = 100  # failed rows that are held until the first good one


@dataclass(frozen=True, slots=True)
class Columns:
    """`own` are fields of a Result, `keys` are metadata keys; cells of a `nested` table can also hold lists."""

    own: tuple[str, ...]
    keys: tuple[str, ...]
    nested: bool = False

    @property
    def names(self) -> list[str]:
        """The column names: as in the input, prefixed with `metadata.` if a Result field has the same name.

        An input's own `source` keeps its name; the Result field is then `batchgen.source`.
        """
        own = list(self.own)
        if SOURCE in self.keys:
            own[own.index(SOURCE)] = next(name for name in _prefixed(f"batchgen.{SOURCE}") if name not in self.keys)
        taken = [*own, REST]
        for key in self.keys:
            while key in taken:
                key = f"{REST}.{key}"
            taken.append(key)
        return [*own, *taken[len(own) + 1 :], REST]

    def values(self, result: Result, fits: Callable[[str, Any], bool] = lambda key, value: True) -> list[Any]:
        """A row of the table. Values without a column, or that do not fit in theirs, go into the last column."""
        placed = {key: value for key in self.keys if fits(key, value := result.metadata.get(key))}
        rest = {key: value for key, value in result.metadata.items() if key not in placed}
        fields = score_dict(result) if result.score else self._generated(result)
        rest |= {name: value for name, value in fields.items() if self._is_left_over(name, value)}
        own = [fields.get(name) for name in self.own]
        return [*own, *(placed.get(key) for key in self.keys), to_json(rest) if rest else None]

    def _generated(self, result: Result) -> dict[str, Any]:
        """The fields with a column, and further ones that a row has if the table began with plain prompts."""
        later: tuple[str, ...] = CHAT_FIELDS if result.messages is not None else ()
        later += () if result.logprobs is None else (SUM, LOGPROBS)
        later += (PARSED,) if result.parsed is not None else ()
        return {name: value_of(result, name) for name in dict.fromkeys((*self.own, *later))}

    def _is_left_over(self, name: str, value: Any) -> bool:
        """Whether a field goes into the last column; tables of text omit each token's log-probabilities."""
        return name not in (*self.own, REST) and value is not None and (self.nested or name != LOGPROBS)


def _prefixed(name: str) -> Iterator[str]:
    """The name, then alternatives in case it is taken."""
    return (f"{'batchgen.' * number}{name}" for number in count())


def choose_columns(
    results: Iterable[Result], *, ids: bool, nested: bool = False, spread: tuple[str, ...] | None = None
) -> tuple[Columns, Iterator[Result]]:
    """The columns of a table, and all of its results. `nested` tables also have each token's log-probability.

    `spread` is the same as `WriteOptions.columns`.
    """
    results = iter(results) if spread is None else spread_fields(results, spread)
    held: list[Result] = []
    for result in results:
        held.append(result)
        if result.error is None or len(held) == MOST_HELD:
            break
    names = _names(held, ids=ids)
    own = tuple(name for name in names if name != REST and (nested or name != LOGPROBS))
    return Columns(own, tuple(held[-1].metadata) if held else (), nested), chain(held, results)


def _names(held: list[Result], *, ids: bool) -> Iterable[str]:
    """The field names of rows. For scored rows they come from the last one held, which succeeded if any did."""
    if held and held[-1].score:
        return score_dict(held[-1])
    is_chat = any(result.messages is not None for result in held)
    has_logprobs = any(result.logprobs is not None for result in held)
    is_json = any(result.is_json for result in held)
    return names_of_fields(ids=ids, is_chat=is_chat, has_logprobs=has_logprobs, is_json=is_json)


def spread_fields(results: Iterable[Result], names: tuple[str, ...]) -> Iterator[Result]:
    """Results with the fields of their parsed object as columns of their own, in the order of `names`.

    Without names, the fields of the first row with an object are used. A field with the name of an input column becomes
    `parsed.NAME`. A parsed value that is not an object stays unchanged.
    """
    results = iter(results)
    held = [] if names else list(_up_to_object(results))
    names = names or next((tuple(result.parsed) for result in held if isinstance(result.parsed, dict)), ())
    return (_spread(result, names) for result in chain(held, results))


def _up_to_object(results: Iterable[Result]) -> Iterator[Result]:
    """The first results, up to and including the first one with an object."""
    for number, result in enumerate(results):
        yield result
        if isinstance(result.parsed, dict) or number == MOST_HELD:
            return


def _spread(result: Result, names: tuple[str, ...]) -> Result:
    if result.parsed is not None and not isinstance(result.parsed, dict):
        return result
    values = dict.fromkeys(names) | (result.parsed or {})
    own = {f"{PARSED}.{name}" if name in result.metadata else name: value for name, value in values.items()}
    return replace(result, metadata={**result.metadata, **own}, parsed=None, is_json=False)


def cell_text(value: Any) -> str:
    """A cell's text: strings unchanged, None as an empty cell, everything else as JSON.
    >>> [cell_text(value) for value in ("a", None, 0.5, True, [1, "b"])]
    ['a', '', '0.5', 'true', '[1, "b"]']
    """
    if value is None:
        return ""
    return value if isinstance(value, str) else to_json(value)
