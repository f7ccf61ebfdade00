"""Where results go: standard output, or a file that appears whole or not at all."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from batchgen.cli.options import Format
from batchgen.errors import OutputError, UsageError
from batchgen.readers import Source

FORMATS_BY_SUFFIX = {".jsonl": Format.jsonl, ".ndjson": Format.jsonl, ".txt": Format.text}


def choose_format(asked: Format, output: Path | None, *, ids: bool = False) -> Format:
    """The format asked for, else the file's by its suffix, else a table on a terminal and JSON Lines in a pipe."""
    form = asked if asked is not Format.auto else _natural_format(output)
    if ids and form is Format.text:
        raise UsageError("--ids has no place in text: use --format jsonl or table")
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


def check_output(output: Path | None, overwrite: bool, sources: list[Source]) -> None:
    """Refuses, before anything is loaded, an output that exists, is an input, or has no folder."""
    if output is None:
        return
    if any(source.path is not None and _is_same(source.path, output) for source in sources):
        raise OutputError(f"-o {output} is also an input: write to another file")
    if output.is_dir():
        raise OutputError(f"-o {output} is a folder: name a file in it")
    if not output.parent.is_dir():
        raise OutputError(f"-o {output}: there is no folder {output.parent}")
    for path, what in ((output, "exists"), (_partial(output), "holds the rows of an interrupted run")):
        if path.is_file() and not overwrite:
            raise OutputError(f"{path} {what}: add --overwrite to replace it, or move it away")


def _partial(output: Path) -> Path:
    """Where rows stand until all are there."""
    target = output.resolve()  # behind a link, the file it leads to
    return target.with_name(target.name + ".partial")


def _is_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


@contextmanager
def open_output(output: Path | None) -> Iterator[TextIO]:
    """Standard output, or a temporary file beside `output` that takes its name when all is written.

    If the run does not end well, the rows finished so far stay in `output` with `.partial` behind its name.
    """
    if output is None:
        yield sys.stdout
        return
    if output.exists() and not output.is_file():  # a pipe or a device: nothing to rename
        with output.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
        return
    partial = _partial(output)
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(output.resolve())
    finally:
        with suppress(OSError):
            if not partial.stat().st_size:
                partial.unlink()


def is_abandoned(stream: TextIO) -> bool:
    """Whether the reader at the other end of a pipe is gone, which otherwise only the next write would tell."""
    if not hasattr(select, "poll"):
        return False
    with suppress(OSError, ValueError):  # a stream without a file descriptor has no other end
        poller = select.poll()
        poller.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poller.poll(0))
    return False


def kept_partial(output: Path | None) -> Path | None:
    """The finished rows of a run that did not end well, where it wrote a file."""
    return _partial(output) if output is not None and _partial(output).exists() else None
