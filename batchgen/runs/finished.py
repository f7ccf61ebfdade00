"""A small record beside a finished file says what the file was made of, so that a rerun can tell if it would match."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchgen.errors import OVERWRITE, OutputError, parameter
from batchgen.formats.whole import FileState, digest_of_file, write_whole
from batchgen.runs.target import Target

FORMAT_VERSION = 1
FILES = "files"


def facts_of_file(file: Path) -> dict[str, object]:
    """Return a file's size and the hash of its bytes, which identify it."""
    return {"bytes": file.stat().st_size, "blake2b": digest_of_file(file)}


@dataclass(frozen=True, slots=True)
class FinishedRecord:
    """The record of a finished file: `facts` are those of the manifest, plus `files` by name."""

    path: Path
    facts: Mapping[str, Any]

    def holds(self, file: Path) -> bool:
        """Whether a file is exactly what the run wrote."""
        known = self.facts.get(FILES, {}).get(file.name)
        return bool(known) and file.is_file() and facts_of_file(file) == known

    def names(self, file: Path) -> bool:
        return file.name in self.facts.get(FILES, {})


def read_record(target: Target) -> FinishedRecord | None:
    """Read the record beside a target; return None if there is none or it cannot be read."""
    try:
        facts = json.loads(target.record.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(facts, dict) or facts.get("version") != FORMAT_VERSION or not isinstance(facts.get(FILES), dict):
        return None
    return FinishedRecord(target.record, facts)


def write_record(target: Target, facts: Mapping[str, Any], files: Mapping[str, object], temporary: Path) -> None:
    """Write the record beside a target, replacing the previous one."""
    text = json.dumps({"version": FORMAT_VERSION, **facts, FILES: dict(files)}, indent=1) + "\n"
    state = FileState.of(target.record)
    write_whole(
        target.record, lambda stream: stream.write(text.encode()), replaces=state, temporary=temporary, like=target.file
    )


def check_finished_files(target: Target) -> FinishedRecord:
    """Return the record of a finished target. Raises `OutputError` if its files are not what the run wrote."""
    fix = f"start over with {OVERWRITE}, or name another output"
    record = read_record(target)
    if record is None:
        raise OutputError(
            f"{target.path} was not written by batchgen, or {target.record.name} next to it is missing: {fix}"
        )
    for file in (target.file, target.failures_file):
        is_foreign = file == target.failures_file and target.in_kind and file and not record.names(file)
        if is_foreign:  # the run did not answer OpenAI requests, so this failures file is not its own
            continue
        if file and (record.names(file) or os.path.lexists(file)) and not record.holds(file):
            raise OutputError(f"{file} has changed since its run: {fix}")
    if target.retry_errors and record.facts.get("stats", {}).get("errors"):
        keep = parameter("keep_store=True")
        raise OutputError(
            f"the store of {target.path} is missing, and failed rows need it to run again ({keep} keeps it)"
        )
    return record
