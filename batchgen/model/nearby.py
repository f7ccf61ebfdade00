"""Models that a wrong name may have meant: cached ones, bundled, gpt2, a folder nearby."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from batchgen.formats.nearby import near_file

LIKENESS = 0.75
CACHED = "models--"  # how the Hub's cache names the folders of models: models--OWNER--NAME
WELL_KNOWN = ("bundled", "gpt2")


def near_model(given: str, cache: Path | None = None) -> str | None:
    """A model's name that differs in spelling, or whose last part this is; often None."""
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
    """Names that need no folder: the well-known ones, and what the Hub's cache holds."""
    yield from WELL_KNOWN
    if cache:
        yield from (name for name in _cached(cache) if name not in WELL_KNOWN)


def _cached(cache: Path) -> Iterator[str]:
    """The ids of what the Hub's cache holds."""
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
