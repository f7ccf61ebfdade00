"""The output folder of a run on Ray: one file per part, written atomically, and a manifest.

`part-00007.jsonl` has all rows of part 7; if a part was split, `part-00007.000064-000128.jsonl` has rows 64 to 127. The
files' names sort in input order. Other names that begin with `_` are batchgen's own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast
from uuid import uuid4

from batchgen.errors import OutputError
from batchgen.formats.writing import WRITERS, WriteOptions, write_in_kind
from batchgen.records import Result
from batchgen.runs.progress import ProgressNote, read_progress
from batchgen.runs.ray.file_parts import FilePart
from batchgen.runs.ray.inputs import filesystem_of, is_url, reason_of
from batchgen.runs.sums import ScoreSums

MANIFEST, PROGRESS = "_batchgen.json", "_progress.json"
SUMS = "_sums-"  # prefix of the file with the sums of a part's scores, before the part's name
WRITING = "_writing-"
NAME = re.compile(r"part-(\d{5,})(?:\.(\d{6,})-(\d{6,}))?\.(jsonl|parquet)")


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `start` to before `stop` of a part, for one worker."""

    part: FilePart
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    @property
    def stem(self) -> str:
        name = f"part-{self.part.number:05}"
        is_whole = (self.start, self.stop) == (0, self.part.num_rows)
        return name if is_whole else f"{name}.{self.start:06}-{self.stop:06}"

    def split(self, num_pieces: int) -> list[Piece]:
        """Split into `num_pieces` pieces of similar size, or fewer if there are fewer rows."""
        step = -(-self.num_rows // num_pieces)
        return [Piece(self.part, start, min(start + step, self.stop)) for start in range(self.start, self.stop, step)]


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """A folder at a path or URL that every machine can write to; all its files have one format."""

    place: str
    form: str = "jsonl"

    @property
    def filesystem(self) -> Any:
        return filesystem_of(self.place)[0]

    @property
    def path(self) -> str:
        return filesystem_of(self.place)[1].rstrip("/")

    def names(self) -> list[str]:
        """Return the sorted names in the folder; empty if the folder does not exist. Raises `OutputError`."""
        try:
            if not self.filesystem.exists(self.path):
                return []
            if not self.filesystem.isdir(self.path):
                raise OutputError(f"-o {self.place} is a file: with --ray, name a folder")
            self.filesystem.invalidate_cache()
            return sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in self.filesystem.ls(self.path, False))
        except OSError as error:
            raise OutputError(f"-o {self.place} cannot be read: {reason_of(error)}") from None

    def make(self) -> None:
        try:
            self.filesystem.makedirs(self.path, exist_ok=True)
        except OSError as error:
            raise OutputError(f"-o {self.place} cannot be made: {reason_of(error)}") from None

    def clean(self, *, all_of_ours: bool = False) -> None:
        """Remove files that workers left unfinished; with `all_of_ours`, everything that a run left."""
        for name in self.names():
            is_ours = name in (MANIFEST, PROGRESS) or name.startswith(SUMS) or NAME.fullmatch(name)
            if name.startswith(WRITING) or (all_of_ours and is_ours):
                self.filesystem.rm(f"{self.path}/{name}")

    def missing(self, parts: Iterable[FilePart]) -> Iterator[Piece]:
        """Yield the pieces of the parts that are not in the folder yet."""
        there: dict[int, list[tuple[int, int]]] = {}
        for name in self.names():
            if match := NAME.fullmatch(name):
                number, start, stop, form = match.groups()
                if form == self.form:
                    there.setdefault(int(number), []).append((int(start or 0), int(stop or -1)))
        for part in parts:
            done = 0
            for start, stop in [*sorted(there.get(part.number, [])), (part.num_rows, part.num_rows)]:
                if start > done:
                    yield Piece(part, done, start)
                done = max(done, part.num_rows if stop < 0 else stop)

    def has(self, piece: Piece) -> bool:
        """Whether a piece's file exists: a worker may have died after writing it."""
        self.filesystem.invalidate_cache()
        return bool(self.filesystem.exists(f"{self.path}/{piece.stem}.{self.form}"))

    def write(
        self,
        piece: Piece,
        results: Iterable[Result],
        *,
        ids: bool = False,
        in_kind: bool = False,
        sums: ScoreSums | None = None,
    ) -> None:
        """Write all results of a piece to a file that gets its name when complete.

        With `in_kind`, OpenAI requests get answers in OpenAI's format, failed ones included. `sums` are complete once
        the last result is read; they are written before the piece.
        """
        write = write_in_kind if in_kind else WRITERS[self.form]

        def write_all(stream: IO[bytes]) -> None:
            write(results, cast(BinaryIO, stream), WriteOptions(ids=ids))
            if sums is not None:
                self._write_json(f"{SUMS}{piece.stem}.json", asdict(sums))

        self._commit(f"{piece.stem}.{self.form}", write_all)

    def read_sums(self) -> ScoreSums:
        """Return the sums of all pieces in the folder, in input order."""
        total = ScoreSums()
        for name in self.names():
            if NAME.fullmatch(name):
                total.merge(ScoreSums.from_dict(self._read_json(f"{SUMS}{name.rsplit('.', 1)[0]}.json")))
        return total

    def read_manifest(self) -> dict[str, Any]:
        """Return what the run in this folder is made of; empty if there is none."""
        return self._read_json(MANIFEST)

    def read_progress(self) -> ProgressNote | None:
        """Return the last recorded progress; None if there is none."""
        return read_progress(self._read_json(PROGRESS))

    def _read_json(self, name: str) -> dict[str, Any]:
        if name not in self.names():
            return {}
        try:
            with self.filesystem.open(f"{self.path}/{name}", "rb") as stream:
                facts = json.loads(stream.read())
        except (OSError, ValueError) as error:
            raise OutputError(f"{self.place}/{name} cannot be read: {reason_of(error)}") from None
        return facts if isinstance(facts, dict) else {}

    def write_progress(self, progress: ProgressNote) -> None:
        self._write_json(PROGRESS, asdict(progress))

    def write_manifest(self, facts: dict[str, Any]) -> None:
        self._write_json(MANIFEST, facts, indent=2)

    def _write_json(self, name: str, facts: dict[str, Any], indent: int | None = None) -> None:
        self._commit(name, lambda stream: stream.write(f"{json.dumps(facts, indent=indent)}\n".encode()))

    def _commit(self, name: str, write: Any) -> None:
        partial = f"{self.path}/{WRITING}{uuid4().hex[:8]}-{name}"
        try:
            with self.filesystem.open(partial, "wb") as stream:
                write(stream)
                if not is_url(self.place):
                    stream.flush()
                    os.fsync(stream.fileno())
            self._rename(partial, f"{self.path}/{name}")
        except OSError as error:
            raise OutputError(f"{self.place}/{name} cannot be written: {reason_of(error)}") from None

    def _rename(self, partial: str, final: str) -> None:
        """Rename atomically on a disk; an object store copies, and shows the copy once it is complete."""
        if is_url(self.place):
            self.filesystem.mv(partial, final)
            return
        Path(partial).replace(final)
        with suppress(OSError):  # not every file system can sync a rename
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
