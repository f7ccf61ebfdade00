"""The file that a run writes: its name, format and store, and what is refused before anything is loaded."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from batchgen.errors import InUseError, OutputError, UsageError
from batchgen.formats.compression import packed, split_suffixes
from batchgen.formats.reading import Source
from batchgen.runs.store import Store, remove_store

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
        if self.form != OPENAI_BATCH or self.is_stream:
            return None
        whole = self.file.name
        name = whole.removesuffix("".join(self.file.suffixes[-2 if split_suffixes(self.file)[1] else -1 :]))
        return self.file.with_name(f"{name}.errors{whole[len(name) :]}")

    @property
    def files(self) -> list[Path]:
        """Every file that the run writes or works in."""
        return [path for path in (self.path, self.store, self.failures_file) if path]

    @property
    def is_complete(self) -> bool:
        """Whether an earlier run has come to its end, and has left no store to go on from."""
        return self.resume and self.path.exists() and not self.store.exists()


def form_of_output(output: Path) -> str:
    """The format that a file's suffix stands for. Raises `UsageError` where it stands for none."""
    if output.is_dir():
        raise OutputError(f"-o {output} is a folder: name a file in it")
    suffix = split_suffixes(output)[0]
    if suffix not in FORMS_BY_SUFFIX:
        known = ", ".join(FORMS_BY_SUFFIX)
        raise UsageError(f"-o {output}: unknown suffix; use one of {known}, or say --format")
    return FORMS_BY_SUFFIX[suffix]


def check_target(target: Target, sources: Sequence[Source]) -> None:
    """Refuses, before anything is loaded, an output that is there, is an input, or has no folder."""
    output = target.path
    if any(is_read_from(source, path) for source in sources for path in target.files):
        raise OutputError(f"-o {output} is also an input: write to another file")
    if output.is_dir():
        raise OutputError(f"-o {output} is a folder: name a file in it")
    if not output.parent.is_dir():
        raise OutputError(f"-o {output}: there is no folder {output.parent}")
    if target.is_stream and (target.resume or target.keep_store):
        raise UsageError(f"-o {output} is a pipe or a device, which keeps nothing to go on from")
    if not (target.is_stream or target.overwrite or target.resume):
        _check_is_new(target)


def _check_is_new(target: Target) -> None:
    if target.store.exists() and not target.is_store:
        raise OutputError(
            f"{target.store} holds an interrupted run: go on with --resume, or start anew with --overwrite"
        )
    if there := next((path for path in (target.path, target.failures_file) if path and path.exists()), None):
        go_on = "--resume goes on with it, " if target.is_store else ""
        raise OutputError(f"{there} exists: {go_on}add --overwrite to replace it, or move it away")


def check_file(flag: str, path: Path | None, sources: Sequence[Source], *, overwrite: bool) -> None:
    """Refuses, before anything is loaded, a file of that flag that is there, is an input, or has no folder."""
    if path is None:
        return
    if any(is_read_from(source, path) for source in sources):
        raise OutputError(f"{flag} {path} is also an input: write to another file")
    if path.is_dir() or not path.parent.is_dir():
        raise OutputError(f"{flag} {path}: name a file in a folder that is there")
    if path.is_file() and not overwrite:
        raise OutputError(f"{path} exists: add --overwrite to replace it, or move it away")


def check_notes(notes: Mapping[str, Path | None], target: Target | None, sources: Sequence[Source]) -> None:
    """Refuses, before anything is loaded, a file for notes (by its flag) that is an input or the output, or nowhere."""
    outputs = [os.path.realpath(path) for path in (target.files if target else [])]
    for flag, path in notes.items():
        check_file(flag, path, sources, overwrite=True)
        if path and os.path.realpath(path) in outputs:
            raise OutputError(f"{flag} {path} is also the output: write to another file")


def is_read_from(source: Source, file: Path | int) -> bool:
    """Whether a source is the very file, under whatever name."""
    with suppress(OSError):
        status, other = source.status, os.stat(file)  # noqa: PTH116 - a descriptor too
        return status is not None and stat.S_ISREG(other.st_mode) and os.path.samestat(status, other)
    return False


@contextmanager
def open_store(target: Target) -> Iterator[Store]:
    """The store of a run, which no other run has. One that no row was read into is removed at the end."""
    store = _open_anew(target.store) if target.overwrite else Store(target.store)
    try:
        if not (target.overwrite or target.resume) and not (store.is_empty and _is_unwritten(target)):
            raise InUseError(f"another run has just written {target.path}: name another output")
        if target.retry_errors:
            store.forget_errors()
        yield store
    finally:
        if not store.is_closed:
            store.discard() if store.is_empty else store.close()


def _is_unwritten(target: Target) -> bool:
    return target.is_store or not target.path.exists()


def _open_anew(path: Path) -> Store:
    """An empty store in the place of whatever is there, unless another run uses it."""
    try:
        store = Store(path)
    except InUseError:
        raise
    except OutputError:  # damaged, or something else
        remove_store(path)
        return Store(path)
    store.clear()
    store.commit()  # a run that is killed from here on is not taken for the old one
    return store


@contextmanager
def open_stream(path: Path) -> Iterator[BinaryIO]:
    """A pipe or device by its name."""
    try:
        with path.open("wb") as stream, packed(stream, split_suffixes(path)[1]) as packing:
            yield packing
    except OSError as error:
        error.filename = error.filename or str(path)  # a full device does not say which it is
        raise
