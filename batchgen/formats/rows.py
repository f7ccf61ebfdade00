"""One row as a reader returns it, and the Request made from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchgen.errors import InputError, UsageError
from batchgen.formats.column_names import row_has
from batchgen.formats.json_values import OBJECT_BYTES, is_deeper, parse_json
from batchgen.formats.messages import BESIDE, CHAT_FIELDS, from_cells, looks_like_messages, read_conversation
from batchgen.formats.row_options import override, with_choices
from batchgen.formats.scored_rows import check_is_clear
from batchgen.formats.seen_ids import Occurrences
from batchgen.records import LONGEST_PROMPT, Conversation, Request, RowId, SamplingParams

if TYPE_CHECKING:
    from batchgen.formats.templates import Template

MOST_LEVELS = 100
PROMPT_FIELDS = ("prompt", "text")
REPLACED = "\ufffd"  # replaces bytes that are not UTF-8


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How rows are read: the columns of the prompt and the id, a template instead of a prompt column, the files'
    format, the delimiter of CSV and TSV, whether each whole file is a prompt, whether rows are to be scored, and the
    column with each row's choices.
    """

    field: str | None = None
    id_field: str | None = None
    template: Template | None = None
    input_format: str | None = None
    delimiter: str | None = None
    whole_files: bool = False
    scores: bool = False
    choices_field: str | None = None

    def finds_prompt(self, columns: Iterable[str]) -> bool:
        """Whether a table with these columns certainly contains prompts."""
        if self.template:
            return bool(self.template.columns) and self.template.columns <= set(columns)
        return not set(self.prompt_names).isdisjoint(columns)

    def nearly_finds_prompt(self, columns: Iterable[str]) -> str | None:
        """The first column whose name differs from the prompt's only in case and surrounding space, or None."""
        names = set() if self.template else {name.lower() for name in self.prompt_names}
        return next((column for column in columns if column.strip().lower() in names), None)

    @property
    def prompt_names(self) -> tuple[str, ...]:
        """Fields that mark a row as a prompt."""
        return (*PROMPT_FIELDS, *CHAT_FIELDS) if self.field is None else (self.field,)

    @property
    def prompt_fields(self) -> tuple[str, ...]:
        """The fields that may hold the prompt, most likely first; empty if a template makes the prompt."""
        if self.template:
            return ()
        return PROMPT_FIELDS if self.field is None else (self.field,)

    def find_field(self, columns: Mapping[str, Any]) -> str | None:
        """The column with the row's messages or prompt, or None. Messages take precedence."""
        if self.field is None and not self.template:
            for name in CHAT_FIELDS:
                is_only = name in columns and not any(field in columns for field in PROMPT_FIELDS)
                if is_only or isinstance(columns.get(name), list) or looks_like_messages(columns.get(name)):
                    return name
        return next((name for name in self.prompt_fields if name in columns), None)

    @property
    def id_name(self) -> str:
        return "id" if self.id_field is None else self.id_field


def read_delimiter(given: str | None) -> str | None:
    r"""Read a delimiter as users write it.
    >>> read_delimiter(";"), read_delimiter(r"\t")
    (';', '\t')
    """
    return {r"\t": "\t", "tab": "\t"}.get(given, given) if given is not None else None


def check_read_options(options: ReadOptions, name: Callable[[str], str]) -> None:
    """Raise `UsageError` for options that conflict; `name` gives the displayed name of a field."""
    delimiter = options.delimiter
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0'):
        raise UsageError(f"{name('delimiter')} {delimiter!r} is not a single separator character such as ;")
    if delimiter is not None and options.input_format not in (None, "csv", "tsv"):
        raise UsageError(f"{name('delimiter')} only works with CSV and TSV, not with {options.input_format}")
    if not options.whole_files:
        return
    columns = {"field": options.field, "id_field": options.id_field, "delimiter": delimiter}
    columns["choices_field"] = options.choices_field
    if given := next((field for field, value in columns.items() if value is not None), None):
        raise UsageError(f"{name(given)} selects a column, and with {name('whole_files')} a file has no columns")
    if options.input_format not in (None, "text"):
        raise UsageError(f"{name('whole_files')} reads text, not {options.input_format}: remove one")


