"""The output folder of a run on Ray: a file for each part, there whole or not at all, and a manifest.

`part-00007.jsonl` has all rows of part 7; where a part had to be split, `part-00007.000064-000128.jsonl` those from its
64th on. By name they are in input order. What else begins with `_` is ours.
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
SUMS = "_sums-"  # of a part's scores, before its name without a suffix
WRITING = "_writing-"
NAME = re.compile(r"part-(\d{5,})(?:\.(\d{6,})-(\d{6,}))?\.(jsonl|parquet)")


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `start` to before `stop` of a part, for one worker; `failures` counts workers that died of it."""

    part: FilePart
    start: int
    stop: int
    failures: int = 0

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    @property
    def stem(self) -> str:
        name = f"part-{self.part.number:05}"
        is_whole = (self.start, self.stop) == (0, self.part.num_rows)
        return name if is_whole else f"{name}.{self.start:06}-{self.stop:06}"

    def split(self, num_pieces: int) -> list[Piece]:
        """Itself in so many pieces of like sizes, or of one row each."""
        step = -(-self.num_rows // num_pieces)
        return [Piece(self.part, start, min(start + step, self.stop)) for start in range(self.start, self.stop, step)]


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """A folder on a path or at a URL that every machine can write to; its files have one format."""

    place: str
    form: str = "jsonl"

    @property
    def filesystem(self) -> Any:
        return filesystem_of(self.place)[0]

    @property
    def path(self) -> str:
        return filesystem_of(self.place)[1].rstrip("/")

    def names(self) -> list[str]:
        """All that is in it, by name; nothing where there is no such folder. Raises `OutputError`."""
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
        """Removes what workers had not finished when they ended; with `all_of_ours` whatever a run left."""
        for name in self.names():
            is_ours = name in (MANIFEST, PROGRESS) or name.startswith(SUMS) or NAME.fullmatch(name)
            if name.startswith(WRITING) or (all_of_ours and is_ours):
                self.filesystem.rm(f"{self.path}/{name}")

    def missing(self, parts: Iterable[FilePart]) -> Iterator[Piece]:
        """What of the parts is not there yet."""
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
        """Whether a piece's file is there: its worker may have died after it wrote it."""
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
        """All results of a piece, to a file that gets its name when it is complete.

        With `in_kind` OpenAI's requests are answered in OpenAI's form, those that failed among the others. `sums` are
        complete with the last of the results; they are there before the piece is.
        """
        write = write_in_kind if in_kind else WRITERS[self.form]

        def write_all(stream: IO[bytes]) -> None:
            write(results, cast(BinaryIO, stream), WriteOptions(ids=ids))
            if sums is not None:
                self._write_json(f"{SUMS}{piece.stem}.json", asdict(sums))

        self._commit(f"{piece.stem}.{self.form}", write_all)

    def read_sums(self) -> ScoreSums:
        """The sums of all pieces that are there, in input order."""
        total = ScoreSums()
        for name in self.names():
            if NAME.fullmatch(name):
                total.merge(ScoreSums.from_dict(self._read_json(f"{SUMS}{name.rsplit('.', 1)[0]}.json")))
        return total

    def read_manifest(self) -> dict[str, Any]:
        """What a run that began here was made of; nothing where none did."""
        return self._read_json(MANIFEST)

    def read_progress(self) -> ProgressNote | None:
        """How far it was when it noted that last."""
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
        """In one step on a disk; an object store copies, and shows the copy when it is whole."""
        if is_url(self.place):
            self.filesystem.mv(partial, final)
            return
        Path(partial).replace(final)
        with suppress(OSError):  # not every file system can be told to keep a rename
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
