"""Where results go: standard output, or a file that is there whole or not at all, from a store that keeps each row."""

from __future__ import annotations

import errno
import json
import os
import select
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO, TextIO

from batchgen.cli.options import Format
from batchgen.errors import InUseError, OutputError, UsageError
from batchgen.formats.compression import damage, packed, split_suffixes, unpack
from batchgen.formats.reading import Source
from batchgen.runs.store import Store, remove_store

FORMATS_BY_SUFFIX = {
    ".jsonl": Format.jsonl,
    ".ndjson": Format.jsonl,
    ".txt": Format.text,
    ".csv": Format.csv,
    ".tsv": Format.tsv,
    ".parquet": Format.parquet,
    ".db": Format.sqlite,
    ".sqlite": Format.sqlite,
    ".sqlite3": Format.sqlite,
}


@dataclass(frozen=True, slots=True)
class Target:
    """The file that `-o` names, its format, and what to do with what is there already."""

    path: Path
    form: Format
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
        return self.form is Format.sqlite

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
        if self.form is not Format.openai_batch or self.is_stream:
            return None
        whole = self.file.name
        name = whole.removesuffix("".join(self.file.suffixes[-2 if split_suffixes(self.file)[1] else -1 :]))
        return self.file.with_name(f"{name}.errors{whole[len(name) :]}")

    @property
    def is_complete(self) -> bool:
        """Whether an earlier run has come to its end, and has left no store to go on from."""
        return self.resume and self.path.exists() and not self.store.exists()


def choose_format(asked: Format, output: Path | None, *, ids: bool = False, csv_raw: bool = False) -> Format:
    """The format asked for, else the file's by its suffix, else a table on a terminal and JSON Lines in a pipe."""
    form = asked if asked is not Format.auto else _natural_format(output)
    if ids and form in (Format.text, Format.openai_batch):
        raise UsageError(f"--ids has no place in {form.value}: use --format jsonl or table")
    if csv_raw and form not in (Format.csv, Format.tsv):
        raise UsageError("--csv-raw is for --format csv and tsv")
    if form is Format.sqlite and output is None:
        raise UsageError("--format sqlite needs a file: name it with -o")
    if form is Format.parquet and output is None and sys.stdout is not None and sys.stdout.isatty():
        raise UsageError("Parquet is nothing for a terminal: name a file with -o")
    if output is not None and form in (Format.sqlite, Format.parquet) and split_suffixes(output)[1]:
        raise UsageError(f"-o {output}: {form.value} is not packed once more: leave {output.suffix} out")
    return form


def _natural_format(output: Path | None) -> Format:
    if output is None:
        if sys.stdout is None:
            raise OutputError("standard output is closed: name a file with -o")
        return Format.table if sys.stdout.isatty() else Format.jsonl
    suffix = split_suffixes(output)[0]
    if output.is_dir():
        raise OutputError(f"-o {output} is a folder: name a file in it")
    if suffix not in FORMATS_BY_SUFFIX:
        known = ", ".join(FORMATS_BY_SUFFIX)
        raise UsageError(f"-o {output}: unknown suffix; use one of {known}, or say --format")
    return FORMATS_BY_SUFFIX[suffix]


def check_target(target: Target, sources: list[Source]) -> None:
    """Refuses, before anything is loaded, an output that is there, is an input, or has no folder."""
    output = target.path
    if any(_is_read_from(source, path) for source in sources for path in _taken(target)):
        raise OutputError(f"-o {output} is also an input: write to another file")
    if output.is_dir():
        raise OutputError(f"-o {output} is a folder: name a file in it")
    if not output.parent.is_dir():
        raise OutputError(f"-o {output}: there is no folder {output.parent}")
    if target.is_stream and (target.resume or target.keep_store):
        raise UsageError(f"-o {output} is a pipe or a device, which keeps nothing to go on from")
    if not (target.is_stream or target.overwrite or target.resume):
        _check_is_new(target)


def check_stdout(sources: list[Source]) -> None:
    """Refuses a standard output that is also an input: what is appended would be read again, without end."""
    with suppress(AttributeError, ValueError):  # closed, or an object in memory
        if any(_is_read_from(source, sys.stdout.fileno()) for source in sources):
            raise OutputError("standard output is also an input: write to another file")


