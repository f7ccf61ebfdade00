"""One row: what a reader made of it, and the Request that becomes of that."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from batchgen.errors import InputError
from batchgen.formats.row_options import override
from batchgen.records import LONGEST_PROMPT, Request, RowId, SamplingParams

if TYPE_CHECKING:
    from batchgen.formats.templates import Template

MOST_LEVELS = 100
MOST_COLUMNS_SHOWN = 12
PROMPT_FIELDS = ("prompt", "text")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How rows are read: the columns of prompt and id, a template in place of the first, and the files' format."""

    field: str | None = None
    id_field: str | None = None
    template: Template | None = None
    input_format: str | None = None

    @property
    def prompt_fields(self) -> tuple[str, ...]:
        """Where the prompt may be, the likeliest first; nowhere where a template makes it."""
        if self.template:
            return ()
        return PROMPT_FIELDS if self.field is None else (self.field,)

    @property
    def id_name(self) -> str:
        return "id" if self.id_field is None else self.id_field


@dataclass(frozen=True, slots=True)
class Row:
    """One row as a reader saw it, before it has an index.

    `sampling` as it stands there, unchecked; `option_names` says how the row's format spells its keys.
    """

    prompt: str = ""
    id: RowId | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    where: str = ""
    sampling: object = None
    option_names: Mapping[str, str] = field(default_factory=dict)


def to_requests(rows: Iterable[Row], sampling: SamplingParams, first_index: int = 0) -> Iterator[Request]:
    """Rows to Requests: numbers them, gives each its sampling, and marks those that cannot be run."""
    return (_to_request(index, row, sampling) for index, row in enumerate(rows, first_index))


def _to_request(index: int, row: Row, sampling: SamplingParams) -> Request:
    row_id = str(index) if row.id is None else row.id
    where = row.where or f"prompt {index}"
    error = row.error or _unfit(row.prompt, where)
    metadata = row.metadata
    if _is_deeper(metadata, MOST_LEVELS):  # too deep to be written again
        metadata, error = {}, error or f"{where}: nested deeper than {MOST_LEVELS} levels"
    if row.sampling is not None and not error:
        try:
            sampling = override(sampling, row.sampling, row.option_names)
        except ValueError as problem:
            error = f"{row.where}: {problem}"
    prompt = row.prompt if len(row.prompt) <= LONGEST_PROMPT else ""
    return Request(index, row_id, prompt, sampling, metadata, error, row.where)


def _unfit(prompt: str, where: str) -> str | None:
    """Why a prompt is none, whatever the model."""
    if len(prompt) > LONGEST_PROMPT:
        return f"{where}: the prompt has {len(prompt):,} characters, more than {LONGEST_PROMPT:,}"
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"{where}: a lone surrogate (half a character) at character {error.start} of the prompt"
    return None


def row_of_text(text: str, where: str, options: ReadOptions) -> Row:
    """A prompt as it stands; a template sees it as `text` and as `prompt`."""
    if options.template is None:
        return Row(text, where=where)
    try:
        return Row(options.template.render({"text": text, "prompt": text}), where=where)
    except ValueError as problem:
        return Row(text, error=f"{where}: {problem}" if where else str(problem), where=where)


def row_of_object(value: object, where: str, options: ReadOptions | None = None) -> Row:
    """One row with named columns: prompt, id, `sampling`, and the others, which are metadata.

    `where` (file and line) begins the error of a bad one.
    """
    options = options or ReadOptions()
    if not isinstance(value, dict):
        return Row(error=f'{where}: not a JSON object such as {{"prompt": "…"}}', where=where)
    name = next((name for name in options.prompt_fields if name in value), None)
    row_id = value.get(options.id_name)
    metadata = {key: item for key, item in value.items() if key not in (name, options.id_name, "sampling")}
    bad = partial(Row, metadata=metadata, where=where)
    if isinstance(row_id, bool) or not isinstance(row_id, str | int | float | None):
        return bad(error=f"{where}: the id is neither a string nor a number")
    if options.id_field is not None and options.id_field not in value:
        return bad(error=f"{where}: no field {options.id_field} (see --id-field)")
    try:
        prompt = _prompt(value, name, options)
    except ValueError as problem:
        return bad(id=row_id, error=f"{where}: {problem}")
    sampling = None if "sampling" in (name, options.id_name) else value.get("sampling")
    return Row(prompt, row_id, metadata, _unfit(prompt, where), where, sampling)


def _prompt(columns: dict[str, Any], name: str | None, options: ReadOptions) -> str:
    if options.template:
        return options.template.render(columns)
    if name is None:
        raise ValueError(f"no field {' or '.join(options.prompt_fields)} (see --field)")
    prompt = columns[name]
    if not isinstance(prompt, str):
        raise ValueError(f"the field {name} is not a string")
    return prompt


def row_of_cells(columns: dict[str, Any], where: str, options: ReadOptions) -> Row:
    """A row of a table. Its `sampling` may be JSON in a cell; an empty id is none."""
    row_id, sampling = columns.get(options.id_name), columns.get("sampling")
    if row_id == "":
        columns = {**columns, options.id_name: None}
    if isinstance(sampling, str) and "sampling" not in (options.field, options.id_name):
        try:
            columns = {**columns, "sampling": parse_json(sampling) if sampling.strip() else None}
        except ValueError as problem:
            return Row(error=f"{where}: the sampling is not valid JSON: {problem}", where=where)
    return row_of_object(columns, where, options)


def check_columns(columns: list[str], name: str, options: ReadOptions) -> None:
    """Raises `InputError` where no row of a table can have a prompt, an id, or one value for each name."""
    if twice := next((column for column in columns if columns.count(column) > 1), None):
        raise InputError(f"{name} has two columns named {twice!r}: rename one")
    shown = ", ".join(columns[:MOST_COLUMNS_SHOWN]) + ("…" if len(columns) > MOST_COLUMNS_SHOWN else "")
    if options.prompt_fields and not set(options.prompt_fields) & set(columns):
        wanted = " or ".join(options.prompt_fields)
        raise InputError(f"{name} has no column {wanted}, but {shown}: name one with --field, or use --template")
    if options.id_field is not None and options.id_field not in columns:
        raise InputError(f"{name} has no column {options.id_field}, but {shown} (see --id-field)")


def parse_json(text: str) -> Any:
    """One JSON value, and nothing that only Python takes for one.

    Raises `ValueError`, in few words.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(str(error).split(";")[0]) from None  # behind it Python advises programmers


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"the number {digits} is too large")
    return value


def _is_deeper(value: object, levels: int) -> bool:
    """Whether a JSON value is nested deeper than that: writing it would need as much of the stack again."""
    level = [value]
    for _ in range(levels):
        level = [inner for item in level if isinstance(item, dict | list) for inner in _children(item)]
        if not level:
            return False
    return True


def _children(value: dict[str, object] | list[object]) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value
