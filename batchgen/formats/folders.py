"""Find the prompt files of a folder, and report what is skipped. Knows nothing about formats."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class FolderOptions:
    """Whether to take all files of a folder, and those of its subfolders; `say` reports what is skipped."""

    all_files: bool = False
    recursive: bool = False
    say: Callable[[str], None] = lambda line: None


def look_into(folder: Path, options: FolderOptions, is_known: Callable[[Path], bool]) -> tuple[list[Path], str]:
    """The files of a folder that `is_known` accepts, sorted by path, and one line about what is skipped.

    Hidden files and linked folders are always skipped. Raises `OSError` for a folder that cannot be read.
    """
    found: list[Path] = []
    skipped: list[Path] = []
    subfolders: list[Path] = []
    for file in _walk(folder, options, subfolders):
        (found if options.all_files or is_known(file) else skipped).append(file)
    parts = []
    if skipped:
        parts.append(f"{_named(skipped, 'file')} not read, because the suffix is unknown (name them, or use a glob)")
    if subfolders:
        fix = "links are not followed" if all(path.is_symlink() for path in subfolders) else "add --recursive"
        parts.append(f"{_named(subfolders, 'subfolder')} not read ({fix})")
    return sorted(found), "; ".join(parts)


def _walk(folder: Path, options: FolderOptions, subfolders: list[Path]) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            if not path.is_dir():
                yield path
            elif options.recursive and not path.is_symlink():
                yield from _walk(path, options, subfolders)
            else:
                subfolders.append(path)


def _named(paths: list[Path], noun: str) -> str:
    names = ", ".join(path.name for path in sorted(paths)[:MOST_NAMED])
    more = f" and {len(paths) - MOST_NAMED:,} more" if len(paths) > MOST_NAMED else ""
    return f"{len(paths):,} {noun}{'s' if len(paths) > 1 else ''} ({names}{more})"
