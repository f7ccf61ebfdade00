"""Files that appear whole or not at all, and replace nothing that nobody knew of."""

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
    """Which file stands under a name, and as what it was left."""

    device: int
    inode: int
    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> FileState | None:
        """Of the file itself, where the name is a link; None where nothing is there."""
        try:
            status = path.lstat()
        except OSError:
            return None
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def mode_of(path: Path) -> int | None:
    """The permissions of a file; None where there is none."""
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
    """A file that is there whole and safe on the disk, or as it was: `write` gets the stream to fill.

    Where its suffix is one of a compression, it is packed. It replaces the file of `replaces` alone, and raises
    `FileExistsError` where another one stands there by now. It takes the permissions of `like`, else of that file.
    `on_whole` is told where it stands (`temporary`, a new name by default) before it gets its name.
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
    """A name in the same folder that nobody can foresee."""
    return file.with_name(f".batchgen-{secrets.token_hex(8)}.tmp")


def _open_new(path: Path, mode: int) -> BinaryIO:
    """A new file: never one that is there, and never one behind a link."""
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
        os.link(temporary, file, follow_symlinks=False)  # which, unlike a rename, replaces nothing
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # a file system without links
        temporary.replace(file)
    else:
        temporary.unlink()


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


def digest_of_file(path: Path) -> str:
    """BLAKE2b of its bytes."""
    with path.open("rb") as stream:
        return file_digest(stream, "blake2b").hexdigest()[:32]


def write_json(path: Path, value: object, temporary: Path | None = None) -> None:
    """A JSON file for other programs."""
    text = f"{json.dumps(value, indent=2)}\n".encode()
    try:
        write_at(path, text, temporary=temporary)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}: fix that and run again") from None


def write_at(path: Path, content: bytes, *, temporary: Path | None = None, overwrite: bool = True) -> None:
    """A file whole, where the name leads to; into a pipe or a device as it is. Raises `OSError`."""
    file = Path(os.path.realpath(path))
    if path.is_symlink() and not file.exists():
        raise FileNotFoundError(errno.ENOENT, "it is a broken link", str(path))
    if file.exists() and not file.is_file():
        file.write_bytes(content)
        return
    replaces = FileState.of(file) if overwrite else None
    write_whole(file, lambda stream: stream.write(content), replaces=replaces, temporary=temporary)
