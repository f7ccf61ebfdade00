"""Checks of what a run on a cluster may write to."""

from __future__ import annotations

from pathlib import Path

from batchgen.errors import OVERWRITE, RESUME, OutputError, parameter
from batchgen.runs.checks import is_same
from batchgen.runs.ray.folder import MANIFEST, NAME, WRITING, OutputFolder
from batchgen.runs.ray.inputs import InputFile, is_url


def check_notes(manifest: Path | None, stats: Path | None, output: str, files: list[InputFile]) -> None:
    """Refuse notes that are inputs or inside the output folder. Raises `OutputError`."""
    for name, path in (("manifest", manifest), ("stats", stats)):
        if path is None:
            continue
        shown = f"{parameter(name)} {path}"
        if any(is_same(path, Path(file.place)) for file in files if not is_url(file.place)):
            raise OutputError(f"{shown} is also an input: write to another file")
        if not is_url(output) and Path(output).resolve() in path.resolve().parents:
            raise OutputError(f"{shown} is in the output's folder: write to another file")


def check_folder(folder: OutputFolder, output: str, *, is_wanted: bool) -> None:
    """Refuse a folder with other files, or one that holds a run unless that `is_wanted`. Raises `OutputError`."""
    names, shown = folder.names(), f"{parameter('output')} {output}"
    ours = [name for name in names if name == MANIFEST or NAME.fullmatch(name) or name.startswith(WRITING)]
    if names and not ours:
        raise OutputError(f"{shown} is a folder that has other files: name a new one")
    if ours and not is_wanted:
        raise OutputError(f"{shown} holds a run: continue it with {RESUME}, or start over with {OVERWRITE}")