@dataclass(frozen=True, slots=True)
class Row:
    """One row as read, before it has an index.

    `error` says what is wrong with it, without its location, which is in `source` (file and line), or in `place` if it
    has no file. `sampling` is unchecked; `option_names` maps our option names to the keys of the row's format.
    `num_bytes` is the approximate memory of its columns.
    """

    prompt: str = ""
    id: RowId | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    source: str | None = None
    sampling: object = None
    option_names: Mapping[str, str] = field(default_factory=dict)
    num_bytes: int = 0
    place: str | None = None
    conversation: Conversation | None = None
    endpoint: str | None = None
    beside: dict[str, Any] = field(default_factory=dict)


def to_requests(
    rows: Iterable[Row], sampling: SamplingParams, first_index: int = 0, occurrences: Sequence[int] | None = None
) -> Iterator[Request]:
    """Turn rows into Requests: number them, set each one's sampling, and mark those that cannot run.

    A row without an id gets its index as text. A failed row gets no id: it may have had one that could not be read, and
    its index may be another row's id. If these rows are part of a run, `occurrences` gives how many earlier rows have
    each row's id; an empty sequence means none.
    """
    counts = Occurrences()
    for place, row in enumerate(rows):
        index = first_index + place
        if occurrences is None:
            yield _to_request(index, row, sampling, counts.next(index, row.id))
        else:
            yield _to_request(index, row, sampling, occurrences[place] if occurrences else 0)


def _to_request(index: int, row: Row, sampling: SamplingParams, occurrence: int) -> Request:
    error, metadata = row.error or _unfit(row.prompt), row.metadata
    if is_deeper(metadata, MOST_LEVELS):  # too deep to be written
        metadata, error = {}, error or f"nested deeper than {MOST_LEVELS} levels"
    if row.sampling is not None and not error:
        try:
            sampling = override(sampling, row.sampling, row.option_names)
        except ValueError as problem:
            error = str(problem)
    place = row.source or row.place or f"prompt {index}"
    return Request(
        index=index,
        id=str(index) if row.id is None and not error else row.id,
        prompt=row.prompt if len(row.prompt) <= LONGEST_PROMPT else "",
        sampling=sampling,
        metadata=metadata,
        error=f"{place}: {error}" if error else None,
        source=row.source,
        num_bytes=row.num_bytes,
        conversation=row.conversation,
        endpoint=row.endpoint,
        occurrence=occurrence,
        beside=row.beside,
    )


def _unfit(prompt: str) -> str | None:
    """Why a prompt is invalid for every model, or None."""
    if len(prompt) > LONGEST_PROMPT:
        return f"the prompt has {len(prompt):,} characters, more than {LONGEST_PROMPT:,}"
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"a lone surrogate (half a character) at character {error.start} of the prompt"
    return None


def row_of_text(text: str, source: str | None, options: ReadOptions) -> Row:
    """A row with a plain prompt; a template sees it as `text` and as `prompt`."""
    if options.template is None:
        return Row(text, source=source)
    try:
        return Row(options.template.render({"text": text, "prompt": text}), source=source)
    except ValueError as problem:
        return Row(text, error=str(problem), source=source)


def check_template(name: str, options: ReadOptions) -> None:
    """Raise `InputError` if a template needs a column that plain text does not have."""
    if options.template and (missing := sorted(options.template.columns - {"text", "prompt"})):
        used = f"{options.template.name} uses {' and '.join(missing)}"
        raise InputError(f"{name} is plain text, with the columns text and prompt only, and {used}")


def row_of_object(
    value: object, source: str | None = None, options: ReadOptions | None = None, num_bytes: int = 0
) -> Row:
    """A row from an object: prompt, id, `sampling`, and all others, which are metadata."""
    if not isinstance(value, dict):
        return Row(error='not a JSON object such as {"prompt": "…"}', source=source)
    return row_of_columns(value, source, options or ReadOptions(), num_bytes=num_bytes)


