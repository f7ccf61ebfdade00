"""Suggest the file that a wrong name may have meant."""

from __future__ import annotations

import os
from contextlib import suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

MOST_ENTRIES = 10_000  # per folder that are looked at
LIKENESS = 0.75


def suggest(given: str) -> str:
    """What to add to "there is no file": a similar file, or how to give a prompt; often nothing."""
    if near := near_file(given):
        return f": did you mean {near}?"
    return how_to_prompt(given)


def how_to_prompt(given: str) -> str:
    """A hint for a name that contains a space, because it may be a prompt."""
    return " (to give a prompt directly, use -p)" if " " in given else ""


def near_file(given: str) -> str | None:
    """A file or folder with a similar path, or with this name in a subfolder of the same folder; None if none is."""
    with suppress(OSError, ValueError):
        path = Path(given)
        return _spelled_otherwise(path) or _in_a_folder(path)
    return None


def _spelled_otherwise(path: Path) -> str | None:
    """The path with each missing part corrected; None if a part has no close match."""
    found = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        if not (found / part).exists():
            near = _near_name(part, _names(found))
            if near is None:
                return None
            part = near
        found /= part
    return str(found)


def _near_name(name: str, names: list[str]) -> str | None:
    """The most likely of some names: first those that differ only in case, then similar ones, then other suffixes."""
    same = [other for other in names if other.lower() == name.lower()]
    stem = Path(name).stem.lower()
    other_suffix = [other for other in names if Path(other).stem.lower() == stem]
    close = get_close_matches(name, names, n=1, cutoff=LIKENESS)
    return next(iter([*same, *close, *sorted(other_suffix)]), None)


def _in_a_folder(path: Path) -> str | None:
    """The same name one folder deeper."""
    parent = path.parent
    candidates = (parent / name / path.name for name in sorted(_names(parent)))
    return next((str(file) for file in candidates if file.is_file()), None)


def _names(folder: Path) -> list[str]:
    """The names in a folder, except hidden ones."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in islice(entries, MOST_ENTRIES) if not entry.name.startswith(".")]
