"""Where results go: standard output, or a file that is there whole or not at all, from a store that keeps each row."""

from __future__ import annotations

import errno
import json
import os
import select
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from batchgen.cli.options import Format
from batchgen.errors import InUseError, OutputError, UsageError
from batchgen.readers import Source
from batchgen.store import Store, remove_store

FORMATS_BY_SUFFIX = {
    ".jsonl": Format.jsonl,
    ".ndjson": Format.jsonl,
    ".txt": Format.text,
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
    def is_complete(self) -> bool:
        """Whether an earlier run has come to its end, and has left no store to go on from."""
        return self.resume and self.path.exists() and not self.store.exists()


def choose_format(asked: Format, output: Path | None, *, ids: bool = False) -> Format:
    """The format asked for, else the file's by its suffix, else a table on a terminal and JSON Lines in a pipe."""
    form = asked if asked is not Format.auto else _natural_format(output)
    if ids and form is Format.text:
        raise UsageError("--ids has no place in text: use --format jsonl or table")
    if form is Format.sqlite and output is None:
        raise UsageError("--format sqlite needs a file: name it with -o")
    return form


def _natural_format(output: Path | None) -> Format:
    if output is None:
        if sys.stdout is None:
            raise OutputError("standard output is closed: name a file with -o")
        return Format.table if sys.stdout.isatty() else Format.jsonl
    if output.suffix.lower() not in FORMATS_BY_SUFFIX:
        known = ", ".join(FORMATS_BY_SUFFIX)
        raise UsageError(f"-o {output}: unknown suffix; use one of {known}, or say --format")
    return FORMATS_BY_SUFFIX[output.suffix.lower()]


def check_target(target: Target, sources: list[Source]) -> None:
    """Refuses, before anything is loaded, an output that is there, is an input, or has no folder."""
    output = target.path
    if any(source.path is not None and _is_same(source.path, path) for source in sources for path in _taken(target)):
        raise OutputError(f"-o {output} is also an input: write to another file")
    if output.is_dir():
        raise OutputError(f"-o {output} is a folder: name a file in it")
    if not output.parent.is_dir():
        raise OutputError(f"-o {output}: there is no folder {output.parent}")
    if target.is_stream and (target.resume or target.keep_store):
        raise UsageError(f"-o {output} is a pipe or a device, which keeps nothing to go on from")
    if not (target.is_stream or target.overwrite or target.resume):
        _check_is_new(target)


def check_notes(notes: Mapping[str, Path | None], target: Target | None, sources: list[Source]) -> None:
    """Refuses, before anything is loaded, a file for notes (by its flag) that is an input or the output, or nowhere."""
    taken = [source.path for source in sources if source.path] + ([*_taken(target)] if target else [])
    for flag, path in notes.items():
        if path and any(_is_same(path, other) or path.absolute() == other.absolute() for other in taken):
            raise OutputError(f"{flag} {path} is also an input or the output: write to another file")
        if path and (path.is_dir() or not path.parent.is_dir()):
            raise OutputError(f"{flag} {path}: name a file in a folder that is there")


def _taken(target: Target) -> tuple[Path, Path]:
    return target.path, target.store


def _is_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _check_is_new(target: Target) -> None:
    if target.store.exists() and not target.is_store:
        raise OutputError(
            f"{target.store} holds an interrupted run: go on with --resume, or start anew with --overwrite"
        )
    if target.path.exists():
        go_on = "--resume goes on with it, " if target.is_store else ""
        raise OutputError(f"{target.path} exists: {go_on}add --overwrite to replace it, or move it away")


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
def open_stream(output: Path | None) -> Iterator[TextIO]:
    """Standard output, or a pipe or device by its name."""
    if output is None:
        yield sys.stdout
    else:
        try:
            with output.open("w", encoding="utf-8", newline="\n") as stream:
                yield stream
        except OSError as error:
            error.filename = error.filename or str(output)  # a full device does not say which it is
            raise


def write_whole(file: Path, write: Callable[[TextIO], object]) -> None:
    """A file that is there whole and safe on the disk, or as it was: `write` gets the stream to fill."""
    partial = file.with_name(file.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as stream:
            write(stream)
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
    with file.open("rb") as stream:
        last = deque(stream, maxlen=1)
    try:
        return int(json.loads(last[0])["index"]) + 1 if last else 0
    except (ValueError, KeyError, TypeError):
        raise OutputError(f"{file} is not batchgen's: name another output") from None


def write_json(path: Path, value: object) -> None:
    """A JSON file for other programs; into a pipe or a device as it is."""
    text = json.dumps(value, indent=2) + "\n"
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
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
