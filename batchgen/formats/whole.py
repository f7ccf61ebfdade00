"""Write files atomically, and never replace a file that the caller did not expect."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import BinaryIO

from batchgen.errors import OutputError
from batchgen.formats.compression import packed, split_suffixes

PRIVATE = 0o600


@dataclass(frozen=True, slots=True)
class FileState:
    """The identity and state of the file at a path, to notice if it is replaced or changed."""

    device: int
    inode: int
    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> FileState | None:
        """The state of a path, of the link itself if it is one; None if nothing exists there."""
        try:
            status = path.lstat()
        except OSError:
            return None
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def mode_of(path: Path) -> int | None:
    """The permissions of a file; None if it does not exist."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None


def write_whole(
    file: Path,
    write: Callable[[BinaryIO], object],
    *,
    replaces: FileState | None,
    temporary: Path | None = None,
    like: Path | None = None,
    on_whole: Callable[[Path], object] = lambda temporary: None,
) -> None:
    """Write a file atomically and durably: it is complete on disk or unchanged. `write` gets the stream to fill.

    A compression suffix compresses it. It only replaces the file in state `replaces`, and raises `FileExistsError` if
    another one is there by now. It gets the permissions of `like`, otherwise of the replaced file. `on_whole` is called
    with the complete temporary file (`temporary`, by default a new name) before it is renamed.
    """
    temporary = temporary or temporary_name(file)
    mode = next((mode for path in (like, file) if path and (mode := mode_of(path)) is not None), None)
    stream = _open_new(temporary, 0o666 if mode is None else PRIVATE)
    try:
        with stream:
            if mode is not None:
                temporary.chmod(mode)
            with packed(stream, split_suffixes(file)[1]) as packing:
                write(packing)
            stream.flush()
            os.fsync(stream.fileno())
        on_whole(temporary)
        _rename(temporary, file, replaces)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(file.parent)


def temporary_name(file: Path) -> Path:
    """An unpredictable name in the same folder."""
    return file.with_name(f".batchgen-{secrets.token_hex(8)}.tmp")


def _open_new(path: Path, mode: int) -> BinaryIO:
    """Create a new file; fails if the path exists, and never follows a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags, mode), "wb")


def _rename(temporary: Path, file: Path, replaces: FileState | None) -> None:
    there = FileState.of(file)
    if there not in (None, replaces):
        raise FileExistsError(errno.EEXIST, "another file has taken its place", str(file))
    if there:
        temporary.replace(file)
        return
    try:
        os.link(temporary, file, follow_symlinks=False)  # unlike a rename, a link never replaces a file
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # a file system without links
        temporary.replace(file)
    else:
        temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable, on systems that support it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # not every file system supports it
            raise
    finally:
        os.close(descriptor)


def digest_of_file(path: Path) -> str:
    """The BLAKE2b hash of a file, 32 hex digits."""
    with path.open("rb") as stream:
        return file_digest(stream, "blake2b").hexdigest()[:32]


def write_json(path: Path, value: object, temporary: Path | None = None) -> None:
    """Write a JSON file for other programs. Raises `OutputError`."""
    text = f"{json.dumps(value, indent=2)}\n".encode()
    try:
        write_at(path, text, temporary=temporary)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}: fix that and run again") from None


def write_at(path: Path, content: bytes, *, temporary: Path | None = None, overwrite: bool = True) -> None:
    """Write a file atomically, following links; write directly into a pipe or device. Raises `OSError`."""
    file = Path(os.path.realpath(path))
    if path.is_symlink() and not file.exists():
        raise FileNotFoundError(errno.ENOENT, "it is a broken link", str(path))
    if file.exists() and not file.is_file():
        file.write_bytes(content)
        return
    replaces = FileState.of(file) if overwrite else None
    write_whole(file, lambda stream: stream.write(content), replaces=replaces, temporary=temporary)