def check_file(flag: str, path: Path | None, sources: list[Source], *, overwrite: bool) -> None:
    """Refuses, before anything is loaded, a file of that flag that is there, is an input, or has no folder."""
    if path is None:
        return
    if any(_is_read_from(source, path) for source in sources):
        raise OutputError(f"{flag} {path} is also an input: write to another file")
    if path.is_dir() or not path.parent.is_dir():
        raise OutputError(f"{flag} {path}: name a file in a folder that is there")
    if path.is_file() and not overwrite:
        raise OutputError(f"{path} exists: add --overwrite to replace it, or move it away")


def check_notes(notes: Mapping[str, Path | None], target: Target | None, sources: list[Source]) -> None:
    """Refuses, before anything is loaded, a file for notes (by its flag) that is an input or the output, or nowhere."""
    outputs = [os.path.realpath(path) for path in (_taken(target) if target else [])]
    for flag, path in notes.items():
        check_file(flag, path, sources, overwrite=True)
        if path and os.path.realpath(path) in outputs:
            raise OutputError(f"{flag} {path} is also the output: write to another file")


def _taken(target: Target) -> list[Path]:
    return [path for path in (target.path, target.store, target.failures_file) if path]


def _is_read_from(source: Source, file: Path | int) -> bool:
    """Whether a source is the very file, under whatever name."""
    with suppress(OSError):
        status, other = source.status, os.stat(file)  # noqa: PTH116 - a descriptor too
        return status is not None and stat.S_ISREG(other.st_mode) and os.path.samestat(status, other)
    return False


def _check_is_new(target: Target) -> None:
    if target.store.exists() and not target.is_store:
        raise OutputError(
            f"{target.store} holds an interrupted run: go on with --resume, or start anew with --overwrite"
        )
    if there := next((path for path in (target.path, target.failures_file) if path and path.exists()), None):
        go_on = "--resume goes on with it, " if target.is_store else ""
        raise OutputError(f"{there} exists: {go_on}add --overwrite to replace it, or move it away")


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
def open_stream(target: Target | None) -> Iterator[BinaryIO]:
    """Standard output, or a pipe or device by its name."""
    if target is None:
        yield sys.stdout.buffer
    else:
        try:
            with target.path.open("wb") as stream, packed(stream, split_suffixes(target.path)[1]) as packing:
                yield packing
        except OSError as error:
            error.filename = error.filename or str(target.path)  # a full device does not say which it is
            raise


@contextmanager
def text_of(stream: BinaryIO) -> Iterator[TextIO]:
    """A stream for text that goes into another one, which stays open."""
    text = TextIOWrapper(stream, encoding="utf-8", errors="backslashreplace", newline="\n", write_through=True)
    try:
        yield text
    finally:
        text.detach()


def write_whole(file: Path, write: Callable[[BinaryIO], object]) -> None:
    """A file that is there whole and safe on the disk, or as it was: `write` gets the stream to fill.

    Where its suffix is one of a compression, it is packed.
    """
    partial = file.with_name(file.name + ".partial")
    try:
        with partial.open("wb") as stream:
            with packed(stream, split_suffixes(file)[1]) as packing:
                write(packing)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    _sync_folder(file.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a rename in it last, on systems that can be asked to."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # not every file system has it
            raise
    finally:
        os.close(descriptor)


def count_answered(file: Path) -> int:
    """How many rows of the input a file of JSON Lines answers, by its last line."""
    try:
        with file.open("rb") as stream:
            last = deque(unpack(stream, str(file)), maxlen=1)
        return int(json.loads(last[0])["index"]) + 1 if last else 0
    except damage(ValueError, KeyError, TypeError):
        raise OutputError(f"{file} is not batchgen's: name another output") from None


def write_json(path: Path, value: object) -> None:
    """A JSON file for other programs; into a pipe or a device as it is."""
    text = f"{json.dumps(value, indent=2)}\n".encode()
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(text)
        else:
            write_whole(Path(os.path.realpath(path)), lambda stream: stream.write(text))
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}: mend that and run again") from None


def is_abandoned(stream: TextIO) -> bool:
    """Whether the reader at the other end of a pipe is gone, which otherwise only the next write would tell."""
    if not hasattr(select, "poll"):
        return False
    with suppress(OSError, ValueError):  # a stream without a file descriptor has no other end
        poller = select.poll()
        poller.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poller.poll(0))
    return False
