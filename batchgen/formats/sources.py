"""Sources of prompts: files, directories, globs, FIFOs, standard input, texts on the command line."""

from __future__ import annotations

import glob
import io
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import cast

from batchgen.errors import InputError, name_in_error
from batchgen.formats.binary import PACKING_SUFFIXES, UNPACK
from batchgen.formats.compression import split_suffixes
from batchgen.formats.folders import FolderOptions, look_into
from batchgen.formats.nearby import how_to_prompt, suggest
from batchgen.formats.rows import ReadOptions

FORMATS_BY_SUFFIX = {
    ".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet",
}  # fmt: skip
# Files that would give nonsense if they were read as lines of text.
NOT_TEXT = {".xls", ".xlsx", ".ods", ".db", ".sqlite", ".sqlite3", ".arrow", ".feather", ".avro", ".orc", ".pdf",
            ".doc", ".docx", ".odt", ".gguf", ".safetensors"}  # fmt: skip
URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Source:
    """A source of prompts: a path, standard input (`-`), or texts given on the command line."""

    name: str
    path: Path | None = None
    texts: tuple[str, ...] = ()

    @property
    def form(self) -> str | None:
        """Its format, if that is known before it is read."""
        if self.texts:
            return "text"
        return form_of(self.path) if self.path else None

    @property
    def packing(self) -> str:
        """The compression suffix in its name, or ""."""
        return split_suffixes(self.path)[1] if self.path else ""

    @property
    def status(self) -> os.stat_result | None:
        """The `stat` result of its file; None if it has none. Raises `OSError`."""
        if self.path is not None:
            return self.path.stat()
        with suppress(AttributeError, ValueError):  # closed, or replaced by an object in memory
            return None if self.texts else os.fstat(sys.stdin.fileno())
        return None


def form_of(path: Path) -> str | None:
    """The format of a file by its suffix, ignoring compression; None if it is unknown."""
    return FORMATS_BY_SUFFIX.get(split_suffixes(path)[0])


def find_sources(
    inputs: Iterable[str],
    texts: Iterable[str] = (),
    options: ReadOptions | None = None,
    *,
    use_stdin: bool = False,
    recursive: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[Source]:
    """Turn INPUTS into sources, in order: files, globs, `-`, FIFOs, directories; then texts.

    A directory stands for its files with known suffixes, sorted by name, or for all files if whole files are prompts;
    `recursive` includes subdirectories. Skipped files are reported to `say`. With a given format, a file may have any
    suffix. Raises `InputError` right away if something does not exist or cannot be prompts.
    """
    options = options or ReadOptions()
    any_suffix = options.input_format is not None or options.whole_files
    find = partial(_find, any_suffix=any_suffix, folders=FolderOptions(options.whole_files, recursive, say))
    sources = [source for given in inputs for source in find(given)]
    if texts := tuple(texts):
        sources.append(Source("--prompt", texts=texts))
    if not sources and use_stdin:
        sources.append(Source("-"))
    for source in sources:
        _refuse_device(source)
    return sources


def _find(given: str, *, any_suffix: bool, folders: FolderOptions) -> list[Source]:
    if given == "-":
        return [Source("-")]
    if not given:
        raise InputError("an input has an empty name: is a shell variable unset?")
    try:
        return [_check_file(path, any_suffix=any_suffix) for path in _expand(given, folders)]
    except OSError as error:
        name = name_in_error(str(error.filename or given))
        raise InputError(f"{name} cannot be read: {error.strerror} (to give a prompt directly, use -p)") from None


def _expand(given: str, folders: FolderOptions) -> list[Path]:
    """The files that a name stands for: the file itself, a directory's prompt files, or a glob's matches."""
    path = Path(given)
    if path.is_dir():
        return _look_into(path, folders)
    if path.exists():
        return [path]
    if path.is_symlink():
        raise InputError(f"{given} is a broken link")
    if URL.match(given):
        raise InputError(
            f"{given} is a URL, which is only supported with --ray: download it first, or pipe it into batchgen"
        )
    if not glob.has_magic(given):
        raise InputError(f"there is no file {given}{suggest(given)}")
    files = sorted(file for file in _glob(given) if not file.is_dir())
    if not files:
        raise InputError(f"no file matches {given}{how_to_prompt(given)}")
    return files


def _look_into(folder: Path, options: FolderOptions) -> list[Path]:
    found, left_out = look_into(folder, options, lambda file: form_of(file) is not None)
    if not found:
        known = f" ({', '.join(FORMATS_BY_SUFFIX)})"
        raise InputError(f"{folder} has no prompt files{known}{f': {left_out}' if left_out else ''}")
    if left_out:
        options.say(f"{folder}: {left_out}")
    return found


def _glob(pattern: str) -> list[Path]:
    """Matches of a pattern. `**` does not follow links to directories, because they may form a cycle."""
    whole = Path(pattern)
    if "**" not in whole.parts:
        return [Path(match) for match in glob.glob(pattern)]  # noqa: PTH207 - from any root
    root = Path(whole.anchor or ".")
    matches = (match.relative_to(root) for match in root.glob(str(whole.relative_to(whole.anchor))))
    return [
        root / match
        for match in matches
        if not any(part.startswith(".") and part not in whole.parts for part in match.parts)
    ]


def _check_file(path: Path, *, any_suffix: bool) -> Source:
    suffix = split_suffixes(path)[0]
    if packing := PACKING_SUFFIXES.get(suffix):
        raise InputError(f"{path}: cannot read {suffix} files ({packing}): {UNPACK}")
    if suffix in NOT_TEXT and not any_suffix:
        known = ", ".join(FORMATS_BY_SUFFIX)
        raise InputError(f"{path}: cannot read {suffix} files; give {known}, or set --input-format")
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path} is a broken link")
    path.stat()
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read: permission denied")
    return Source(str(path), path)


def _refuse_device(source: Source) -> None:
    """Raise `InputError` for a socket, and for a device, which may never end, except terminals and /dev/null."""
    with suppress(OSError):  # reported by the reader
        if (status := source.status) is None:
            return
        if stat.S_ISBLK(status.st_mode) or (stat.S_ISCHR(status.st_mode) and status.st_rdev not in _ending_devices()):
            raise InputError(f"{source.name} is a device, which may be endless: give a file or a pipe")
        if source.path and stat.S_ISSOCK(status.st_mode):  # standard input may be one
            raise InputError(f"{source.name} is a socket: give a file or a pipe")


def _ending_devices() -> set[int]:
    found = set()
    for path in (os.devnull, "/dev/tty"):
        with suppress(OSError):
            found.add(Path(path).stat().st_rdev)
    for descriptor in range(3):
        with suppress(OSError):
            if os.isatty(descriptor):
                found.add(os.fstat(descriptor).st_rdev)
    return found


def open_source(source: Source) -> BufferedReader:
    """Open a file or standard input for reading bytes, still compressed. Raises `InputError`."""
    try:
        return source.path.open("rb") if source.path else _open_stdin()
    except OSError as error:
        raise InputError(f"{source.name} cannot be read: {error.strerror}") from None


def _open_stdin() -> BufferedReader:
    if sys.stdin is None:
        raise InputError("standard input is closed")
    try:
        descriptor = sys.stdin.fileno()
    except ValueError:  # replaced by an object in memory
        return BufferedReader(cast(io.RawIOBase, sys.stdin.buffer))
    # Our own buffer: a thread still waiting in sys.stdin's would keep Python from exiting.
    return BufferedReader(open(descriptor, "rb", buffering=0, closefd=False))
