"""Choose a source's format: the one given, otherwise the one of its suffix, otherwise a guess, which is reported.

Content that parses as JSON, looks like a table, or is binary is never read as lines of text.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from dataclasses import dataclass
from typing import Any, Literal

from batchgen.errors import InputError
from batchgen.formats.binary import refuse_binary, refuse_packing
from batchgen.formats.column_names import MOST_COLUMNS_SHOWN
from batchgen.formats.content import UTF8_BOM, Content
from batchgen.formats.delimited import DELIMITERS, name_columns, split_tsv
from batchgen.formats.json_values import LENIENT, WHITESPACE, read_members
from batchgen.formats.openai_batch import is_openai_batch
from batchgen.formats.rows import ReadOptions
from batchgen.records import LONGEST_ROW

WHOLE = "whole"  # each file is one prompt
PARQUET_MAGIC = b"PAR1"
OTHERWISE = "(to change that, use --input-format)"
EACH_LINE = 64  # lines that are checked one by one; after that, whenever the data has doubled
SAMPLED_LINES = 20
TABLES = {
    ",": ("csv", "CSV"), "\t": ("tsv", "TSV"), ";": ("csv", "CSV separated by semicolons"),
    "|": ("csv", "CSV separated by vertical bars"),
}  # fmt: skip
OPENINGS = ("{", "[", "[{")  # first lines of a JSON document printed over several lines
Look = Literal["jsonl", "openai-batch", "json", "array and more", "text", "more"]


def choose_format(content: Content, form: str | None, options: ReadOptions) -> str:
    """The format given in the options, otherwise the one of its suffix (`form`), otherwise a guess by its beginning.

    Raises a one-line `InputError` for content that cannot be prompts.
    """
    if options.whole_files:
        return WHOLE
    if options.input_format is not None:
        return options.input_format
    if form == "parquet" or (form is None and content.start().startswith(PARQUET_MAGIC)):
        return "parquet"
    refuse_packing(content)
    refuse_binary(content, is_table=form not in (None, "text"))
    if form == "jsonl":
        return _jsonl_or_batch(content)
    if form not in (None, "json"):
        return str(form)
    if form is None and options.delimiter is not None:
        return "csv"
    return _guess(content, form, options)


def _jsonl_or_batch(content: Content) -> str:
    """Decide by the first line whether JSON Lines are OpenAI Batch requests or ordinary rows."""
    members = read_members((content.peek_row() or b"").decode("utf-8", "replace"))
    return "openai-batch" if is_openai_batch(members) else "jsonl"


def _guess(content: Content, form: str | None, options: ReadOptions) -> str:
    look = look_at_json(content)
    if look in ("jsonl", "openai-batch"):
        return look
    if look == "json" or form == "json":
        return "json"
    if look == "array and more":
        raise InputError(
            f"{content.name} begins with a JSON array and continues after it: set --input-format to text, json or jsonl"
        )
    if table := _table(content, options):
        return table
    _say_broken_json(content, options)
    return "jsonl" if options.field is not None or options.id_field is not None else "text"


# JSON.


def look_at_json(content: Content) -> Look:
    """Decide whether a source is JSON, and which kind, by its first line or, if needed, by up to 8 MiB of it."""
    taken = bytearray()
    num_lines = next_look = 0
    look: Look = "more"
    while look == "more":
        line = content.read_line(LONGEST_ROW - len(taken))
        taken += line
        num_lines += 1
        is_all = not line or len(taken) == LONGEST_ROW
        if is_all or num_lines <= EACH_LINE or len(taken) >= next_look:
            next_look = 2 * len(taken)
            look = _look(bytes(taken), at_end=not line, is_all=is_all)
    content.put_back(bytes(taken))
    return look


def _look(taken: bytes, *, at_end: bool, is_all: bool) -> Look:
    """Judge the beginning of a source; with `at_end` it is complete, with `is_all` nothing more will be read."""
    text = taken.removeprefix(UTF8_BOM).decode("utf-8", "replace").lstrip(WHITESPACE)
    if not text.startswith(("{", "[")):
        return "text" if text or is_all else "more"
    try:
        value, end = LENIENT.raw_decode(text)
    except json.JSONDecodeError as error:
        return _look_at_break(text, error, at_end=at_end, is_all=is_all)
    except (ValueError, RecursionError):  # a number or nesting that Python cannot handle: the row's error will say so
        return "jsonl" if text.startswith("{") else "text"
    behind = text[end:]
    if isinstance(value, dict):
        return _look_behind_object(value, "\n" in text[:end], behind, at_end=at_end, is_all=is_all)
    if not behind.strip(WHITESPACE):
        return "json" if is_all else "more"
    has_line = "\n" in behind and not behind.split("\n", 1)[0].strip(WHITESPACE)
    return "array and more" if value and has_line else "text"


def _look_behind_object(value: dict[str, Any], is_tall: bool, behind: str, *, at_end: bool, is_all: bool) -> Look:
    line, _, _ = behind.partition("\n")
    rest = behind.lstrip(WHITESPACE)
    if not is_tall and (not line.strip(WHITESPACE) or line.lstrip(WHITESPACE).startswith("{")):
        return "openai-batch" if is_openai_batch(value) else "jsonl"
    if not rest:
        return "json" if is_all else "more"
    return "json" if is_tall and rest.startswith("{") else "text"


def _look_at_break(text: str, error: json.JSONDecodeError, *, at_end: bool, is_all: bool) -> Look:
    """Judge an error in JSON. Tokens never span lines, so more lines only help if the text is cut off at the end."""
    is_cut = not text[error.pos :].strip(WHITESPACE)
    if not is_all:
        return "more" if is_cut else "text"
    if at_end:
        return "text"
    if "\n" not in text:  # a line that is longer than a row
        return "jsonl" if text.startswith("{") else "json"
    return "json" if is_cut or error.msg.startswith("Unterminated") else "text"


def _say_broken_json(content: Content, options: ReadOptions) -> None:
    """Warn that a source which begins like JSON is read as text: it may be prompts about JSON, or JSON with a typo."""
    start = content.peek_line()
    if start.strip().decode("utf-8", "replace") in OPENINGS:
        start = b"".join(content.peek_lines(len(OPENINGS)))
    names = "|".join(map(re.escape, options.prompt_names))
    if re.match(rf"""[\s\x1e\[]*\{{\s*(["']?)({names})\1\s*:""", start.decode("utf-8", "replace")):
        content.say(
            f"{content.name} is read as text, although it begins like JSON: it is not valid JSON; "
            "to read it as such, and see where it is broken, add --input-format jsonl (or json)"
        )


# Tables.


@dataclass(frozen=True, slots=True)
class _Sample:
    """The first rows of a source, as cells of a table with `delimiter`."""

    delimiter: str
    columns: list[str]
    rows: list[list[str]]

    @property
    def fits(self) -> bool:
        """Whether all rows have as many cells as the header; a one-column table must be CSV with at least one row."""
        fits = all(len(row) == len(self.columns) for row in self.rows)
        return fits and (len(self.columns) > 1 or (self.delimiter == "," and bool(self.rows)))


def _table(content: Content, options: ReadOptions) -> str | None:
    """The format of a table, if its header has the prompt's column and all rows have as many cells; otherwise None."""
    start, _, behind = content.peek_line().partition(b"\r")
    header = _read_samples(start)
    if not any(options.finds_prompt(sample.columns) for sample in header):  # so a slow pipe of text need not wait
        _say_other_case(content, header, options)
        return None
    if behind.strip():
        raise InputError(f"{content.name} ends lines with a carriage return alone: convert it with `tr '\\r' '\\n'`")
    lines = content.peek_lines(SAMPLED_LINES)
    for sample in _read_samples(*lines, is_cut=len(lines) == SAMPLED_LINES):
        if not options.finds_prompt(sample.columns):
            continue
        form, called = TABLES[sample.delimiter]
        columns = ", ".join(sample.columns[:MOST_COLUMNS_SHOWN])
        if not sample.fits:
            if len(sample.columns) > 1 and all(map(_is_name, sample.columns)):
                content.say(
                    f"{content.name} is read as text, although it begins like {called} (columns {columns}): "
                    f"its lines have different numbers of cells; to read it as such, add --input-format {form}"
                )
            continue
        if sample.delimiter not in DELIMITERS.values():
            raise InputError(f"{content.name} looks like {called}: add --delimiter '{sample.delimiter}'")
        content.say(f"{content.name} is read as {called}, with the columns {columns} {OTHERWISE}")
        return form
    return None


def _say_other_case(content: Content, header: list[_Sample], options: ReadOptions) -> None:
    """Warn that a table is read as text because the prompt's column differs in case."""
    for sample in header:
        if len(sample.columns) > 1 and (column := options.nearly_finds_prompt(sample.columns)):
            form, called = TABLES[sample.delimiter]
            content.say(
                f"{content.name} is read as text, although it begins like {called}: "
                f"to read it as such, add --input-format {form} --field {shlex.quote(column)}"
            )


def _read_samples(*lines: bytes, is_cut: bool = False) -> list[_Sample]:
    """The lines as tables with each delimiter; none if they are not UTF-8."""
    try:
        texts = [line.decode("utf-8") for line in lines]
    except UnicodeDecodeError:
        return []
    samples = []
    for delimiter in TABLES:
        records = [cells for text in texts if (cells := split_tsv(text, delimiter)) != [""]]
        if delimiter != "\t":
            records = _csv_records(texts, delimiter)
            if is_cut and records:  # the last record may continue
                records.pop()
        if records:
            samples.append(_Sample(delimiter, name_columns(records[0]), records[1:]))
    return samples


def _csv_records(texts: list[str], delimiter: str) -> list[list[str]]:
    """Parse lines as CSV; empty if the parser fails, such as for a lone carriage return or an unclosed cell."""
    try:
        return [cells for cells in csv.reader(texts, delimiter=delimiter) if cells]
    except csv.Error:
        return []


def _is_name(column: str) -> bool:
    return column == column.strip() and 0 < len(column) < 64
