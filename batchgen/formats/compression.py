"""Files compressed with gzip or Zstandard. Knows nothing about their contents."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, cast

from batchgen.errors import BatchgenError, InputError, OutputError

GZIP, ZSTD = ".gz", ".zst"
SUFFIXES = (GZIP, ZSTD)
MAGICS = {b"\x1f\x8b": GZIP, b"\x28\xb5\x2f\xfd": ZSTD}
# Both have the same interface: the first is in Python's library since 3.14, the second on PyPI.
ZSTD_MODULES = ("compression.zstd", "backports.zstd")


def split_suffixes(path: Path) -> tuple[str, str]:
    """A path's own suffix and its compression suffix, in lowercase.
    >>> split_suffixes(Path("rows.jsonl.GZ")), split_suffixes(Path("rows.txt"))
    (('.jsonl', '.gz'), ('.txt', ''))
    """
    last = path.suffix.lower()
    return (Path(path.stem).suffix.lower(), last) if last in SUFFIXES else (last, "")


def unpack(stream: io.BufferedReader, name: str, packing: str = "") -> io.BufferedReader:
    """The decompressed stream. The format is detected by the first bytes, so standard input may be compressed too.

    `packing` is what the file's name suggests. Raises `InputError` if the content is something else.
    """
    try:
        start = stream.peek(4)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from None
    found = next((packed for magic, packed in MAGICS.items() if start.startswith(magic)), "")
    if packing and found != packing:
        raise InputError(f"{name} is not a {packing} file, despite its name: rename it or compress it")
    if found == GZIP:
        return cast(io.BufferedReader, gzip.GzipFile(fileobj=stream))
    if found == ZSTD:
        return cast(io.BufferedReader, _zstd(name, InputError).ZstdFile(stream))
    return stream


def damage(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """The exceptions that reading a truncated or corrupt compressed file raises, and `others`, for an except clause."""
    loaded = [sys.modules[name].ZstdError for name in ZSTD_MODULES if name in sys.modules]
    return (*others, EOFError, zlib.error, gzip.BadGzipFile, *loaded)


@contextmanager
def packed(stream: BinaryIO, packing: str) -> Iterator[BinaryIO]:
    """A stream that compresses into another one; the same content always gives the same bytes.

    `flush` is not passed on to the file: every flush would make compression worse.
    """
    target: Any
    if packing == GZIP:
        target = gzip.GzipFile("", "wb", fileobj=stream, mtime=0)
    elif packing == ZSTD:
        zstd = _zstd("the output", OutputError)
        target = zstd.ZstdFile(stream, "wb", options={zstd.CompressionParameter.checksum_flag: 1})
    else:
        yield stream
        return
    with target, io.BufferedWriter(_Unflushed(target)) as buffered:
        yield buffered


class _Unflushed(io.RawIOBase):
    """Passes on writes, but not flushes."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return int(self._target.write(data))


def _zstd(name: str, error: type[BatchgenError]) -> Any:
    for module in ZSTD_MODULES:
        with suppress(ImportError):
            return import_module(module)
    raise error(f"{name}: Zstandard needs another package: pip install backports.zstd")
