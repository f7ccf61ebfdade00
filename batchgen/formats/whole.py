"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from batchgen.errors import OutputError
from batchgen.formats.compression import packed, split_suffixes


def write_whole(file: Path, write: Callable[[BinaryIO], object]) -> None:
    """A file that is there whole and safe on the disk, or as it was: `write` gets the stream to fill.

    Where its suffix is one of a compression, it is packed.
    """
    partial = file.with_name(file.name + ".partial")
    try:
        with partial.open("wb") as stream:
            with packed(stream, split_suffixes(file)[1]) as packing:
                write(packing)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    _sync_folder(file.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a rename in it last, on systems that can be asked to."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # not every file system has it
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, value: object) -> None:
    """A JSON file for other programs; into a pipe or a device as it is."""
    text = f"{json.dumps(value, indent=2)}\n".encode()
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(text)
        else:
            write_whole(Path(os.path.realpath(path)), lambda stream: stream.write(text))
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}: mend that and run again") from None
