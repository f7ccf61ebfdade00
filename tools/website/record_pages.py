"""The reference of records and formats, from the records and from the tables of readers and writers."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from batchgen.formats.reading import FORMATS_BY_SUFFIX, READERS
from batchgen.formats.writing import WRITERS
from batchgen.records import Result, RunStats
from batchgen.records.options import options_of
from batchgen.records.sampling import SamplingParams
from batchgen.runs.target import FORMS_BY_SUFFIX, SQLITE
from website.markdown import code, table

COMMENT = re.compile(r"^ {4}(\w+): (.+?)(?: = .+?)?  # (.+)$", re.MULTILINE)


def records_page() -> str:
    """The page of the fields of rows, results and statistics, and of the formats."""
    choices = options_of(SamplingParams)
    parts = [
        "# Records and formats",
        "## Result",
        "One record per row and sample. [Formats](../formats.md#output) shows what each format writes.",
        fields_of(Result),
        "## RunStats",
        "What `--stats` writes and `run` returns.",
        fields_of(RunStats),
        "## SamplingParams",
        "Keys of a row's `sampling`, keyword arguments in Python, and, with dashes, options of `run`.",
        table(
            ["field", "default", "meaning"],
            [[code(name), code(repr(each.default)), each.option.help] for name, each in choices.items()],
        ),
        "## Formats",
        table(["format", "read", "written", "suffixes"], _formats()),
    ]
    return "\n\n".join(parts) + "\n"


def fields_of(record: type[Any]) -> str:
    """A table of fields with their comments from the source. Raises `ValueError` for a field without a comment."""
    comments = {name: (kind, text) for name, kind, text in COMMENT.findall(inspect.getsource(record))}
    if missing := [field.name for field in dataclasses.fields(record) if field.name not in comments]:
        raise ValueError(f"{record.__name__} has fields without a comment: {', '.join(missing)}")
    return table(
        ["field", "type", "meaning"], [[code(name), code(kind), text] for name, (kind, text) in comments.items()]
    )


def _formats() -> list[list[str]]:
    suffixes = list(FORMATS_BY_SUFFIX.items()) + list(FORMS_BY_SUFFIX.items())
    names = sorted({*READERS, *WRITERS, SQLITE, *FORMATS_BY_SUFFIX.values()})
    return [
        [
            code(name),
            "yes" if name in READERS or name in FORMATS_BY_SUFFIX.values() else "",
            "yes" if name in WRITERS or name == SQLITE else "",
            ", ".join(code(suffix) for suffix in dict.fromkeys(suffix for suffix, form in suffixes if form == name)),
        ]
        for name in names
    ]
