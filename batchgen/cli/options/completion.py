"""Shell completions: models after `--model`, columns of the input after `--field`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import typer

from batchgen.errors import BatchgenError

ANY_ROW = "-"  # a template without columns: all columns are then the row's own


def complete_model(incomplete: str) -> list[str]:
    """Return `bundled`, gpt2, the models in the Hub's cache, and folders with a model, filtered by prefix."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from batchgen.model.nearby import known_models

    names = [*known_models(Path(HF_HUB_CACHE)), *_folders(incomplete)]
    return [name for name in names if name.startswith(incomplete)]


def _folders(incomplete: str) -> Iterator[str]:
    """Yield folders with this prefix: models, and others followed by a slash, which may lead to one."""
    parent, _, start = incomplete.rpartition("/")
    home = Path(f"{parent}/" if parent or incomplete.startswith("/") else ".")
    for folder in sorted(home.glob(f"{start}*/")) if "*" not in start else ():
        name = str(folder) if parent or incomplete.startswith("/") else folder.name
        if not folder.name.startswith("."):
            yield name if (folder / "config.json").is_file() else f"{name}/"


def complete_column(context: typer.Context, incomplete: str) -> list[str]:
    """Return the columns of the first row of the first input, if one was already typed."""
    from batchgen.formats.reading import ReadOptions, find_sources, read_requests
    from batchgen.formats.templates import Template

    typed = [*(context.params.get("inputs") or ()), *context.args]  # the latter while the option lacks its value
    inputs = [word for word in typed if Path(word).is_file()][:1]  # a pipe can be read only once
    try:
        rows = list(islice(read_requests(find_sources(inputs), options=ReadOptions(template=Template(ANY_ROW))), 1))
    except (BatchgenError, OSError):
        return []
    return [name for row in rows for name in row.metadata if name.startswith(incomplete)]
