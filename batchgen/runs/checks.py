"""Checks made before anything is loaded: no file may be lost, and no two outputs may be the same file."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path

from batchgen.errors import OVERWRITE, RESUME, InUseError, OutputError, UsageError, parameter
from batchgen.formats.reading import Source
from batchgen.runs.database import is_in_use
from batchgen.runs.locks import IN_USE
from batchgen.runs.target import Target

OUTPUT = "output"
Named = tuple[str, Path]  # the parameter that names a file, and the file


def check_outputs(target: Target | None, notes: Mapping[str, Path | None], sources: Sequence[Source]) -> None:
    """Check the paths of the output and the notes (keyed by parameter) before a run.

    Raises `OutputError` if the output exists (without overwrite or resume), or if any of them is an input, is the same
    file as another, or has no folder.
    """
    if target:
        _check_target(target, sources)
    named = [(name, path) for name, path in notes.items() if path]
    for name, path in named:
        check_file(name, path, sources, overwrite=True)
    check_distinct([(OUTPUT, path) for path in (target.files if target else [])], named)


URL = re.compile(r"[a-z][a-z0-9+.-]+:/[^/]", re.IGNORECASE)


def _check_target(target: Target, sources: Sequence[Source]) -> None:
    output = target.path
    shown = f"{parameter(OUTPUT)} {output}"
    if any(is_read_from(source, path) for source in sources for path in target.files):
        raise OutputError(f"{shown} is also an input: write to another file")
    if output.is_dir():
        raise OutputError(f"{shown} is a folder: name a file in it")
    _check_is_no_url(shown, output)
    if not output.parent.is_dir():
        raise OutputError(f"{shown}: there is no folder {output.parent}")
    for path in target.files:
        _check_link(path)
    if target.is_stream and (target.resume or target.keep_store):
        raise UsageError(f"{shown} is a pipe or a device, which cannot be resumed")
    if not (target.is_stream or target.overwrite or target.resume):
        _check_is_new(target)


def _check_is_new(target: Target) -> None:
    if target.store.exists() and not target.is_store:
        if is_in_use(target.store):
            raise InUseError(f"{target.store} {IN_USE}")
        raise OutputError(
            f"{target.store} holds an interrupted run: continue it with {RESUME}, or start over with {OVERWRITE}"
        )
    files = [target.path, None if target.in_kind else target.failures_file]
    if there := next((path for path in files if path and path.exists()), None):
        if target.is_store and is_in_use(target.store):
            raise InUseError(f"{target.store} {IN_USE}")
        go_on = f"{RESUME} continues it, " if target.is_store else ""
        raise OutputError(f"{there} exists: {go_on}add {OVERWRITE} to replace it, or move it away")


def check_file(name: str, path: Path, sources: Sequence[Source], *, overwrite: bool) -> None:
    """Check the file of a parameter before a run.

    Raises `OutputError` if it exists (without `overwrite`), is an input or has no folder, and `UsageError` for a dash.
    """
    shown = f"{parameter(name)} {path}"
    if str(path) == "-":
        raise UsageError(f"{shown}: this cannot go to standard output: name a file")
    if any(is_read_from(source, path) for source in sources):
        raise OutputError(f"{shown} is also an input: write to another file")
    _check_is_no_url(shown, path)
    if path.is_dir() or not path.parent.is_dir():
        raise OutputError(f"{shown}: name a file in an existing folder")
    _check_link(path)
    if path.is_file() and not overwrite:
        raise OutputError(f"{path} exists: add {OVERWRITE} to replace it, or move it away")


def _check_is_no_url(shown: str, path: Path) -> None:
    """Refuse a URL. A `Path` has already lost its second slash."""
    if URL.match(str(path)) and not path.parent.is_dir():
        raise OutputError(
            f"{shown.replace(':/', '://', 1)} is a URL: write to a file on this machine, and copy it there"
        )


def _check_link(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise OutputError(f"{path} is a broken link: remove it, or name another file")


def check_distinct(outputs: Iterable[Named], others: Sequence[Named]) -> None:
    """Refuse two parameters that name the same file; the files of the output are not compared with each other."""
    pairs = [*((output, other) for output in outputs for other in others), *combinations(others, 2)]
    for (first, path), (second, other) in pairs:
        if is_same(path, other):
            what = "the output" if first == OUTPUT else f"{parameter(first)} {path}"
            raise OutputError(f"{parameter(second)} {other} is also {what}: write to another file")


def is_same(first: Path, second: Path) -> bool:
    """Whether two paths lead to the same file. Pipes and devices never count: they can take both."""
    for path in (first, second):
        if path.exists() and not path.is_file():
            return False
    with suppress(OSError):
        return os.path.realpath(first) == os.path.realpath(second) or first.samefile(second)
    return False


def is_read_from(source: Source, file: Path | int) -> bool:
    """Whether a source reads this very file, whatever its name."""
    with suppress(OSError):
        status, other = source.status, os.stat(file)  # noqa: PTH116 - a descriptor too
        return status is not None and stat.S_ISREG(other.st_mode) and os.path.samestat(status, other)
    return False
