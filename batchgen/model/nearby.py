"""Suggest the model that a wrong name may have meant: a cached one, bundled, gpt2, or a folder nearby."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from batchgen.formats.nearby import near_file

LIKENESS = 0.75
CACHED = "models--"  # prefix of model folders in the Hub's cache: models--OWNER--NAME
WELL_KNOWN = ("bundled", "gpt2")


def near_model(given: str, cache: Path | None = None) -> str | None:
    """A known model with a similar name, or with `given` as its last part; None if there is no close match."""
    names = list(known_models(cache))
    wanted = given.strip("/ ").lower()
    by_spelling: dict[str, str] = {name.lower(): name for name in reversed(names)}
    by_last_part: dict[str, str] = {name.lower().rpartition("/")[2]: name for name in reversed(names)}
    for spellings in (by_spelling, by_last_part):
        if wanted in spellings:
            return spellings[wanted]
    for spellings in (by_spelling, by_last_part):
        if close := get_close_matches(wanted, list(spellings), n=1, cutoff=LIKENESS):
            return spellings[close[0]]
    return _near_folder(given)


def known_models(cache: Path | None) -> Iterator[str]:
    """Names that need no local folder: the well-known ones, and the models in the Hub's cache."""
    yield from WELL_KNOWN
    if cache:
        yield from (name for name in _cached(cache) if name not in WELL_KNOWN)


def _cached(cache: Path) -> Iterator[str]:
    """The ids of the models in the Hub's cache."""
    try:
        folders = sorted(folder.name for folder in cache.iterdir())
    except OSError:
        return
    for name in folders:
        if name.startswith(CACHED):
            yield name.removeprefix(CACHED).replace("--", "/")


def _near_folder(given: str) -> str | None:
    near = near_file(given)
    return near if near is not None and (Path(near) / "config.json").is_file() else None
