"""The file that a run writes: its name and format, and the files beside it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from batchgen.errors import OutputError, UsageError, parameter
from batchgen.formats.compression import split_suffixes

SQLITE, OPENAI_BATCH = "sqlite", "openai-batch"
FORMS_BY_SUFFIX = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".db": SQLITE,
    ".sqlite": SQLITE,
    ".sqlite3": SQLITE,
}


@dataclass(frozen=True, slots=True)
class Target:
    """The file that a run writes, its format, and what to do with what is there already."""

    path: Path
    form: str
    overwrite: bool = False
    resume: bool = False
    retry_errors: bool = False
    keep_store: bool = False
    in_kind: bool = False  # JSON Lines, or an OpenAI Batch where that is what is asked

    @property
    def is_stream(self) -> bool:
        """Whether it is a pipe or a device, which takes rows as they come and keeps none."""
        return self.path.exists() and not self.path.is_file()

    @property
    def is_store(self) -> bool:
        """Whether the store itself is what is asked for."""
        return self.form == SQLITE

    @property
    def file(self) -> Path:
        """What the name leads to, where it is a link."""
        return Path(os.path.realpath(self.path))  # which says nothing of a link to itself

    @property
    def store(self) -> Path:
        """Where the run is kept until the file is whole."""
        return self.file if self.is_store else self.file.with_name(self.file.name + ".run.db")

    @property
    def failures_file(self) -> Path | None:
        """Where an OpenAI Batch has the requests that failed: `out.jsonl` has `out.errors.jsonl` beside it."""
        if not (self.form == OPENAI_BATCH or self.in_kind) or self.is_stream:
            return None
        whole = self.file.name
        name = whole.removesuffix("".join(self.file.suffixes[-2 if split_suffixes(self.file)[1] else -1 :]))
        return self.file.with_name(f"{name}.errors{whole[len(name) :]}")

    @property
    def record(self) -> Path:
        """Where it stands what the file was made of, once that is whole."""
        return self.file.with_name(f".{self.file.name}.run")  # shorter than the store's name, which must fit too

    @property
    def files(self) -> list[Path]:
        """Every file that the run writes or works in."""
        own = [self.path, self.failures_file]
        beside = [] if self.is_stream else [self.store] if self.is_store else [self.store, self.record]
        return [path for path in (*own, *beside) if path]

    @property
    def is_complete(self) -> bool:
        """Whether an earlier run has come to its end, and has left no store to go on from."""
        return self.resume and self.path.exists() and not self.store.exists()


def form_of_output(output: Path) -> str:
    """The format that a file's suffix stands for. Raises `UsageError` where it stands for none."""
    if output.is_dir():
        raise OutputError(f"{parameter('output')} {output} is a folder: name a file in it")
    suffix = split_suffixes(output)[0]
    if suffix not in FORMS_BY_SUFFIX:
        known = ", ".join(FORMS_BY_SUFFIX)
        shown = f"{parameter('output')} {output}"
        raise UsageError(f"{shown}: unknown suffix; use one of {known}, or set {parameter('format')}")
    return FORMS_BY_SUFFIX[suffix]
