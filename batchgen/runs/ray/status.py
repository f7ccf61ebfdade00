"""How far a run on Ray is, from its output folder: part files, the manifest, and the recorded progress."""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from batchgen.errors import InputError
from batchgen.runs.progress import MOST_REASONS, ProgressNote
from batchgen.runs.ray.folder import MANIFEST, NAME, OutputFolder
from batchgen.runs.status import RunStatus, State, seconds_of, with_progress

SILENT_S = 600.0  # a run on another machine without progress for this long is considered dead


class FolderStatus:
    """Reads a folder repeatedly; each part file is read only once, since part files never change."""

    def __init__(self, place: str, clock: Callable[[], float] = time.time) -> None:
        self.place = place
        self._clock = clock
        self._reasons: dict[str, Counter[str]] = {}

    def read(self) -> RunStatus:
        """Return the status of the run. Raises `InputError` if the folder is not a run's output, and `OutputError`."""
        folder = OutputFolder(self.place)
        facts = folder.read_manifest()
        if not facts:
            raise InputError(f"{self.place}: this is not the output of a run: it has no {MANIFEST}")
        names = [match for name in folder.names() if (match := NAME.fullmatch(name))]
        sizes = {int(number): rows for number, rows in facts.get("inputs", {}).get("part_rows", {}).items()}
        errors = self._errors(folder, [match[0] for match in names])
        progress, command = folder.read_progress(), facts.get("command") or {}
        status = RunStatus(
            self.place,
            self._state(facts, progress),
            rows_done=sum(_rows_there(names, sizes)),
            rows_total=sum(sizes.values()) if sizes else None,
            rows_failed=errors.total(),
            reasons=tuple(list(errors.items())[:MOST_REASONS]),
            progress=progress,
            started_s=seconds_of(facts.get("started")),
            model=(facts.get("model") or {}).get("model"),
            command=tuple(command.get("words", ())),
            folder=command.get("folder"),
            has_store=True,
        )
        return with_progress(status, progress) if progress else status

    def _state(self, facts: dict[str, Any], progress: ProgressNote | None) -> State:
        if "finished" in facts:
            return "complete"
        if progress is None:
            return "interrupted"
        if progress.host == socket.gethostname():
            return "running" if _is_alive(progress.pid) else "interrupted"
        return "running" if self._clock() - progress.noted_s < SILENT_S else "interrupted"

    def _errors(self, folder: OutputFolder, names: list[str]) -> Counter[str]:
        """Count why rows failed, in order of first occurrence."""
        whole: Counter[str] = Counter()
        for name in names:
            if name not in self._reasons:
                self._reasons[name] = Counter(_errors_of(folder, name))
            whole += self._reasons[name]
        return whole


def _rows_there(names: list[Any], sizes: dict[int, int]) -> Iterator[int]:
    """Yield the rows of each part that are in files: one file has them all, or several have some each."""
    done: dict[int, int] = {}
    for match in names:
        number, start, stop = int(match[1]), match[2], match[3]
        if start is None:
            done[number] = sizes.get(number, 0)
        else:
            done[number] = min(done.get(number, 0) + int(stop) - int(start), sizes.get(number, int(stop)))
    yield from done.values()


def _errors_of(folder: OutputFolder, name: str) -> Iterator[str]:
    with folder.filesystem.open(f"{folder.path}/{name}", "rb") as stream:
        if name.endswith(".parquet"):
            yield from _errors_in_parquet(stream)
            return
        for line in stream:
            row = json.loads(line) if b'"finish_reason": "error"' in line else {}
            if row.get("error") and row["sample_index"] == 0:
                yield str(row["error"]).removeprefix(f"{row.get('source')}: ")


def _errors_in_parquet(stream: Any) -> Iterator[str]:
    import pyarrow.parquet as parquet

    columns = ["error", "sample_index", "source"]
    for row in parquet.read_table(stream, columns=columns).to_pylist():
        if row["error"] is not None and row["sample_index"] == 0:
            yield row["error"].removeprefix(f"{row['source']}: ")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True
