"""Input files of a run on Ray: paths, folders, globs, or any URL that fsspec supports; opened from any worker."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from batchgen.errors import InputError, UsageError
from batchgen.formats.compression import split_suffixes
from batchgen.formats.reading import FORMATS_BY_SUFFIX, ReadOptions, Source, find_sources

BUFFER = 2**20


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file as the user named it, and where workers find it: an absolute path, or a URL."""

    name: str
    place: str

    @property
    def suffixes(self) -> tuple[str, str]:
        """The suffixes of the format and of the compression."""
        return split_suffixes(Path(PurePosixPath(self.place.split("?")[0]).name))

    @property
    def form(self) -> str | None:
        """The format that the name implies."""
        return FORMATS_BY_SUFFIX.get(self.suffixes[0])

    @property
    def packing(self) -> str:
        return self.suffixes[1]

    def open(self) -> io.BufferedReader:
        """Open the file for reading, without decompressing. Raises `InputError`."""
        try:
            if not is_url(self.place):
                return Path(self.place).open("rb")
            filesystem, path = filesystem_of(self.place)
            return io.BufferedReader(cast(io.RawIOBase, filesystem.open(path, "rb")), BUFFER)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.name} cannot be read: {reason_of(error)}") from None


def is_url(name: str) -> bool:
    return "://" in name


def filesystem_of(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL or path, and the path on it. Raises `UsageError` if there is none."""
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{url} cannot be reached: {reason_of(error)}") from None
    return filesystem, str(path)


def reason_of(error: Exception) -> str:
    """Describe an error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def find_files(
    inputs: Iterable[str],
    options: ReadOptions | None = None,
    *,
    recursive: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[InputFile]:
    """Return INPUTS as files that every worker can open, in order; those of folders and globs sorted by name.

    `recursive` includes subfolders. Skipped files of a folder are reported to `say`. Raises `UsageError` if there is no
    input or only this process could read one, and `InputError` if a path or URL has no prompt files.
    """
    files: list[InputFile] = []
    for given in inputs:
        if is_url(given):
            files += _find_at(given, options or ReadOptions(), recursive=recursive)
        else:
            sources = find_sources([given], options=options, recursive=recursive, say=say)
            files += [_local(source) for source in sources]
    if not files:
        raise UsageError("--ray reads files: give a path or URL that every machine can open")
    return files


def _local(source: Source) -> InputFile:
    if source.path is None or not source.path.is_file():
        raise UsageError(
            f"{source.name}: --ray only reads files, because several workers open them: write the input to a file first"
        )
    return InputFile(source.name, str(source.path.resolve()))


def _find_at(url: str, options: ReadOptions, *, recursive: bool) -> list[InputFile]:
    """Return the files of a URL: itself, a folder's prompt files, or a glob's matches."""
    any_suffix = options.input_format is not None or options.whole_files
    filesystem, path = filesystem_of(url)
    try:
        if any(sign in path for sign in "*?["):
            paths = filesystem.glob(path)
        elif filesystem.isdir(path):
            paths = filesystem.find(path) if recursive else filesystem.ls(path, detail=False)
        else:
            return [InputFile(url, url)] if filesystem.exists(path) else _nothing(url)
        files = [InputFile(place, place) for place in map(filesystem.unstrip_protocol, sorted(paths))]
        files = [file for file in files if (file.form or any_suffix) and filesystem.isfile(file.place)]
    except OSError as error:
        raise InputError(f"{url} cannot be read: {reason_of(error)}") from None
    return files or _nothing(url)


def _nothing(url: str) -> list[InputFile]:
    raise InputError(f"there is no prompt file at {url}")
