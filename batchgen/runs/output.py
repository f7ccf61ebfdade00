"""The files of a run's output: its store while it runs, and the files written from it when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from batchgen.errors import RESUME, InUseError, OutputError
from batchgen.formats.compression import packed, split_suffixes
from batchgen.formats.fields import Rows
from batchgen.formats.whole import FileState, mode_of, temporary_name, write_whole
from batchgen.runs.database import PRIVATE, remove_store
from batchgen.runs.finished import facts_of_file, read_record, write_record
from batchgen.runs.manifest import FILES_NOTE
from batchgen.runs.store import Store
from batchgen.runs.target import Target


@contextmanager
def open_store(target: Target) -> Iterator[Store]:
    """Open the store of a run, which no other run can have.

    At the end, a store into which no row was read is removed, unless an older output exists next to it: without the
    store, that output would look like this run's.
    """
    store = _open_anew(target) if target.overwrite else _open(target)
    try:
        if not (target.overwrite or target.resume) and not (store.is_empty and _is_unwritten(target)):
            raise InUseError(f"another run has just written {target.path}: name another output")
        if target.retry_errors:
            store.forget_errors()
        yield store
    finally:
        if not store.is_closed:
            store.discard() if store.is_empty and _is_unwritten(target) else store.close()


def _is_unwritten(target: Target) -> bool:
    return target.is_store or not target.path.exists()


def _open(target: Target) -> Store:
    """Open the store with the mode of the output file, or privately if there is none.

    A store that is itself the output follows the user's umask.
    """
    mode = mode_of(target.file)
    return Store(target.store, None if target.is_store else PRIVATE if mode is None else mode)


def _open_anew(target: Target) -> Store:
    """Replace whatever is at the store's path with an empty store, unless another run uses it."""
    try:
        store = _open(target)
    except InUseError:
        raise
    except OutputError:  # damaged, or not a store
        remove_store(target.store)
        return _open(target)
    store.clear()
    store.commit()  # if the run is killed from here on, its store cannot be mistaken for the old one
    return store


class OutputFiles:
    """Writes a target's files from its store. Each may replace only the file that existed when the run began.

    Raises `OutputError` if another file is in its place.
    """

    def __init__(self, target: Target, store: Store) -> None:
        self.target = target
        self.store = store
        noted = store.manifest().get(FILES_NOTE)
        self._replaces = {name: FileState(*state) for name, state in noted["replaces"].items()} if noted else {}
        self._temporaries: list[str] = noted["temporaries"] if noted else []
        self._remove_temporaries()
        for file in self._files:
            state = FileState.of(file)
            if noted and state not in (None, self._replaces.get(file.name)) and not self._is_ours(file):
                raise self._foreign(file)
            if state:
                self._replaces[file.name] = state
        self._note()

    @property
    def _files(self) -> list[Path]:
        return [file for file in (self.target.file, self.target.failures_file) if file]

    def _is_ours(self, file: Path) -> bool:
        record = read_record(self.target)
        return record is not None and record.holds(file)

    def _note(self) -> None:
        replaces = {name: [s.device, s.inode, s.size, s.changed_ns] for name, s in self._replaces.items()}
        self.store.note(FILES_NOTE, {"replaces": replaces, "temporaries": self._temporaries})
        self.store.commit()

    def temporary(self, file: Path) -> Path:
        """Return a name for a file being written; if the run is killed, the resumed run removes that file."""
        made = temporary_name(file)
        self._temporaries.append(str(made))
        self._note()
        return made

    def _remove_temporaries(self) -> None:
        for name in self._temporaries:
            with suppress(OSError):
                Path(name).unlink()
        self._temporaries = []

    def write(
        self, write: Callable[[BinaryIO, Rows], object], facts: Mapping[str, Any], *, is_batch: bool
    ) -> list[Path]:
        """Write all files and return their paths; the record is updated before each file gets its final name.

        `write` fills a stream with `all` rows or, for an OpenAI Batch, with the `answered` and the `failed` ones.
        """
        files: dict[str, object] = {}
        failures = self.target.failures_file if is_batch else None
        if failures and self.target.in_kind and not (self.target.overwrite or self.target.resume):
            self._replaces.pop(failures.name, None)  # it was not known at the start that this file would be written

        def note(file: Path, temporary: Path) -> None:
            files[file.name] = facts_of_file(temporary)
            write_record(self.target, facts, files, self.temporary(self.target.record))

        self._write(self.target.file, lambda stream: write(stream, "answered" if failures else "all"), note)
        written = [self.target.path]
        if failures and self.store.num_failed_rows:
            self._write(failures, lambda stream: write(stream, "failed"), note)
            written.append(failures)
        elif failures:
            self._remove(failures)
        return written

    def _write(self, file: Path, write: Callable[[BinaryIO], object], note: Callable[[Path, Path], object]) -> None:
        try:
            write_whole(
                file,
                write,
                replaces=self._replaces.get(file.name),
                temporary=self.temporary(file),
                on_whole=lambda temporary: note(file, temporary),
            )
        except FileExistsError:
            raise self._foreign(file) from None
        except OSError as error:
            fix = f"fix that, then run the same command with {RESUME}"
            raise OutputError(f"{file} cannot be written: {error.strerror or error}: {fix}") from None

    def _remove(self, file: Path) -> None:
        state = FileState.of(file)
        if state and state != self._replaces.get(file.name):
            raise self._foreign(file)
        file.unlink(missing_ok=True)

    def _foreign(self, file: Path) -> OutputError:
        fix = f"move it away, then run the same command with {RESUME}"
        return OutputError(f"{file} has appeared or changed since the run began: {fix}")


@contextmanager
def open_stream(path: Path) -> Iterator[BinaryIO]:
    """Open a pipe or device by name."""
    try:
        with path.open("wb") as stream, packed(stream, split_suffixes(path)[1]) as packing:
            yield packing
    except OSError as error:
        error.filename = error.filename or str(path)  # the error of a full device has no file name
        raise