def row_of_columns(
    columns: dict[str, Any], source: str | None, options: ReadOptions, *, problem: str | None = None, num_bytes: int = 0
) -> Row:
    """A row from named columns; with a `problem`, a bad row that keeps the id and columns that could be read."""
    name = options.find_field(columns)
    is_chat = name is not None and not options.template and (name in CHAT_FIELDS or _has_objects(columns[name]))
    row_id, bad_id = _read_id(columns, options, is_whole=problem is None)
    taken = (name, options.id_name, "sampling", *(BESIDE if is_chat else ()))
    metadata = {key: item for key, item in columns.items() if key not in taken}
    unread = {options.id_name} if bad_id and options.id_name in columns else set()
    problem = problem or bad_id
    prompt, conversation = "", None
    sampling = None if "sampling" in (name, options.id_name) else columns.get("sampling")
    try:
        if is_chat and name is not None:
            conversation = read_conversation(columns, name)
        else:
            prompt = _prompt(columns, name, options)
        sampling = with_choices(sampling, columns, options.choices_field)
    except ValueError as error:
        problem = problem or str(error)
        unread |= {name or ""} if conversation is None and not prompt else set()
    metadata |= {key: columns[key] for key in unread & columns.keys()}
    return Row(
        prompt, row_id, metadata, problem, source, sampling, num_bytes=num_bytes, conversation=conversation,
        beside={} if is_chat else _beside(metadata, options),
    )  # fmt: skip


def _beside(metadata: dict[str, Any], options: ReadOptions) -> dict[str, Any]:
    """The columns that a chat template uses, except those that the prompt's own template has used."""
    used = options.template.columns if options.template else frozenset()
    return {key: metadata[key] for key in BESIDE if metadata.get(key) is not None and key not in used}


def _has_objects(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _read_id(columns: dict[str, Any], options: ReadOptions, *, is_whole: bool) -> tuple[RowId | None, str | None]:
    """A row's own id, and what is wrong with it, if anything."""
    row_id = columns.get(options.id_name)
    if isinstance(row_id, bool) or not isinstance(row_id, str | int | float | None):
        return None, "the id is neither a string nor a number"
    if options.id_field is not None and options.id_field not in columns:
        return None, f"no field {options.id_field} (see --id-field)"
    if not is_whole and isinstance(row_id, str) and REPLACED in row_id:
        return None, None
    return row_id, None


def _prompt(columns: dict[str, Any], name: str | None, options: ReadOptions) -> str:
    if options.template:
        try:
            return options.template.render(columns)
        except ValueError as problem:
            is_lacking = not options.template.columns <= columns.keys()
            raise ValueError(f"{problem}{row_has(columns)}" if is_lacking else str(problem)) from None
    if name is None:
        raise ValueError(f"no field {' or '.join(options.prompt_fields)} (see --field){row_has(columns)}")
    if options.scores and options.field is None:
        check_is_clear(columns)
    prompt = columns[name]
    if not isinstance(prompt, str):
        raise ValueError(f"the field {name} is not a string")
    return prompt


def row_of_cells(
    columns: dict[str, Any], source: str, options: ReadOptions, *, problem: str | None = None, num_bytes: int = 0
) -> Row:
    """A row of a table. Its messages and `sampling` may be JSON in a cell; an empty id counts as no id."""
    row_id, sampling = columns.get(options.id_name), columns.get("sampling")
    if row_id == "":
        columns = {**columns, options.id_name: None}
    if isinstance(sampling, str) and "sampling" not in (options.field, options.id_name):
        try:
            columns = {**columns, "sampling": parse_json(sampling) if sampling.strip() else None}
        except ValueError as error:
            problem = problem or f"the sampling is not valid JSON: {error}"
    name = options.find_field(columns)
    if name in CHAT_FIELDS or (name is not None and looks_like_messages(columns[name])):
        try:
            columns = from_cells(columns, name)
        except ValueError as error:
            problem = problem or str(error)
    return row_of_columns(columns, source, options, problem=problem, num_bytes=num_bytes)


def weigh_cells(cells: Iterable[str]) -> int:
    """The approximate bytes that the cells of a row take."""
    return sum(len(cell) + OBJECT_BYTES for cell in cells)
