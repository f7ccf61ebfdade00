"""The file that a run writes: its name and format, and the files next to it."""

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
    """The file that a run writes, its format, and what to do if it already exists."""

    path: Path
    form: str
    overwrite: bool = False
    resume: bool = False
    retry_errors: bool = False
    keep_store: bool = False
    in_kind: bool = False  # JSON Lines, or an OpenAI Batch if the input is one

    @property
    def is_stream(self) -> bool:
        """Whether it is a pipe or a device, which takes rows as they finish and keeps none."""
        return self.path.exists() and not self.path.is_file()

    @property
    def is_store(self) -> bool:
        """Whether the store itself is the output."""
        return self.form == SQLITE

    @property
    def file(self) -> Path:
        """The path with links resolved."""
        return Path(os.path.realpath(self.path))  # unlike `Path.resolve`, does not raise for a link to itself

    @property
    def store(self) -> Path:
        """The file that holds the run's results until the output is written."""
        return self.file if self.is_store else self.file.with_name(self.file.name + ".run.db")

    @property
    def failures_file(self) -> Path | None:
        """The file for an OpenAI Batch's failed requests: `out.jsonl` has `out.errors.jsonl` next to it."""
        if not (self.form == OPENAI_BATCH or self.in_kind) or self.is_stream:
            return None
        whole = self.file.name
        name = whole.removesuffix("".join(self.file.suffixes[-2 if split_suffixes(self.file)[1] else -1 :]))
        return self.file.with_name(f"{name}.errors{whole[len(name) :]}")

    @property
    def record(self) -> Path:
        """The file that records what the finished output was made of."""
        return self.file.with_name(f".{self.file.name}.run")  # shorter than the store's name: both must fit

    @property
    def files(self) -> list[Path]:
        """Every file that the run writes or uses."""
        own = [self.path, self.failures_file]
        beside = [] if self.is_stream else [self.store] if self.is_store else [self.store, self.record]
        return [path for path in (*own, *beside) if path]

    @property
    def is_complete(self) -> bool:
        """Whether to resume a finished run, which has left no store to continue from."""
        return self.resume and self.path.exists() and not self.store.exists()


def form_of_output(output: Path) -> str:
    """Return the format for a file's suffix. Raises `UsageError` for an unknown suffix, `OutputError` for a folder."""
    if output.is_dir():
        raise OutputError(f"{parameter('output')} {output} is a folder: name a file in it")
    suffix = split_suffixes(output)[0]
    if suffix not in FORMS_BY_SUFFIX:
        known = ", ".join(FORMS_BY_SUFFIX)
        shown = f"{parameter('output')} {output}"
        raise UsageError(f"{shown}: unknown suffix; use one of {known}, or set {parameter('format')}")
    return FORMS_BY_SUFFIX[suffix]
